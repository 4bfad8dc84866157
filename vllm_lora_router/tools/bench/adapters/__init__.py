"""Measure the cost of more adapters than a server has slots."""
