"""What a server's log says, which it writes a little after the answer."""

import time

from vllm_lora_router.tools.demo.server import Server


def decision_lines(server: Server, answer_id: str, seconds: float = 10) -> list[str]:
    """The lines of a decision by the id of its answer, once there is one."""
    until = time.monotonic() + seconds
    while True:
        lines = [line for line in server.log.read_text().splitlines() if " -> " in line and answer_id in line]
        if lines or time.monotonic() > until:
            return lines
        time.sleep(0.02)
