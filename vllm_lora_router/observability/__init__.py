"""Records of decisions for operators and clients: audit record, metrics, traces, log lines and response headers."""
