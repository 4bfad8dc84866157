"""What the audit record says when it is read: summaries, explanations, decisions made again, A/B tests."""
