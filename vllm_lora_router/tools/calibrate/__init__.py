"""Thresholds of a configuration, chosen by what labelled prompts or recorded requests say."""
