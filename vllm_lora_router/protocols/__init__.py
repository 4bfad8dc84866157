"""Bytes to a query, and an edit back to bytes: one file an API shape."""
