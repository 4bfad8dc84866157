"""Records of real routers, over methods that answer at random, and the commands that read them."""

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

from vllm_lora_router.adapters.runtime.lease import AnothersAdapter, NotLeased
from vllm_lora_router.classifiers import Overload, Unavailable
from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.classifiers.model_classifier import Choice, Part, ScoredClassifier, Scores
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.cli import main
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.observability.audit_schema import decision_line, in_full, rfc3339
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.leasing import take
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

Line = dict[str, Any]
Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]

CATEGORIES = ["medical", "legal", "coding", "travel", "cooking"]
ADAPTERS = [f"{category}-lora" for category in CATEGORIES]
WORDS = ["fever", "lawsuit", "python", "beach", "soup", "why", "so", "commit", "it", "thanks"]
NOON = 1_795_608_000.0  # 2026-11-25T12:00:00Z


class Guesses:
    """A model that says of a text what chance gives, and of the same text the same."""

    fingerprint = "guesses"
    runs_on = "test, cpu"

    def __init__(self, method: Method, scale: Scale, choices: Sequence[Choice], seed: int, *, close: bool) -> None:
        self.method: Method = method
        self.parts = [Part(scale, choices)]
        self.worker = Worker("test")
        self._seed = seed
        self._range = (0.55, 0.65) if close else (0.0, 1.0)

    def windows(self, text: str) -> list[str]:
        return [text]

    def score(self, texts: Sequence[str]) -> list[Scores]:
        rows = []
        for text in texts:
            chance = Random(f"{self._seed} {text}")
            rows.append([chance.uniform(*self._range) for _ in self.parts[0].choices])
        return [Scores(np.array(rows, dtype=np.float32), [{"labels": {"health": 0.5}} for _ in texts])]


class Scored:
    """A method over such a model, which fails now and then."""

    reads = frozenset({"text"})
    fingerprint = "scored"

    def __init__(self, scorer: Guesses, chance: Random) -> None:
        self.method: Method = scorer.method
        self._chance = chance
        self._classifier = ScoredClassifier(scorer)

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        if self._chance.random() < 0.04:
            raise self._chance.choice([TimeoutError(), Overload("256 texts wait"), RuntimeError("words: of the user")])
        nothing = await self._classifier.classify([Query("")])
        return [self._classifier.decide([query.text])[0] if query.has_text else nothing[0] for query in queries]


class Tool:
    """A tool that asks for this and that, by the tenant and by what is said."""

    method: Method = "mcp"
    reads = frozenset({"text", "client"})
    fingerprint = "tool"

    def __init__(self, chance: Random) -> None:
        self._chance = chance

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        chance = self._chance
        if chance.random() < 0.04:
            raise chance.choice([TimeoutError("late"), Unavailable("it is not connected: words")])
        return [self._classification(query) for query in queries]

    def _classification(self, query: Query) -> Classification:
        chance = Random(f"{query.client.tenant} {query.text}")
        category, score = chance.choice([*CATEGORIES, "the tool's own"]), round(chance.random(), 4)
        scores = {category: score, **{one: score / 2 for one in CATEGORIES if one != category}}
        models = {
            name: chance.choice([0.0, 1.0, 2.5]) for name in chance.sample([*ADAPTERS, "base"], chance.randint(0, 3))
        }
        wish = Overrides(
            chance.choice([None, None, *ADAPTERS]), models, system_prompt=chance.choice([None, "Be brief."])
        )
        thresholds = dict.fromkeys(scores, 0.6)
        return Classification(
            category, score, scores, "probability", 0.6, score >= 0.6, {}, thresholds=thresholds, overrides=wish
        )


class Shelf:
    """Adapters, of which one or the other cannot be served just now."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance

    def lease_now(self, name: str, tenant: str | None) -> Any:
        if self._chance.random() < 0.2:
            return None

        async def enter() -> None: ...

        version = SimpleNamespace(engine_name=name, digest="c0ffee00")
        return SimpleNamespace(model=name, version=version, enter=enter)

    async def lease(self, name: str, tenant: str | None) -> Any:
        raise self._chance.choice([NotLeased("its files are gone"), AnothersAdapter(f"{name!r} is another tenant's")])


@dataclass
class Traffic:
    """A router of a random configuration, and the lines of what it is asked."""

    folder: Path
    seed: int

    @cached_property
    def chance(self) -> Random:
        return Random(self.seed)

    @cached_property
    def router(self) -> Router:
        chance, file = self.chance, self.folder / f"{self.seed}.yaml"
        file.write_text(yaml.safe_dump(self._config()), "utf-8")
        loaded = load(file)
        router = Router.build(loaded, served_base(loaded, ["acme/base"]))
        close = chance.random() < 0.5
        # Scores are between 0 and 1, or close to each other; in half of the cases hardly any is enough.
        thresholds = chance.choice([[0.6, 0.615, 0.64], [0.648]] if close else [[0.0, 0.4, 0.6, 0.9], [0.97]])
        choices = [Choice(category, chance.choice(thresholds)) for category in CATEGORIES]
        one = chance.choice(thresholds)
        seed = self.seed
        methods = [
            *router.classifiers.cascade.classifiers,
            Scored(Guesses("embedding", "similarity", chance.choices(choices, k=6), seed, close=close), chance),
            Scored(
                Guesses("domain", "probability", [Choice(c, one) for c in CATEGORIES], seed + 1, close=close), chance
            ),
        ]
        if chance.random() < 0.3:
            methods.append(Tool(chance))
        if chance.random() < 0.3:
            chance.shuffle(methods)
        return Router(loaded, router.base, Classifiers(Cascade(methods, 1000), ()), router.conversations)

    def lines(self, count: int) -> list[str]:
        """As many decisions as JSON."""
        return asyncio.run(self._lines(count))

    async def _lines(self, count: int) -> list[str]:
        return [json.dumps({"run": "r", "seq": seq, **await self._line(seq)}) for seq in range(1, count + 1)]

    async def _line(self, seq: int) -> Line:
        chance, router = self.chance, self.router
        caller = self._caller()
        queries = [self._query(seq) for _ in range(chance.choice([1] * 9 + [2, 3]))]
        plan = await router.plan(queries, caller) if chance.random() > 0.02 else router.fallback("error")
        id = f"chatcmpl-{seq}"
        router.remember(id, queries, caller, plan)
        made = await self._decision(id, plan, caller, queries)
        return decision_line(made, NOON + seq, [query.text for query in queries], in_full)

    async def _decision(self, id: str, plan: Plan, caller: Client, queries: Sequence[Query]) -> Decision:
        path, adapter = "/v1/chat/completions", self.chance.choice(ADAPTERS)
        if self.chance.random() < 0.08:
            named = Candidate(adapter, adapter)
            if self.chance.random() < 0.5:
                return Decision(
                    id, plan, named, "observe", AppliedEdit(), 1.0, request=RequestInfo(path, "chat", adapter, caller)
                )
            nothing = Plan((), "named", None, None, None, (named,), plan.config_version)
            return Decision(
                id, nothing, named, "named", AppliedEdit(), 1.0, request=RequestInfo(path, "chat", adapter, caller)
            )
        shelf: Any = Shelf(self.chance)
        taken = await take(self.router, plan, shelf, caller.tenant)
        version = taken.lease.version if taken.lease is not None else None
        return Decision(
            id,
            plan,
            taken.candidate,
            taken.reason,
            AppliedEdit(system_prompt=taken.candidate.system_prompt is not None),
            self.chance.uniform(0.1, 5),
            version=None if version is None else version.engine_name,
            content_digest=None if version is None else version.digest,
            skipped=taken.refused,
            request=RequestInfo(path, "chat", "MoM", caller, len(queries)),
        )

    def _query(self, seq: int) -> Query:
        chance = self.chance
        turns = tuple(self._words() for _ in range(chance.choice([1, 1, 2, 4, 9])))
        previous = f"chatcmpl-{seq - chance.randint(1, 20)}" if chance.random() < 0.2 else None
        return Query(turns[-1], turns, previous_response_id=previous)

    def _words(self) -> str:
        if self.chance.random() < 0.04:
            return " "
        # Few have a word of the rules in them.
        words = WORDS if self.chance.random() < 0.3 else WORDS[5:]
        return " ".join(self.chance.choices(words, k=self.chance.randint(1, 3)))

    def _caller(self) -> Client:
        chance = self.chance
        said = {"user": f"user {chance.randint(1, 50)}"} if chance.random() < 0.7 else {}
        return Client(chance.choice([None, "acme"]), chance.choice([None, "0a1b2c3d4e5f"]), said)

    def _config(self) -> Line:
        chance = self.chance
        fallback = {"fallback_category": chance.choice(CATEGORIES)} if chance.random() < 0.4 else {}
        return {
            "model_config": {"base": {"loras": [{"name": name} for name in ADAPTERS]}},
            "default_model": chance.choice(["base", "base", *ADAPTERS]),
            "classifier": {"category_model": fallback},
            "keyword_rules": [
                {"category": category, "keywords": [word]} for category, word in zip(CATEGORIES, WORDS, strict=False)
            ],
            "categories": [self._category(name) for name in CATEGORIES],
            "router": {
                "mode": "off" if chance.random() < 0.05 else "route",
                "share": chance.choice([1, 1, 0.5]),
                "affinity": {
                    "enabled": chance.random() < 0.8,
                    "margin": chance.choice([0, 0.02, 0.15, 0.7]),
                    "turns": chance.choice([2, 3, 8]),
                },
                "ab": {"key": ["user", "conversation"], "salt": "s"},
            },
        }

    def _category(self, name: str) -> Line:
        chance = self.chance
        names = [f"{name}-lora", *chance.choices([*ADAPTERS, None], k=chance.randint(0, 3))]
        entries = [
            {"model": "base", "score": chance.choice([0, 0.3, 1, 3]), **({"lora_name": lora} if lora else {})}
            for lora in names
        ]
        entries[0]["score"] = 1
        return {
            "name": name,
            "system_prompt": "You know all of it.",
            "selection": chance.choice(["highest", "weighted"]),
            "model_scores": entries,
        }


@pytest.fixture(scope="session")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """10,000 decisions of 50 routers, as JSON."""
    folder = tmp_path_factory.mktemp("routers")
    logging.disable(logging.ERROR)  # that methods fail, as they should
    try:
        return [line for seed in range(50) for line in Traffic(folder, seed).lines(200)]
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes lines into a file of a record, each with its run and number; gives the folder."""

    def write_file(name: str, *lines: Line | str, run: str | None = None, first: int = 1) -> Path:
        folder = tmp_path / "record"
        folder.mkdir(exist_ok=True)
        numbered = [
            line if isinstance(line, str) else json.dumps({"run": run or name, "seq": seq, **line}) + "\n"
            for seq, line in enumerate(lines, start=first)
        ]
        (folder / f"{name}.jsonl").write_text("".join(numbered), "utf-8")
        return folder

    return write_file


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `audit` or `ab`; gives its exit status and what it printed to stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("NO_COLOR", "1")

    def run_command(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


def decision(id: str = "chatcmpl-7", at_s: float = 0.0, text: str = "a fever", **changes: Any) -> Line:
    """The line of a request that a domain model routes to medicine, 0.83 to 0.04."""
    found = Classification(
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
    plan = Plan((Step("domain", 2.0, found),), "routed", "medical", 0.83, "domain", candidates, "0a1b2c3d")
    caller = Client("acme", "0a1b2c3d4e5f")
    made = Decision(
        id,
        plan,
        candidates[0],
        "routed",
        AppliedEdit(system_prompt=True, reasoning=False),
        3.0,
        version="medical-lora@1a2b3c4d",
        content_digest="1a2b3c4d5e6f",
        request=RequestInfo("/v1/chat/completions", "chat", "MoM", caller),
        timings_ms={"plan": 1.0},
    )
    return decision_line(replace(made, **changes), NOON + at_s, [text], in_full)


def outcome(id: str = "chatcmpl-7", at_s: float = 1.0, **changes: Any) -> Line:
    """The line of how its response went: well."""
    return {
        "type": "outcome",
        "at": at(at_s),
        "id": id,
        "status": 200,
        "first_byte_ms": 20.0,
        "total_ms": 900.0,
        "finish": "stop",
        "aborted": False,
        "system_prompt": True,
        "reasoning": False,
        **changes,
    }


def feedback(score: float, id: str = "chatcmpl-7", at_s: float = 60.0, comment: str | None = None) -> Line:
    return {"type": "feedback", "at": at(at_s), "id": id, "score": score, "comment": comment}


def at(at_s: float) -> str:
    """So many seconds after noon."""
    return rfc3339(NOON + at_s)
