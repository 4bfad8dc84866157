"""The server that is asked: what it serves, how it reads a prompt, how likely it finds the tokens of one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

OURS = "vllm_lora_router"  # who owns the auto name in the list of models
_SHOWN = 500  # characters of an answer that is no JSON
RAW = "start the server without --logprobs-mode, or with raw_logprobs"


class ProofError(RuntimeError):
    """Something in the way of a proof; the message names it and the way out."""


class ServerError(ProofError):
    """The server did not do what it was asked."""

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status  # None: there was no answer
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Served:
    """What the server lists under /v1/models."""

    bases: tuple[str, ...]  # the names of the base model
    adapters: tuple[str, ...]
    listed: tuple[str, ...]  # all names, the router's own among them


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a prompt."""

    ids: tuple[int, ...]
    longest: int  # tokens, prompt and answer together, that the model takes


class Endpoint(AbstractAsyncContextManager["Endpoint"]):
    """A vLLM server. Nothing is asked twice: what fails is told."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        """
        Args:
            url: of the server, with or without /v1 at its end.
            timeout_s: for each request.

        Raises:
            ProofError: it is no URL, or aiohttp is not installed.
        """
        try:
            import aiohttp
        except ImportError:
            raise ProofError("prove needs aiohttp, which comes with vLLM: pip install aiohttp") from None
        self._root = url.rstrip("/").removesuffix("/v1")
        if not self._root.startswith(("http://", "https://")):
            raise ProofError(f"{url!r} is no address of a server; write it as http://127.0.0.1:8000")
        self._timeout_s = timeout_s
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        )

    async def __aexit__(self, *error: object) -> None:
        await self._http.close()

    async def served(self) -> Served:
        """What the server serves.

        Raises:
            ServerError: it cannot be reached, answers with an error, or lists no base model.
        """
        found = await self._ask("GET", "/v1/models")
        with self._as_vllm("/v1/models"):
            cards = found["data"]
            bases = [card["id"] for card in cards if card["parent"] is None and card["owned_by"] != OURS]
            adapters = [card["id"] for card in cards if card["parent"] is not None]
            listed = [card["id"] for card in cards]
        if not bases:
            raise ServerError(f"{self._root}/v1/models lists no base model, and prove asks one")
        return Served(tuple(bases), tuple(adapters), tuple(listed))

    async def tokens(self, model: str, asked: Mapping[str, Any]) -> Prompt:
        """The tokens of a `prompt`, or of `messages` in the server's own chat template.

        Raises:
            ServerError: it cannot be reached or answers with an error.
        """
        found = await self._ask("POST", "/tokenize", {"model": model, **asked})
        with self._as_vllm("/tokenize"):
            return Prompt(tuple(found["tokens"]), found["max_model_len"])

    async def likelihood(self, model: str, before: Sequence[int], token: int) -> tuple[str, float]:
        """The name of the model that answered, and how likely it finds a token behind others: a logarithm, in nats.

        vLLM may generate that one token and no other, and tells how likely it was before there was no choice. What it
        says of a prompt's own tokens (`prompt_logprobs`) would take fewer requests. But beside other requests that ends
        an engine with adapters on a CPU (seen on vLLM 0.32), and by reports it leaves out what adapters change in the
        output layer (vllm-project/vllm#51594) and takes memory on a GPU that nobody has set aside (#5907).

        Raises:
            ServerError: it cannot be reached, answers with an error, or tells something else.
        """
        asked = {"model": model, "prompt": list(before), "max_tokens": 1, "temperature": 0, "logprobs": 0}
        as_ids = {"allowed_token_ids": [token], "return_tokens_as_token_ids": True}
        found = await self._ask("POST", "/v1/completions", {**asked, **as_ids})
        with self._as_vllm("/v1/completions"):
            told = found["choices"][0]["logprobs"]
            if told["tokens"] != [f"token_id:{token}"]:
                raise ValueError(told["tokens"])
            (value,) = told["token_logprobs"]
            by = found["model"]
        if value > 0:
            raise ServerError(f"{self._root}: gives no likelihoods ({value:g}); {RAW}")
        return by, value

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        from aiohttp import ClientError

        where = f"{method} {self._root}{path}"
        try:
            async with self._http.request(method, f"{self._root}{path}", json=body) as response:
                status, text = response.status, (await response.read()).decode(errors="replace")
        except TimeoutError:
            raise ServerError(f"{where}: no answer within {self._timeout_s:g} s; --timeout gives it longer") from None
        except ClientError as error:
            said = str(error) or type(error).__name__
            raise ServerError(f"{where}: cannot be asked ({said}); is the server up, and is --url right?") from None
        if status != 200:
            raise ServerError(f"{where}: status {status}: {_message(text)}{_way_out(status, text)}", status)
        try:
            return json.loads(text)
        except ValueError:
            raise ServerError(f"{where}: answers with something that is no JSON: {text[:_SHOWN]!r}") from None

    @contextmanager
    def _as_vllm(self, path: str) -> Iterator[None]:
        try:
            yield
        except (LookupError, TypeError, ValueError):
            raise ServerError(f"{self._root}{path}: answers otherwise than vLLM does, and prove needs vLLM") from None


def _message(text: str) -> str:
    """The server's own words: OpenAI's form of an error, shorter ones, or the text as it is."""
    try:
        said = json.loads(text)
        said = said.get("error", said)
        said = said if isinstance(said, str) else said.get("message") or said.get("detail")
    except (ValueError, AttributeError):
        said = None
    return str(said or text[:_SHOWN] or "no text")


def _way_out(status: int, text: str) -> str:
    if status == 401:
        return "; --api-key-env names the variable that holds its API key"
    if status == 404 and "model" not in text:
        return "; prove asks vLLM itself, and something else may stand at this address"
    return ""
