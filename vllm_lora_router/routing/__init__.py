"""From a query to a plan: category, candidates, fallback."""
