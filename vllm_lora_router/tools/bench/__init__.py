"""What routing costs, measured on a running server."""
