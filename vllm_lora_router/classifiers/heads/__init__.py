"""Heads: map a sentence embedding to the probability of each category and of no category."""
