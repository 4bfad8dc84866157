"""State that the API-server processes of one server share: run directory, usage table, configuration votes."""
