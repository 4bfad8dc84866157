"""The `prove` command: test on a running server whether each category's adapter helps."""
