"""Models made for routing: what runs once, before a server does."""
