"""One call to one replica: over HTTP, over gRPC, by URL."""
