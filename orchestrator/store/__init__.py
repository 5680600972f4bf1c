"""What a service keeps on disk: runs, their events, contexts and request ids, in SQLite and files beside it."""
