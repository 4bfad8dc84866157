"""The `evaluate` command: measure how well a configuration or a server routes labelled prompts."""
