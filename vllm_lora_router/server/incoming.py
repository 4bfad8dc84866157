"""A request that has arrived: its body is read once, and let go of when it is handed on."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from starlette.types import Receive, Scope

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Members
from vllm_lora_router.protocols.routes import ROUTES, Route
from vllm_lora_router.server import asgi

T = TypeVar("T")

# Larger bodies are read and written in a thread, so that the event loop gets its turn in between: on a slow core this
# many bytes of short messages take more than a millisecond.
LARGE_BYTES = 96 * 1024
SMALL_BYTES = 16 * 1024

NO_HEADERS: Mapping[bytes, bytes] = {}


class Incoming:
    """A JSON body with what has to be known of it. Bodies may be tens of megabytes, and responses take minutes."""

    def __init__(self, scope: Scope, path: str, content: bytes) -> None:
        self.scope = scope
        self.route: Route | None = ROUTES.get(path)
        self.path = path
        self.began, self.began_ns = time.perf_counter(), time.time_ns()  # when the body was complete; the latter UTC
        self.members: Members | None = None  # raw, when it is a JSON object
        self.model: str | None = None  # what the client names, in the body or where the route has it
        self._content: bytes | None = content

    @classmethod
    async def read(cls, scope: Scope, path: str, receive: Receive) -> "Incoming | None":
        """The whole request; None when the client left before it was complete."""
        content = await asgi.read_body(receive)
        if content is None:
            return None
        incoming = cls(scope, path, content)
        await incoming.work(incoming._look)
        return incoming

    async def work(self, work: Callable[[], T]) -> T:
        """Does something that takes time in proportion to the body."""
        if self.is_large:
            return await asyncio.to_thread(work)
        done = work()
        if self._content is not None and len(self._content) > SMALL_BYTES:
            await asyncio.sleep(0)  # others have their turn before the next of it
        return done

    @property
    def is_large(self) -> bool:
        return self._content is not None and len(self._content) > LARGE_BYTES

    def write(self, content: bytes, headers: Mapping[bytes, bytes] = NO_HEADERS) -> None:
        """Takes another body in place of the client's, and adds headers as `add_headers` does."""
        self._content = content
        self.scope = asgi.with_headers(self.scope, {**headers, b"content-length": b"%d" % len(content)})

    def add_headers(self, headers: dict[bytes, bytes]) -> None:
        """Adds headers, or writes them in place of the client's of these names."""
        self.scope = asgi.with_headers(self.scope, headers)

    def name(self, model: str) -> None:
        """Lets the request name another model; every other byte stays."""
        if self.route is not None and self.route.header is not None:
            self.scope = asgi.with_headers(self.scope, {self.route.header: model.encode("latin-1", "replace")})
        elif self.members is not None:
            self.write(json_edit.join({**self.members, "model": json_edit.dump(model)}))

    def rewrite(self) -> None:
        """Takes the members as they are now for the body; every other byte stays."""
        self.write(json_edit.join(self.members or {}))

    def hand_on(self, after: Receive) -> Receive:
        """A `receive` that gives the body once, and then what `after` says. Nothing of the body is kept here."""
        content, self._content, self.members = self._content, None, None
        return asgi.replay(content or b"", after)

    def _look(self) -> None:
        content = self._content
        assert content is not None
        try:
            self.members = json_edit.whole(content)
        except json_edit.NotAnObject:
            return  # vLLM says what is wrong with it
        if self.route is not None and self.route.header is not None:
            self.model = asgi.text_header(self.scope, self.route.header)
        else:
            self.model = json_edit.text(self.members.get("model"))
