"""What a service keeps alive, without gRPC: runs, sessions, sandboxes, what they may use, and who may see them."""
