"""What it costs to have more adapters than a server has slots for."""
