"""Error bodies in the form of the API that a path belongs to."""

from typing import Any

OPENAI_TYPES = {
    400: "BadRequestError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
ANTHROPIC_TYPES = {400: "invalid_request_error", 403: "permission_error", 503: "api_error"}


def error_body(
    path: str, status: int, message: str, param: str | None = None, *, anthropic_type: str | None = None
) -> dict[str, Any]:
    """Return the body of an error answer: in Anthropic's form under `/v1/messages`, and otherwise in OpenAI's.

    Args:
        param: the member of the request that the error is about.
        anthropic_type: the type in Anthropic's form; None: the usual one of the status.
    """
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": anthropic_type or ANTHROPIC_TYPES[status], "message": message}}
    return {"error": {"message": message, "type": OPENAI_TYPES[status], "param": param, "code": status}}
