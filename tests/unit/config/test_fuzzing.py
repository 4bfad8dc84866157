"""Generated configurations and messages: each configuration loads or is refused with problems, and none hangs."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from jsonschema import Draft202012Validator

from vllm_lora_router.config import ConfigError, LoadedConfig, load
from vllm_lora_router.config.json_schema import json_schema
from vllm_lora_router.config.methods import configured_methods
from vllm_lora_router.config.redact import redact
from vllm_lora_router.config.served_base import ServedBase, served_base
from vllm_lora_router.config.warnings import config_warnings
from vllm_lora_router.config.yaml_document import read_yaml
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Query

from .fuzzing import Fuzzer

SEED = 20_240
MAX_SECONDS = 1  # of processor time, in the long form


@dataclass
class Summary:
    """Counts of the cases, and the slowest case of each step."""

    valid: int = 0
    routers: int = 0
    messages: int = 0
    slowest: dict[str, tuple[float, bytes]] = field(default_factory=dict)

    def add_time(self, step: str, seconds: float, case: bytes) -> None:
        self.slowest[step] = max(self.slowest.get(step, (0.0, b"")), (seconds, case))


def load_or_none(file: Path, content: bytes) -> tuple[LoadedConfig, ServedBase] | None:
    """Return the configuration, or None if it is refused. Each problem must be one line that begins with the place."""
    try:
        loaded = load(file, content=content)
        base = served_base(loaded)
        for warning in config_warnings(loaded, base):
            assert warning.text
        redact(loaded.config)
    except ConfigError as error:
        assert error.problems
        assert all(line.startswith(f"{file}:") for line in str(error).split("\n")), str(error)
        assert all(len(line) < 2000 for line in str(error).split("\n")), str(error)
        return None
    return loaded, base


async def route(router: Router, texts: list[str], summary: Summary) -> None:
    for text in texts:
        began = time.process_time()
        plan = await router.plan([Query(text)])
        summary.add_time("message", time.process_time() - began, text[:200].encode("utf-8", "surrogatepass"))
        assert plan.candidates
        summary.messages += 1


def test_generated_configurations_are_loaded_or_refused(tmp_path: Path, full: bool) -> None:
    fuzzer = Fuzzer(Random(SEED))
    cases = 100_000 if full else 500
    summary = Summary()
    file = tmp_path / "config.yaml"
    validator = Draft202012Validator(json_schema())
    routers: list[Router] = []
    for _ in range(cases):
        content = fuzzer.configuration()
        began = time.process_time()
        try:
            result = load_or_none(file, content)
        except Exception as error:
            error.add_note(f"configuration: {content!r}")
            raise
        summary.add_time("load", time.process_time() - began, content)
        if result is None:
            continue
        summary.valid += 1
        loaded, base = result
        if summary.valid % 20 == 0:
            assert validator.is_valid(read_yaml(file, content).data), content
        if not {method for method, configured in configured_methods(loaded.config).items() if configured} - {"keyword"}:
            began = time.process_time()
            router = Router.build(loaded, base)
            summary.add_time("build", time.process_time() - began, content)
            summary.routers += 1
            if len(routers) < cases // 30:
                routers.append(router)
    for router in routers:
        texts = [fuzzer.message() for _ in range(3)]
        try:
            asyncio.run(route(router, texts, summary))
        except Exception as error:
            error.add_note(f"configuration: {router.loaded.config!r:.2000}, texts: {texts!r:.2000}")
            raise
    print(f"\n{cases:,} configurations: {summary.valid:,} valid, {summary.routers:,} routers")
    print(f"{summary.messages:,} messages")
    for step, (seconds, case) in summary.slowest.items():
        print(f"slowest {step}: {seconds * 1000:.1f} ms: {case[:300]!r}")
    assert summary.valid > cases / 10 and summary.routers > cases / 20 and summary.messages > cases / 20
    if full:
        assert max(seconds for seconds, _ in summary.slowest.values()) < MAX_SECONDS
