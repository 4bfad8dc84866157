"""Pydantic models of the requests and responses of the `/v1/router` routes."""
