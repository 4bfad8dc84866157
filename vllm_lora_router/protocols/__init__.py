"""API protocols: one file per API translates a request body to queries, and an edit back to the body."""
