"""The vLLM routes with a `model`, with their protocols and their properties."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vllm_lora_router.protocols.batch import BATCH
from vllm_lora_router.protocols.chat import CHAT, COHERE, TOKENIZE
from vllm_lora_router.protocols.completions import COMPLETIONS, SCORING, TOKENS
from vllm_lora_router.protocols.decisions import DECISIONS
from vllm_lora_router.protocols.messages import MESSAGES
from vllm_lora_router.protocols.protocol import ApiProtocol, Members
from vllm_lora_router.protocols.responses import RESPONSES

# vLLM requires its API key under these prefixes (vllm/entrypoints/serve/middleware/authenticate.py).
API_KEY_PREFIXES = ("/v1/", "/v2/", "/inference/", "/cohere/")


@dataclass(frozen=True)
class Route:
    """A route of vLLM that is routed."""

    path: str
    protocols: tuple[ApiProtocol, ...]  # the first with its member in the body applies; without any, the first
    dry_run: bool = False  # renders or parses a prompt, and runs nothing on the engine
    adapter_header: bytes | None = None  # header that names the adapter; `model` in the body is then ignored

    @property
    def behind_api_key(self) -> bool:
        """Whether vLLM checks its API key. Other clients must not start the load of an adapter."""
        return is_behind_api_key(self.path)

    def protocol_for(self, members: Members) -> ApiProtocol:
        """Return the protocol of a request to this route."""
        return detect_protocol(members, self.protocols) or self.protocols[0]


ROUTES: Mapping[str, Route] = {
    route.path: route
    for route in (
        Route("/v1/chat/completions", (CHAT,)),
        Route("/v1/chat/completions/batch", (BATCH,)),
        Route("/v1/chat/completions/render", (CHAT,), dry_run=True),
        Route("/v1/chat/completions/derender", (TOKENS,), dry_run=True),
        Route("/v1/completions", (COMPLETIONS,)),
        Route("/v1/completions/render", (COMPLETIONS,), dry_run=True),
        Route("/v1/completions/derender", (TOKENS,), dry_run=True),
        Route("/v1/responses", (RESPONSES,)),
        Route("/v1/responses/render", (RESPONSES,), dry_run=True),
        Route("/v1/messages", (MESSAGES,)),
        Route("/v1/messages/count_tokens", (MESSAGES,), dry_run=True),
        Route("/v1/messages/render", (MESSAGES,), dry_run=True),
        Route("/v1/systemone", (DECISIONS,)),
        Route("/v1/decisions", (DECISIONS,)),
        Route("/cohere/v2/chat", (COHERE,)),
        Route("/cohere/v2/chat/render", (COHERE,), dry_run=True),
        Route("/inference/v1/generate", (TOKENS,)),
        Route("/generative_scoring", (SCORING,)),
        Route("/tokenize", (TOKENIZE, COMPLETIONS), dry_run=True),
        Route("/detokenize", (TOKENS,), dry_run=True),
        Route("/invocations", (CHAT, COMPLETIONS), adapter_header=b"x-amzn-sagemaker-adapter-identifier"),
    )
}


def is_behind_api_key(path: str) -> bool:
    """Return whether vLLM requires its API key for a path, if the server has one."""
    return path.startswith(API_KEY_PREFIXES)


# Paths that run a model or an adapter, or show a prompt, and for which vLLM does not require its API key.
OPEN_PATHS = frozenset(
    {
        *(route.path for route in ROUTES.values() if not route.behind_api_key),
        "/pooling",
        "/classify",
        "/score",
        "/rerank",
    }
)


def detect_protocol(
    members: Members, protocols: Iterable[ApiProtocol] = (CHAT, COMPLETIONS, RESPONSES)
) -> ApiProtocol | None:
    """Return the protocol of a body from its members, without the path; None if no protocol matches."""
    return next((protocol for protocol in protocols if protocol.user_text_member in members), None)
