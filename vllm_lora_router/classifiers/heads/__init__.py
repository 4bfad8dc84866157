"""Heads: from a sentence's embedding to the probability of each category, and of none."""
