"""Small models for the demo and the tests: a base model, adapters with recognizable answers, and a domain model."""
