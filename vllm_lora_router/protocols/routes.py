"""vLLM's routes that have a `model`: what comes in there, and what it may cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vllm_lora_router.protocols.batch import BATCH
from vllm_lora_router.protocols.chat import CHAT, COHERE
from vllm_lora_router.protocols.completions import COMPLETIONS, SCORING, TOKENS
from vllm_lora_router.protocols.decisions import DECISIONS
from vllm_lora_router.protocols.messages import MESSAGES
from vllm_lora_router.protocols.protocol import Members, Shape
from vllm_lora_router.protocols.responses import RESPONSES
from vllm_lora_router.protocols.tokenize import TOKENIZE

# vLLM's API key guards what lies under these (vllm/entrypoints/serve/middleware/authenticate.py).
GUARDED = ("/v1/", "/v2/", "/inference/", "/cohere/")


@dataclass(frozen=True)
class Route:
    """One path."""

    path: str
    shapes: tuple[Shape, ...]  # the first whose member a body has; a body with none of them is wrong
    dry: bool = False  # it renders a prompt or reads one back, and runs nothing on the engine
    header: bytes | None = None  # the adapter stands in this header, and the body's `model` means nothing

    @property
    def guarded(self) -> bool:
        """Whether whoever asks has shown the API key, where there is one: nobody else may start a load."""
        return is_guarded(self.path)

    def shape_of(self, members: Members) -> Shape:
        """The shape of a request there."""
        return shape_of(members, self.shapes) or self.shapes[0]


ROUTES: Mapping[str, Route] = {
    route.path: route
    for route in (
        Route("/v1/chat/completions", (CHAT,)),
        Route("/v1/chat/completions/batch", (BATCH,)),
        Route("/v1/chat/completions/render", (CHAT,), dry=True),
        Route("/v1/chat/completions/derender", (TOKENS,), dry=True),
        Route("/v1/completions", (COMPLETIONS,)),
        Route("/v1/completions/render", (COMPLETIONS,), dry=True),
        Route("/v1/completions/derender", (TOKENS,), dry=True),
        Route("/v1/responses", (RESPONSES,)),
        Route("/v1/responses/render", (RESPONSES,), dry=True),
        Route("/v1/messages", (MESSAGES,)),
        Route("/v1/messages/count_tokens", (MESSAGES,), dry=True),
        Route("/v1/messages/render", (MESSAGES,), dry=True),
        Route("/v1/systemone", (DECISIONS,)),
        Route("/v1/decisions", (DECISIONS,)),
        Route("/cohere/v2/chat", (COHERE,)),
        Route("/cohere/v2/chat/render", (COHERE,), dry=True),
        Route("/inference/v1/generate", (TOKENS,)),
        Route("/generative_scoring", (SCORING,)),
        Route("/tokenize", (TOKENIZE, COMPLETIONS), dry=True),
        Route("/detokenize", (TOKENS,), dry=True),
        Route("/invocations", (CHAT, COMPLETIONS), header=b"x-amzn-sagemaker-adapter-identifier"),
    )
}


def is_guarded(path: str) -> bool:
    """Whether vLLM's API key is asked for there, where there is one."""
    return path.startswith(GUARDED)


def shape_of(members: Members, shapes: Iterable[Shape] = (CHAT, COMPLETIONS, RESPONSES)) -> Shape | None:
    """The shape that a body has by its own members, such as one that names no path."""
    return next((shape for shape in shapes if shape.member in members), None)
