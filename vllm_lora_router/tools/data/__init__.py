"""Reading of labelled prompts and other rows from users' files."""
