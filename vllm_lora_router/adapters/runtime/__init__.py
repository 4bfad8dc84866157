"""Adapters at run time: versions, leases, loading, slot scheduling and maintenance."""
