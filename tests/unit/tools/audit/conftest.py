"""Audit lines of real routers with random classifiers, and fixtures that run the commands on them."""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from msgspec.structs import replace

from vllm_lora_router.adapters.runtime.lease import LeaseRefusedError, OtherTenantsAdapterError
from vllm_lora_router.classifiers import OverloadError, UnavailableError
from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.classifiers.model_classifier import ModelClassifier, ScoreColumn, ScoreGroup, Scores
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.cli import main
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.observability.audit_schema import (
    SCHEMA_VERSION,
    AuditLine,
    decision_line,
    feedback_line,
    keep_full_text,
    rfc3339,
)
from vllm_lora_router.routing.ab_assignment import digest
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.leasing import lease_first, routed_target
from vllm_lora_router.types import (
    AppliedEdit,
    Candidate,
    Classification,
    Client,
    Decision,
    Method,
    Overrides,
    Plan,
    Query,
    RequestInfo,
    Scale,
    Step,
)

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]

CATEGORIES = ["medical", "legal", "coding", "travel", "cooking"]
ADAPTERS = [f"{category}-lora" for category in CATEGORIES]
WORDS = ["fever", "lawsuit", "python", "beach", "soup", "why", "so", "commit", "it", "thanks"]
NOON = 1_795_608_000.0  # 2026-11-25T12:00:00Z


class RandomScorer:
    """A scorer with random scores. The same text always gets the same scores."""

    fingerprint = "random"
    runs_on = "test, cpu"
    thread_safe = False

    def __init__(self, method: Method, scale: Scale, columns: Sequence[ScoreColumn], seed: int, *, close: bool) -> None:
        self.method: Method = method
        self.groups = [ScoreGroup(scale, columns)]
        self.worker = Worker("test")
        self._seed = seed
        self._range = (0.55, 0.65) if close else (0.0, 1.0)

    def windows(self, text: str) -> list[str]:
        return [text]

    def score(self, texts: Sequence[str]) -> list[Scores]:
        rows = []
        for text in texts:
            rng = Random(f"{self._seed} {text}")
            rows.append([rng.uniform(*self._range) for _ in self.groups[0].columns])
        return [Scores(np.array(rows, dtype=np.float32), [{"labels": {"health": 0.5}} for _ in texts])]


class FlakyClassifier:
    """A classifier over a scorer that fails for 4 % of the requests."""

    reads = frozenset({"text"})
    fingerprint = "flaky"

    def __init__(self, scorer: RandomScorer, rng: Random) -> None:
        self.method: Method = scorer.method
        self._rng = rng
        self._classifier = ModelClassifier(scorer)

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        if self._rng.random() < 0.04:
            errors = [TimeoutError(), OverloadError("256 texts wait"), RuntimeError("words: of the user")]
            raise self._rng.choice(errors)
        nothing = await self._classifier.classify([Query("")])
        return [self._classifier.decide([query.text])[0] if query.has_text else nothing[0] for query in queries]


class RandomTool:
    """An MCP tool with random answers. The same tenant and text always get the same answer."""

    method: Method = "mcp"
    reads = frozenset({"text", "client"})
    fingerprint = "tool"

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        rng = self._rng
        if rng.random() < 0.04:
            raise rng.choice([TimeoutError("late"), UnavailableError("it is not connected: words")])
        return [self._classification(query) for query in queries]

    def _classification(self, query: Query) -> Classification:
        rng = Random(f"{query.client.tenant} {query.text}")
        category, score = rng.choice([*CATEGORIES, "the tool's own"]), round(rng.random(), 4)
        scores = {category: score, **{name: score / 2 for name in CATEGORIES if name != category}}
        models = {name: rng.choice([0.0, 1.0, 2.5]) for name in rng.sample([*ADAPTERS, "base"], rng.randint(0, 3))}
        overrides = Overrides(
            rng.choice([None, None, *ADAPTERS]), models, system_prompt=rng.choice([None, "Be brief."])
        )
        thresholds = dict.fromkeys(scores, 0.6)
        return Classification(
            category, score, scores, "probability", 0.6, score >= 0.6, {}, thresholds=thresholds, overrides=overrides
        )


class FlakyAdapters:
    """Adapters that fail in 20 % of the leases."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def lease_now(self, name: str, tenant: str | None, *, by_client: bool = False, require_loaded: bool = True) -> Any:
        if self._rng.random() < 0.2:
            return None

        async def acquire_slot() -> None: ...

        version = SimpleNamespace(engine_name=name, digest="c0ffee00")
        return SimpleNamespace(model=name, version=version, acquire_slot=acquire_slot, release=lambda: None)

    async def lease(self, name: str, tenant: str | None, *, by_client: bool = False) -> Any:
        error = OtherTenantsAdapterError(f"{name!r} belongs to another tenant")
        raise self._rng.choice([LeaseRefusedError("its files are gone"), error])


@dataclass
class RandomTraffic:
    """A router with a random configuration, and the audit lines of random requests to it."""

    folder: Path
    seed: int

    @cached_property
    def rng(self) -> Random:
        return Random(self.seed)

    @cached_property
    def router(self) -> Router:
        rng, file = self.rng, self.folder / f"{self.seed}.yaml"
        file.write_text(yaml.safe_dump(self._config()), "utf-8")
        loaded = load(file)
        router = Router.build(loaded, served_base(loaded, ["acme/base"]))
        close = rng.random() < 0.5
        # Scores are anywhere between 0 and 1, or close to each other. In half of the cases few reach their threshold.
        thresholds = rng.choice([[0.6, 0.615, 0.64], [0.648]] if close else [[0.0, 0.4, 0.6, 0.9], [0.97]])
        columns = [ScoreColumn(category, rng.choice(thresholds)) for category in CATEGORIES]
        domain_threshold = rng.choice(thresholds)
        domain_columns = [ScoreColumn(category, domain_threshold) for category in CATEGORIES]
        embedding = RandomScorer("embedding", "similarity", rng.choices(columns, k=6), self.seed, close=close)
        domain = RandomScorer("domain", "probability", domain_columns, self.seed + 1, close=close)
        classifiers = [
            *router.classifiers.cascade.classifiers,
            FlakyClassifier(embedding, rng),
            FlakyClassifier(domain, rng),
        ]
        if rng.random() < 0.3:
            classifiers.append(RandomTool(rng))
        if rng.random() < 0.3:
            rng.shuffle(classifiers)
        return Router(loaded, router.base, Classifiers(Cascade(classifiers, 1000), ()), router)

    def lines(self, count: int) -> list[str]:
        """Return the lines of `count` decisions as JSON."""
        return asyncio.run(self._lines(count))

    async def _lines(self, count: int) -> list[str]:
        numbers = range(1, count + 1)
        return [
            json.dumps({"schema": SCHEMA_VERSION, "run": "r", "seq": seq, **await self._line(seq)}) for seq in numbers
        ]

    async def _line(self, seq: int) -> AuditLine:
        rng, router = self.rng, self.router
        client = self._client()
        queries = [self._query(seq) for _ in range(rng.choice([1] * 9 + [2, 3]))]
        plan = await router.plan(queries, client) if rng.random() > 0.02 else router.fallback("error")
        id = f"chatcmpl-{seq}"
        router.remember(id, queries, client, plan)
        decision = await self._decision(id, plan, client, queries)
        return decision_line(decision, NOON + seq, [query.text for query in queries], keep_full_text)

    async def _decision(self, id: str, plan: Plan, client: Client, queries: Sequence[Query]) -> Decision:
        path, adapter = "/v1/chat/completions", self.rng.choice(ADAPTERS)
        request = RequestInfo(path, "chat", adapter, client.tenant, client.api_key_fingerprint)
        if self.rng.random() < 0.08:
            named = Candidate(adapter, adapter)
            if self.rng.random() < 0.5:
                return Decision(
                    id,
                    plan,
                    named,
                    "observe",
                    AppliedEdit(),
                    1.0,
                    request=request,
                )
            empty = Plan((), "named", None, None, None, (named,), plan.config_version)
            return Decision(
                id,
                empty,
                named,
                "named",
                AppliedEdit(),
                1.0,
                request=request,
            )
        adapters: Any = FlakyAdapters(self.rng)
        selection = await lease_first(routed_target(self.router, plan, client.tenant, path), adapters)
        version = selection.lease.version if selection.lease is not None else None
        return Decision(
            id,
            plan,
            selection.candidate,
            selection.reason,
            AppliedEdit(system_prompt=selection.candidate.system_prompt is not None),
            self.rng.uniform(0.1, 5),
            version=None if version is None else version.engine_name,
            content_digest=None if version is None else version.digest,
            skipped=selection.skipped,
            request=RequestInfo(path, "chat", "MoM", client.tenant, client.api_key_fingerprint, len(queries)),
        )

    def _query(self, seq: int) -> Query:
        rng = self.rng
        turns = tuple(self._text() for _ in range(rng.choice([1, 1, 2, 4, 9])))
        previous = f"chatcmpl-{seq - rng.randint(1, 20)}" if rng.random() < 0.2 else None
        return Query(turns[-1], turns, previous_response_id=previous)

    def _text(self) -> str:
        if self.rng.random() < 0.04:
            return " "
        # Most texts contain no keyword of the rules.
        words = WORDS if self.rng.random() < 0.3 else WORDS[5:]
        return " ".join(self.rng.choices(words, k=self.rng.randint(1, 3)))

    def _client(self) -> Client:
        rng = self.rng
        ab_keys = {"user": digest("s", f"user {rng.randint(1, 50)}")} if rng.random() < 0.7 else {}
        return Client(rng.choice([None, "acme"]), rng.choice([None, "0a1b2c3d4e5f"]), ab_keys)

    def _config(self) -> AuditLine:
        rng = self.rng
        fallback = {"fallback_category": rng.choice(CATEGORIES)} if rng.random() < 0.4 else {}
        return {
            "model_config": {"base": {"loras": [{"name": name} for name in ADAPTERS]}},
            "default_model": rng.choice(["base", "base", *ADAPTERS]),
            "classifier": {"category_model": fallback},
            "keyword_rules": [
                {"category": category, "keywords": [word]} for category, word in zip(CATEGORIES, WORDS, strict=False)
            ],
            "categories": [self._category(name) for name in CATEGORIES],
            "router": {
                "mode": "off" if rng.random() < 0.05 else "route",
                "share": rng.choice([1, 1, 0.5]),
                "affinity": {
                    "enabled": rng.random() < 0.8,
                    "margin": rng.choice([0, 0.02, 0.15, 0.7]),
                    "turns": rng.choice([2, 3, 8]),
                },
                "ab": {"key": ["user", "conversation"], "salt": "s"},
            },
        }

    def _category(self, name: str) -> AuditLine:
        rng = self.rng
        names = [f"{name}-lora", *rng.choices([*ADAPTERS, None], k=rng.randint(0, 3))]
        entries = [
            {"model": "base", "score": rng.choice([0, 0.3, 1, 3]), **({"lora_name": lora} if lora else {})}
            for lora in names
        ]
        entries[0]["score"] = 1
        return {
            "name": name,
            "system_prompt": "You know all of it.",
            "selection": rng.choice(["highest", "weighted"]),
            "model_scores": entries,
        }


@pytest.fixture(scope="session")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the lines of 10,000 decisions of 50 routers as JSON."""
    folder = tmp_path_factory.mktemp("routers")
    logging.disable(logging.ERROR)  # the classifiers fail on purpose
    try:
        return [line for seed in range(50) for line in RandomTraffic(folder, seed).lines(200)]
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes numbered lines into a file of a record and returns the record's folder."""

    def write_file(name: str, *lines: AuditLine | str, run: str | None = None, first: int = 1) -> Path:
        folder = tmp_path / "record"
        folder.mkdir(exist_ok=True)
        numbered = [
            line
            if isinstance(line, str)
            else json.dumps({"schema": SCHEMA_VERSION, "run": run or name, "seq": seq, **line}) + "\n"
            for seq, line in enumerate(lines, start=first)
        ]
        (folder / f"{name}.jsonl").write_text("".join(numbered), "utf-8")
        return folder

    return write_file


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command and returns its exit status, its stdout and its stderr."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("NO_COLOR", "1")

    def run_command(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run_command


def decision(id: str = "chatcmpl-7", at_s: float = 0.0, text: str = "a fever", **changes: Any) -> AuditLine:
    """Return the line of a request that the domain model routes to medical, with scores of 0.83 and 0.04."""
    classification = Classification(
        "medical",
        0.83,
        {"legal": 0.04, "medical": 0.83},
        "probability",
        0.6,
        True,
        {"labels": {"health": 0.83}},
        thresholds={"legal": 0.6, "medical": 0.6},
    )
    candidates = (Candidate("medical-lora", "medical-lora"), Candidate("base", None))
    plan = Plan((Step("domain", 2.0, classification),), "routed", "medical", 0.83, "domain", candidates, "0a1b2c3d")
    routed = Decision(
        id,
        plan,
        candidates[0],
        "routed",
        AppliedEdit(system_prompt=True, reasoning=False),
        3.0,
        version="medical-lora@1a2b3c4d",
        content_digest="1a2b3c4d5e6f",
        request=RequestInfo("/v1/chat/completions", "chat", "MoM", "acme", "0a1b2c3d4e5f"),
        timings_ms={"plan": 1.0},
        key=id,
    )
    return decision_line(replace(routed, **changes), NOON + at_s, [text], keep_full_text)


def outcome(id: str = "chatcmpl-7", at_s: float = 1.0, **changes: Any) -> AuditLine:
    """Return the line of a complete response."""
    return {
        "type": "outcome",
        "at": at(at_s),
        "id": id,
        "key": id,
        "status": 200,
        "first_byte_ms": 20.0,
        "total_ms": 900.0,
        "finish_reason": "stop",
        "aborted": False,
        "system_prompt": True,
        "reasoning": False,
        **changes,
    }


def feedback(score: float, id: str = "chatcmpl-7", at_s: float = 60.0, comment: str | None = None) -> AuditLine:
    """Return the line of a rating."""
    return feedback_line(id, score, comment, NOON + at_s)


def at(at_s: float) -> str:
    """Format a time `at_s` seconds after noon."""
    return rfc3339(NOON + at_s)


def cells(line: str) -> list[str]:
    """Return the cells of a printed table row."""
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]
