"""The decision lines in a server's log. The server writes them shortly after the response."""

import time

from vllm_lora_router.tools.demo.server import Server


def decision_lines(server: Server, answer_id: str, hang_guard_s: float = 60) -> list[str]:
    """Return the log lines of a decision by the id of its answer, as soon as there is one."""
    deadline = time.monotonic() + hang_guard_s
    while True:
        lines = [line for line in server.log.read_text().splitlines() if " -> " in line and answer_id in line]
        if lines or time.monotonic() > deadline:
            return lines
        time.sleep(0.02)
