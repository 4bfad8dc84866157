"""Shutdown of vLLM's API server: SIGTERM and SIGINT drain it, and then stop the server and the engine.

vLLM's own handler stops the engine first. Depending on the engine's step, open streams then end as if they were
complete, or never end and keep the process running.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import threading
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_lora_router.server.state import Serving

# The end of --shutdown-timeout, in which streams end with an error and the engine stops. With several API servers, vLLM
# kills the processes that are left after --shutdown-timeout.
STOP_S = 5

SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger("vllm_lora_router.server")


class ShutdownMiddleware:
    """Drains the server on SIGTERM and SIGINT, and closes the audit record when the last connection has closed."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self.serving = serving
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        # The lifespan begins right after vLLM has installed its handlers.
        self._replace_signal_handlers(scope["app"].state)
        try:
            await self.app(scope, receive, send)
        finally:
            self.serving.recorder.close()

    def _replace_signal_handlers(self, state: Any) -> None:
        """Install our signal handlers.

        Args:
            state: the app's state, in which vLLM stores its arguments, the engine's client and the HTTP server.
        """
        # Requests get their time before the engine is stopped, so the engine needs none for them.
        state.engine_client.vllm_config.shutdown_timeout = STOP_S
        loop = asyncio.get_running_loop()
        # vLLM's main process sends SIGTERM to its API servers. If a terminal or systemd signals all processes of the
        # server, that is the second signal here, although the user has sent one.
        is_child = multiprocessing.parent_process() is not None

        def handle(number: int) -> None:
            if self._task is None:
                self._task = loop.create_task(self._shut_down(state))
            elif number == signal.SIGINT or not is_child:
                self.serving.drain.cut_short()

        for number in SIGNALS:
            loop.add_signal_handler(number, handle, number)

    async def _shut_down(self, state: Any) -> None:
        drain, seconds = self.serving.drain, self._drain_seconds(state.args)
        logger.info("shutdown: new requests are refused; %d in flight get up to %g s", drain.in_flight, seconds)
        try:
            if ended := await drain.run(seconds):
                logger.warning("shutdown: %d requests did not finish and are ended with an error", ended)
        except Exception:
            logger.exception("shutdown: failed to drain the server; stopping it")
        finally:
            state.server.should_exit = True
            # A client that does not read its response would keep the connection open.
            asyncio.get_running_loop().call_later(STOP_S, setattr, state.server, "force_exit", True)

    def _drain_seconds(self, args: Any) -> float:
        if timeout := getattr(args, "shutdown_timeout", 0):
            return max(timeout - STOP_S, 0)
        router = self.serving.router
        return 0 if router is None else router.loaded.config.router.drain_s


def forward_second_signal() -> None:
    """Make a second SIGTERM or SIGINT to this process end the drain of its API-server processes.

    vLLM handles the first one: it sends SIGTERM to the API servers and waits for them. It ignores further signals.
    Call this in the main thread.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def forward() -> None:
        received = 0
        with reader, writer:
            while True:
                received += sum(number in SIGNALS for number in reader.recv(64))
                if received < 2:
                    continue
                for process in multiprocessing.active_children():
                    if process.name.startswith("ApiServer") and process.pid is not None:
                        os.kill(process.pid, signal.SIGINT)

    threading.Thread(target=forward, name="lora-router-signals", daemon=True).start()
