"""The base model, the error body, and the annotations that several routes share."""

from typing import Any

from fastapi.openapi.constants import REF_PREFIX
from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A model with attribute docstrings, which become the descriptions in `/docs` and `/openapi.json`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    @classmethod
    def select(cls, content: Any) -> dict[str, Any]:
        """Return the part of a response that this model describes. All other fields are removed, also nested ones."""
        return cls.model_validate(content).model_dump(mode="json", exclude_unset=True)


class RouterError(Model):
    """An error in the form that OpenAI clients expect."""

    message: str
    """The problem, its place, and the remedy."""
    type: str
    """The error class, such as `PermissionDeniedError`."""
    param: str | None
    """Always null."""
    code: int
    """The HTTP status code."""


class RouterErrorResponse(Model):
    """The body of every error answer of these routes except 422."""

    error: RouterError
    """The error."""


def error_response(description: str) -> dict[str, Any]:
    """Return an entry for a route's `responses=` with a `RouterErrorResponse` body."""
    return {"model": RouterErrorResponse, "description": description}


# FastAPI documents 422 only for routes with parameters that it parses itself. One such route, such as
# `GET /v1/router/decisions`, adds the component `HTTPValidationError` to the document.
VALIDATION_ERROR: dict[str, Any] = {
    "description": "The request body is invalid.",
    "content": {"application/json": {"schema": {"$ref": f"{REF_PREFIX}HTTPValidationError"}}},
}
