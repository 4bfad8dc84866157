"""Measure the cost of routing on a running server."""
