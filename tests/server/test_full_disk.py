"""The disk of a real vLLM becomes full: requests are served, the reason is visible, and the server recovers."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_lora_router.tools.demo.answers import BASE_ANSWER
from vllm_lora_router.tools.demo.many import ManyAdapters

from .conftest import ADMIN, HANG_GUARD_S, ConfiguredServer
from .test_file_changes import configuration
from .traffic import body


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Use all space of a disk until the end of the block."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
        try:
            yield
        finally:
            os.ftruncate(file.fileno(), 0)
            filler.unlink()


class Client:
    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, headers=ADMIN, timeout=HANG_GUARD_S)

    def chat(self, model: str, text: str = "hello") -> httpx.Response:
        return self._http.post("/v1/chat/completions", json=body(model, text))

    def message(self, model: str) -> httpx.Response:
        content = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]}
        return self._http.post("/v1/messages", json=content)

    def get(self, path: str) -> dict[str, Any]:
        return self._http.get(f"/v1/router/{path}").json()

    def reload(self) -> httpx.Response:
        return self._http.post("/v1/router/reload")

    def adapter(self, name: str) -> dict[str, Any]:
        return next(adapter for adapter in self.get("adapters")["adapters"] if adapter["name"] == name)


def test_full_disk_is_reported_while_requests_are_served_and_recovers(
    four_slots: ConfiguredServer, many: ManyAdapters, tmp_path: Path
) -> None:
    disk = four_slots.file.parent / "disk"
    if not disk.is_mount():
        pytest.skip("this process may not mount file systems")
    assert four_slots.server is not None
    log = four_slots.server.log
    source, client = tmp_path / "adapters", Client(four_slots.url)
    many.write(0, source / "known")
    many.write(1, source / "new")
    four_slots.configure(configuration(source, {"known": "known", "new": "new"}))
    assert client.chat("known").status_code == 200
    log_before = log.read_text()
    with full(disk):
        problem = f"the disk of {disk}/run/"
        for response in (client.chat("new"), client.chat("new")):
            assert response.status_code == 503
            error = response.json()["error"]
            assert error["message"].startswith("adapter 'new' cannot be loaded now: a copy of ")
            assert problem in error["message"] and "is full" in error["message"]
            assert "router.adapters.run_dir" in error["message"] and error["type"] == "ServiceUnavailableError"
        message = client.message("new")
        assert message.status_code == 503 and message.json()["type"] == "error"
        assert problem in message.json()["error"]["message"]
        # A routed request falls back, and adapters that have a copy are served.
        routed = client.chat("MoM", "a new question")
        assert (routed.status_code, routed.headers["x-lora-router-reason"]) == (200, "not_loadable")
        assert routed.json()["choices"][0]["message"]["content"] == BASE_ANSWER
        known = client.chat("known")
        assert known.json()["choices"][0]["message"]["content"].startswith(many.answer(0))
        assert client.chat("no-such-adapter").status_code == 404
        health = client.get("health")["adapters"]
        assert health["unavailable"] == 1 and health["problem"].startswith(problem)
        status = client.adapter("new")
        assert status["state"] == "unavailable" and problem in status["refused"]
        # A reload is refused with the place and the remedy, and changes nothing.
        four_slots.file.write_text(configuration(source, {"known": "new", "new": "known"}))
        reload = client.reload()
        assert reload.status_code == 409 and reload.json()["generation"] == client.get("health")["config"]["generation"]
        (reason,) = reload.json()["problems"]
        assert problem in reason and "router.adapters.run_dir" in reason
        answer = client.chat("MoM", "a known question")
        assert answer.json()["choices"][0]["message"]["content"].startswith(many.answer(0))
        print(json.dumps({"error": error, "message": message.json(), "health": health, "reload": reload.json()}))
    deadline = time.monotonic() + HANG_GUARD_S
    while client.get("health")["adapters"]["unavailable"] and time.monotonic() < deadline:
        time.sleep(0.1)
    answer = client.chat("new")
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"].startswith(many.answer(1))
    assert client.get("health")["adapters"] == {"unavailable": 0, "problem": None}
    lines = log.read_text().removeprefix(log_before).splitlines()
    assert sum("adapter new: cannot be loaded now" in line for line in lines) == 1
    assert sum("adapter new: can be loaded again" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
