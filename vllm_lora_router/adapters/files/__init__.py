"""Adapter files on disk: sources, validation, compatibility with the base model, and snapshots."""
