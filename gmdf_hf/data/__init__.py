"""Loading of domains as frames, batches and episodes."""
