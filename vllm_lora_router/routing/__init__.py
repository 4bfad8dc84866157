"""Routing: from the queries of a request to a plan with a category, candidates and a fallback."""
