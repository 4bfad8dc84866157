"""What is asked: questions of which it is known who decides them, in the wished length and mix."""

import bisect
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from vllm_lora_router.tools.evaluate.targets import Server, plans

NUMBERS = 8  # that a question is tried with


@dataclass(frozen=True)
class Question:
    """A text, and what the router makes of it."""

    text: str
    method: str  # that decides it
    adapter: str  # where it goes


@dataclass(frozen=True)
class Mix:
    """How often each adapter is asked for: by Zipf's law, the first the most often."""

    exponent: float  # 0: all alike

    def __str__(self) -> str:
        return f"Zipf {self.exponent:g}" if self.exponent else "uniform"

    def draws(self, count: int, chance: random.Random) -> Callable[[], int]:
        """Draws places from 0 to `count` - 1."""
        sums = list(itertools.accumulate((place + 1) ** -self.exponent for place in range(count)))
        return lambda: min(bisect.bisect(sums, chance.random() * sums[-1]), count - 1)


class Asking:
    """Draws questions that one method decides, each with a number before it.

    No answer to it, and nothing that was computed for it, can be taken from a cache then.
    """

    def __init__(self, questions: Sequence[Question], said: Mapping[str, str], mix: Mix, seed: int) -> None:
        """
        Args:
            said: a question's text -> the text that is sent.
        """
        self._chance = random.Random(seed)
        adapters = sorted({question.adapter for question in questions})
        self._by_adapter = [[one for one in questions if one.adapter == adapter] for adapter in adapters]
        self._draw = mix.draws(len(adapters), self._chance)
        self._said = said
        self._numbers = itertools.count(self._chance.randrange(10**6))

    def __call__(self) -> Question:
        return self._chance.choice(self._by_adapter[self._draw()])

    def prompt(self, question: Question) -> str:
        """The question as it is sent, never twice the same and always of one length."""
        return _numbered(next(self._numbers), self._said[question.text])


async def decided(url: str, texts: Sequence[str], methods: Sequence[str]) -> list[Question]:
    """Those of the texts that a method chooses an adapter for whatever number stands before them, as a server says.

    Raises:
        SubjectError: the server does not say.
    """
    numbers = random.Random(0).sample(range(10**7), NUMBERS)
    async with Server(url) as server:
        planned = await plans(server, [_numbered(number, text) for text in texts for number in numbers])
    chosen = []
    for place, text in enumerate(texts):
        own = planned[place * NUMBERS : (place + 1) * NUMBERS]
        found = {(plan.method, plan.candidates[0].adapter) for plan in own}
        method, adapter = next(iter(found))
        if len(found) == 1 and method is not None and method in methods and adapter is not None:
            chosen.append(Question(text, method, adapter))
    return chosen


async def longer(url: str, texts: Sequence[str], tokens: int) -> dict[str, str]:
    """Each text as it is sent: said again and again until a prompt of it has as many tokens as are wished.

    Args:
        url: of the server whose tokens they are.
    """
    found = {}
    async with aiohttp.ClientSession(url) as http:

        async def count(text: str) -> int:
            async with http.post("/tokenize", json={"prompt": text}, raise_for_status=True) as response:
                return (await response.json())["count"]

        for text in texts:
            again = math.ceil(tokens / await count(f" {text}")) if tokens else 1
            found[text] = " ".join([text] * max(again, 1))
    return found


def _numbered(number: int, text: str) -> str:
    return f"{number % 10**7:07d} {text}"
