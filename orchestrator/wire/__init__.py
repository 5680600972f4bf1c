"""What goes over the public wire: protos to values and back, errors to statuses and back. No gRPC in here."""
