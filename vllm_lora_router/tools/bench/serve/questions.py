"""Choose the benchmark's questions: their deciding method and adapter are known, and length and mix are set."""

import bisect
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from vllm_lora_router.tools.evaluate.targets import ServerTarget, plan_all

PREFIXES_PER_QUESTION = 8  # numbers tried before each question


@dataclass(frozen=True)
class Question:
    """A text with the router's decision."""

    text: str
    method: str  # the deciding method
    adapter: str  # the selected adapter


@dataclass(frozen=True)
class AdapterMix:
    """The distribution of requested adapters: Zipf's law, the first adapter most often."""

    exponent: float  # 0: uniform

    def __str__(self) -> str:
        return f"Zipf {self.exponent:g}" if self.exponent else "uniform"

    def sampler(self, count: int, chance: random.Random) -> Callable[[], int]:
        """Return a function that draws indices from 0 to `count` - 1."""
        sums = list(itertools.accumulate((index + 1) ** -self.exponent for index in range(count)))
        return lambda: min(bisect.bisect(sums, chance.random() * sums[-1]), count - 1)


class QuestionSampler:
    """Draws questions and prefixes each with a new number, so that no cache contains its result."""

    def __init__(self, questions: Sequence[Question], prompts: Mapping[str, str], mix: AdapterMix, seed: int) -> None:
        """Create a sampler.

        Args:
            questions: the questions.
            prompts: a question's text -> the text to send.
            mix: the distribution of adapters.
            seed: the random seed.
        """
        self._chance = random.Random(seed)
        adapters = sorted({question.adapter for question in questions})
        self._by_adapter = [[question for question in questions if question.adapter == adapter] for adapter in adapters]
        self._draw = mix.sampler(len(adapters), self._chance)
        self._prompts = prompts
        self._numbers = itertools.count(self._chance.randrange(10**6))

    def __call__(self) -> Question:
        return self._chance.choice(self._by_adapter[self._draw()])

    def prompt(self, question: Question) -> str:
        """Return the prompt of a question; prompts are unique and of equal length."""
        return _numbered(next(self._numbers), self._prompts[question.text])


async def routed_questions(url: str, texts: Sequence[str], methods: Sequence[str]) -> list[Question]:
    """Return the texts for which the server selects the same adapter by a given method with every prefixed number.

    Raises:
        TargetError: the server does not answer.
    """
    numbers = random.Random(0).sample(range(10**7), PREFIXES_PER_QUESTION)
    async with ServerTarget(url) as server:
        plans = await plan_all(server, [_numbered(number, text) for text in texts for number in numbers])
    chosen = []
    for index, text in enumerate(texts):
        text_plans = plans[index * PREFIXES_PER_QUESTION : (index + 1) * PREFIXES_PER_QUESTION]
        decisions = {(plan.method, plan.candidates[0].adapter) for plan in text_plans}
        method, adapter = next(iter(decisions))
        if len(decisions) == 1 and method is not None and method in methods and adapter is not None:
            chosen.append(Question(text, method, adapter))
    return chosen


async def lengthened(url: str, texts: Sequence[str], tokens: int) -> dict[str, str]:
    """Return each text repeated until its prompt has at least `tokens` tokens.

    Args:
        url: the server that counts tokens.
        texts: the texts.
        tokens: the minimum length; 0 leaves the texts unchanged.
    """
    repeated = {}
    async with aiohttp.ClientSession(url) as http:

        async def count(text: str) -> int:
            async with http.post("/tokenize", json={"prompt": text}, raise_for_status=True) as response:
                return (await response.json())["count"]

        for text in texts:
            times = math.ceil(tokens / await count(f" {text}")) if tokens else 1
            repeated[text] = " ".join([text] * max(times, 1))
    return repeated


def _numbered(number: int, text: str) -> str:
    return f"{number % 10**7:07d} {text}"
