"""What travels: messages, and their bytes over HTTP and gRPC. No network here."""
