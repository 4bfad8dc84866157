"""How well a configuration routes: measured on labelled prompts, compared with another, and its thresholds chosen."""
