"""Client of the vLLM server that scores answers: its models, its tokenizer and its log-likelihoods."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

ROUTER_OWNER = "vllm_lora_router"  # `owned_by` of the auto name in the list of models
RAW_LOGPROBS = "start the server without --logprobs-mode, or with raw_logprobs"
_EXCERPT = 500  # characters


class ProveError(RuntimeError):
    """A condition that prevents scoring; the message names it and the remedy."""


class ServerError(ProveError):
    """A request that failed."""

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status  # None: no response
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The models that the server lists under /v1/models."""

    bases: tuple[str, ...]  # names of the base model
    adapters: tuple[str, ...]
    listed: tuple[str, ...]  # all names, including the router's auto name


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """The tokens of a prompt."""

    ids: tuple[int, ...]
    max_model_len: int  # tokens of prompt and answer together


class Endpoint(AbstractAsyncContextManager["Endpoint"]):
    """Client of a vLLM server. Requests are not retried; failures raise."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        """Open a client session.

        Args:
            url: URL of the server, with or without /v1 at its end.
            timeout_s: Timeout of each request.

        Raises:
            ProveError: The URL is invalid, or aiohttp is not installed.
        """
        try:
            import aiohttp
        except ImportError:
            raise ProveError("prove needs aiohttp, which vLLM installs: pip install aiohttp") from None
        self._root = url.rstrip("/").removesuffix("/v1")
        if not self._root.startswith(("http://", "https://")):
            raise ProveError(f"{url!r} is not a server's URL; write it as http://127.0.0.1:8000")
        self._timeout_s = timeout_s
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        )

    async def __aexit__(self, *error: object) -> None:
        await self._http.close()

    async def models(self) -> ServedModels:
        """Return the models that the server lists.

        Raises:
            ServerError: The request fails, or the server lists no base model.
        """
        response = await self._request("GET", "/v1/models")
        with self._vllm_format("/v1/models"):
            cards = response["data"]
            bases = [card["id"] for card in cards if card["parent"] is None and card["owned_by"] != ROUTER_OWNER]
            adapters = [card["id"] for card in cards if card["parent"] is not None]
            listed = [card["id"] for card in cards]
        if not bases:
            raise ServerError(f"{self._root}/v1/models lists no base model, but prove scores one")
        return ServedModels(tuple(bases), tuple(adapters), tuple(listed))

    async def tokenize(self, model: str, body: Mapping[str, Any]) -> TokenizedPrompt:
        """Return the tokens of a `prompt`, or of `messages` in the server's chat template.

        Raises:
            ServerError: The request fails.
        """
        response = await self._request("POST", "/tokenize", {"model": model, **body})
        with self._vllm_format("/tokenize"):
            return TokenizedPrompt(tuple(response["tokens"]), response["max_model_len"])

    async def log_likelihood(self, model: str, context: Sequence[int], token: int) -> tuple[str, float]:
        """Return the log-likelihood of a token after a context of tokens.

        The request restricts vLLM to generating that one token; vLLM reports the token's log-probability from before
        the restriction. Log-likelihoods of a prompt's own tokens (`prompt_logprobs`) would take fewer requests. But
        with other requests in the batch they end an engine with adapters on a CPU (seen on vLLM 0.32), and they are
        reported to omit an adapter's changes to the output layer (vllm-project/vllm#51594) and to use GPU memory that
        is not reserved (#5907).

        Returns:
            The name of the model in the response, and the log-likelihood in nats.

        Raises:
            ServerError: The request fails, or the response is about another token.
        """
        sampling = {"max_tokens": 1, "temperature": 0, "logprobs": 0}
        as_ids = {"allowed_token_ids": [token], "return_tokens_as_token_ids": True}
        body = {"model": model, "prompt": list(context), **sampling, **as_ids}
        response = await self._request("POST", "/v1/completions", body)
        with self._vllm_format("/v1/completions"):
            logprobs = response["choices"][0]["logprobs"]
            if logprobs["tokens"] != [f"token_id:{token}"]:
                raise ValueError(logprobs["tokens"])
            (value,) = logprobs["token_logprobs"]
            answered_by = response["model"]
        if value > 0:
            raise ServerError(f"{self._root}: returns {value:g}, which is not a log-likelihood; {RAW_LOGPROBS}")
        return answered_by, value

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        from aiohttp import ClientError

        request = f"{method} {self._root}{path}"
        try:
            async with self._http.request(method, f"{self._root}{path}", json=body) as response:
                status, text = response.status, (await response.read()).decode(errors="replace")
        except TimeoutError:
            raise ServerError(f"{request}: no response within {self._timeout_s:g} s; increase --timeout") from None
        except ClientError as error:
            reason = str(error) or type(error).__name__
            raise ServerError(f"{request}: failed ({reason}); check that the server runs and --url is right") from None
        if status != 200:
            raise ServerError(f"{request}: status {status}: {_error_message(text)}{_remedy(status, text)}", status)
        try:
            return json.loads(text)
        except ValueError:
            raise ServerError(f"{request}: the response is not JSON: {text[:_EXCERPT]!r}") from None

    @contextmanager
    def _vllm_format(self, path: str) -> Iterator[None]:
        try:
            yield
        except (LookupError, TypeError, ValueError):
            raise ServerError(f"{self._root}{path}: the response is not in vLLM's format; prove needs vLLM") from None


def _error_message(text: str) -> str:
    """Return the message of an error response: OpenAI's form of an error, a shorter form, or the text itself."""
    try:
        content = json.loads(text)
        content = content.get("error", content)
        message = content if isinstance(content, str) else content.get("message") or content.get("detail")
    except (ValueError, AttributeError):
        message = None
    return str(message or text[:_EXCERPT] or "no text")


def _remedy(status: int, text: str) -> str:
    if status == 401:
        return "; name the environment variable that holds the API key with --api-key-env"
    if status == 404 and "model" not in text:
        return "; check that --url is a vLLM server"
    return ""
