"""End the processes of a server after their parent process has died: they would keep the GPU and its memory.

vLLM stops its engine when the API server shuts down, but not when the API server is killed.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time

from vllm_lora_router.server.vllm.plugin_selection import PLUGIN

logger = logging.getLogger("vllm_lora_router.server")

# After SIGTERM, the engine stops if it is idle. An API server ends its drain on SIGINT.
SIGINT_AFTER_S = 0.5
KILL_AFTER_S = 2
POLL_S = 0.5

_thread: threading.Thread | None = None


def load_plugin() -> None:
    """Watch the parent process. vLLM calls this in every process, also in servers that do not use the router."""
    uses_router = PLUGIN in os.environ.get("VLLM_PLUGINS", "").split(",")
    if uses_router and multiprocessing.parent_process() is not None:
        watch_parent()


def watch_parent() -> None:
    """End this process within seconds after its parent process has died. Further calls do nothing.

    Call this only in a process that multiprocessing has started: another one may outlive its parent.
    """
    global _thread
    if _thread is None:
        _thread = threading.Thread(
            target=_end_after, args=(os.getppid(),), name="lora-router-parent-watch", daemon=True
        )
        _thread.start()


def _end_after(parent: int) -> None:
    # PR_SET_PDEATHSIG would also end this process when only the thread that started it ends.
    while os.getppid() == parent and not _was_orphaned_before():
        time.sleep(POLL_S)
    logger.warning("process %d: its parent process %d has died; ending", os.getpid(), parent)
    # SIGALRM has no handler, so the kernel ends the process. A thread would not run any more if the process hangs while
    # it exits.
    signal.alarm(KILL_AFTER_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SIGINT_AFTER_S)
    os.kill(os.getpid(), signal.SIGINT)


def _was_orphaned_before() -> bool:
    """Return whether the parent had died before the watch began."""
    parent = multiprocessing.parent_process()  # None while this process imports its main module
    # With a fork server, the ids always differ.
    return parent is not None and os.getppid() != parent.pid and not parent.is_alive()
