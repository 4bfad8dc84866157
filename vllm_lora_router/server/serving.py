"""What middleware and routes share: the router in force, the engine behind it, and the counts."""

from collections.abc import Sequence
from typing import Protocol

from vllm_lora_router.record.tally import Tally
from vllm_lora_router.routing.router import Router


class Engine(Protocol):
    """The serving engine as routing sees it."""

    served_names: Sequence[str]  # the names of the base model, the first being the one that answers carry

    def can_serve(self, adapter: str) -> bool:
        """Whether a request that names this adapter now would be answered by it."""
        ...


class Serving:
    """Made when the app is built, filled when the engine is up; no request comes before that."""

    def __init__(self) -> None:
        self.router: Router | None = None
        self.engine: Engine | None = None
        self.tally = Tally()

    def start(self, router: Router, engine: Engine) -> None:
        self.engine = engine
        self.router = router
