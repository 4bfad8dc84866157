"""The `calibrate` command: choose thresholds from labelled prompts or from the audit record."""
