"""Tools that read the audit record: summaries, explanations, replays and A/B test reports."""
