"""Labelled prompts and other rows, as users keep them in files."""
