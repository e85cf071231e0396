"""A domain to frames, batches and episodes."""
