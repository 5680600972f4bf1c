"""The public gRPC services: thin over `hosting`, which does the work, and `wire`, which knows the messages."""
