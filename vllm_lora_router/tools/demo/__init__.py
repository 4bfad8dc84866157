"""Small models for the demo and the tests: a base that says so, adapters that say which one spoke, a domain model."""
