"""Views of decisions and outcomes: response headers, the log line, the tally."""
