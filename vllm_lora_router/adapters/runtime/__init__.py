"""Adapters while the server runs: versions, leases, loads and slots, the same in all of its processes."""
