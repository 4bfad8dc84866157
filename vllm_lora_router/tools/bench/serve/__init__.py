"""Compare routing with naming the adapter and with a proxy in front of the server."""
