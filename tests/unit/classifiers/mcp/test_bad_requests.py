"""A request with any characters, and a call that cannot be sent, harm no other request."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.classifiers.mcp.answers import read_answer
from vllm_lora_router.classifiers.mcp.arguments import encodable
from vllm_lora_router.classifiers.mcp.server import InvalidCallError
from vllm_lora_router.types import Client

if TYPE_CHECKING:
    from .conftest import ToolRouter

HALF = "half \ud83d"
# One character of each kind that a JSON writer, a line reader or an HTTP header treats in a special way.
CHARACTERS = [
    *'a"\\/ \x00\x01\t\n\r\x0b\x0c\x1b\x7f\x80\x85\xa0é\u0301\u200b\u2028\u2029\u202e\ufeff\ufffe\uffff\U0001f600',
    "\U0010ffff",
    "\ud800",
    "\udbff",
    "\udc00",
    "\udfff",
    "\ud83d\ude00",
]


def random_text(generator: random.Random) -> str:
    return "".join(generator.choices(CHARACTERS, k=generator.randrange(12)))


def random_json(generator: random.Random, depth: int = 3) -> Any:
    kind = generator.randrange(7 if depth else 5)
    if kind == 5:
        return [random_json(generator, depth - 1) for _ in range(generator.randrange(4))]
    if kind == 6:
        return {random_text(generator): random_json(generator, depth - 1) for _ in range(generator.randrange(4))}
    scalars: list[Any] = [random_text(generator), generator.randrange(-(2**70), 2**70), generator.random() * 1e300]
    return [*scalars, generator.choice([True, False, None]), random_text(generator)][kind]


async def echo(router: ToolRouter, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call the tool with these arguments and return those that it received."""
    known = router.router.classifiers.cascade.classifiers[0]._known  # pyright: ignore

    def read(info: Any, content: Any) -> dict[str, Any]:
        answer, _ = read_answer(content, known, info.category_names)
        return json.loads(answer.system_prompt or "")

    return await router.tool.session.call(lambda info: encodable(arguments), read)


async def test_half_an_emoji_in_any_field_disturbs_no_call(each_router: ToolRouter) -> None:
    info = each_router.tool.session.info
    running = asyncio.ensure_future(each_router.plan("slow 0.5"))
    await asyncio.sleep(0.1)
    for client in (Client(user=HALF), Client(tenant=HALF), Client(headers={"x-region": HALF, HALF: "eu"})):
        plans = await asyncio.gather(*(each_router.plan("hello", client=client, model=HALF) for _ in range(6)))
        assert {plan.reason for plan in plans} == {"routed"}
    assert (await running).reason == "routed"
    assert each_router.tool.breaker.times_opened == 0 and each_router.tool.breaker.failures == 0
    assert each_router.tool.session.info is info  # the connection was never replaced


async def test_every_kind_of_character_reaches_the_tool(each_router: ToolRouter, full: bool) -> None:
    generator = random.Random(7)
    info = each_router.tool.session.info
    for _ in range(2_000 if full else 60):
        arguments = {
            "text": "echo " + random_text(generator),
            **{name: random_text(generator) for name in ("tenant", "user", "model")},
            "headers": {random_text(generator): random_text(generator) for _ in range(generator.randrange(4))},
        }
        received = await echo(each_router, arguments)
        received.pop("with_probabilities", None)
        assert received == encodable(arguments)
    assert each_router.tool.session.info is info


def test_every_json_value_becomes_encodable(full: bool) -> None:
    generator = random.Random(11)
    for _ in range(100_000 if full else 1_000):
        value = random_json(generator)
        clean = encodable(value)
        assert json.loads(json.dumps(clean, ensure_ascii=False, allow_nan=False).encode()) == clean


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes", {1: "key"}, [set[str]()]])
def test_a_value_that_is_not_json_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encodable({"headers": value})


async def test_a_call_that_cannot_be_encoded_fails_alone(
    each_router: ToolRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = each_router.tool.session.info
    running = asyncio.ensure_future(each_router.plan("slow 0.5"))
    await asyncio.sleep(0.1)
    with pytest.raises(InvalidCallError, match="the call cannot be encoded: TypeError: object is not a JSON type"):
        await echo(each_router, {"text": "hello", "user": object()})
    with monkeypatch.context() as patch:
        patch.setattr("vllm_lora_router.classifiers.mcp.classifier.arguments", lambda query, tool: encodable({1: 2}))
        for _ in range(6):
            plan = await each_router.plan("hello")
            assert plan.reason == "error" and "cannot be encoded" in (plan.steps[-1].error or "")
    assert (await running).reason == "routed"
    assert each_router.tool.breaker.failures == 0 and each_router.tool.session.info is info
