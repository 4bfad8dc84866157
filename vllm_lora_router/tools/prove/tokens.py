"""The tokens of a prompt with its answer, and which of them are the answer's."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from vllm_lora_router.tools.prove.endpoint import Endpoint, Prompt, ServerError
from vllm_lora_router.tools.prove.pairs import Pair

# Answers to put in the place of a pair's own: one of them begins otherwise.
_OTHERS = ("1", "a")


@dataclass(frozen=True, slots=True)
class Spelled:
    """A pair in tokens."""

    ids: tuple[int, ...]
    before: int  # how many of them stand before the answer
    longest: int  # tokens that the model takes

    @property
    def answer_tokens(self) -> int:
        return len(self.ids) - self.before


@dataclass(frozen=True, slots=True)
class Way:
    """One way to put a pair into tokens, and what is to be said of it."""

    spell: Callable[[Endpoint, str, Pair], Awaitable[Spelled]]
    said: str = ""  # empty: it is as the server answers routed requests


async def way_for(endpoint: Endpoint, model: str, pair: Pair, system_prompt: str | None) -> Way:
    """The first way that the server takes for a pair: as a routed request would be rendered, else as near as it goes.

    Raises:
        ServerError: it takes none; what it said of the first.
    """
    first: ServerError | None = None
    for way in _ways(system_prompt):
        try:
            await way.spell(endpoint, model, pair)
        except ServerError as error:
            if error.status != 400:
                raise
            first = first or error
        else:
            return way
    assert first is not None
    raise ServerError(f"{pair.place}: {first}", first.status)


def _ways(system_prompt: str | None) -> Iterator[Way]:
    yield Way(lambda endpoint, model, pair: _in_chat(endpoint, model, pair, system_prompt))
    if system_prompt is not None:
        without = "asked without the category's system prompt, which the chat template does not take"
        yield Way(lambda endpoint, model, pair: _in_chat(endpoint, model, pair, None), without)
    yield Way(
        _behind_chat, "answers stand where one would be generated, for the chat template takes none to go on with"
    )
    yield Way(_plain, "answers stand right behind their prompts, for the server has no chat template")


async def _in_chat(endpoint: Endpoint, model: str, pair: Pair, system_prompt: str | None) -> Spelled:
    """The answer as the assistant's message, in the server's own chat template.

    Where it begins is found by another answer: until there, both have the same tokens. So what a template puts before
    an answer, such as an empty thought, is not taken for a part of it.
    """
    asked = _messages(pair.prompt, system_prompt)

    async def answered(answer: str) -> Prompt:
        messages = [*asked, {"role": "assistant", "content": answer}]
        going_on = {"add_generation_prompt": False, "continue_final_message": True}
        return await endpoint.tokens(model, {"messages": messages, **going_on})

    other = next(other for other in _OTHERS if not pair.answer.lstrip().startswith(other))
    whole, elsewhere = await answered(pair.answer), await answered(other)
    return Spelled(whole.ids, _same(whole.ids, elsewhere.ids), whole.longest)


async def _behind_chat(endpoint: Endpoint, model: str, pair: Pair) -> Spelled:
    """The answer's own tokens behind those that an answer would be generated from."""
    messages = _messages(pair.prompt, None)
    begun = await endpoint.tokens(model, {"messages": messages, "add_generation_prompt": True})
    answer = await endpoint.tokens(model, {"prompt": pair.answer, "add_special_tokens": False})
    return Spelled((*begun.ids, *answer.ids), len(begun.ids), begun.longest)


async def _plain(endpoint: Endpoint, model: str, pair: Pair) -> Spelled:
    """Prompt and answer as one text: a token that has a part of both is the answer's."""
    whole = await endpoint.tokens(model, {"prompt": pair.prompt + pair.answer})
    prompt = await endpoint.tokens(model, {"prompt": pair.prompt})
    return Spelled(whole.ids, _same(whole.ids, prompt.ids), whole.longest)


def _messages(prompt: str, system_prompt: str | None) -> list[dict[str, str]]:
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, {"role": "user", "content": prompt}]


def _same(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens both begin with; at least the first, of which no server tells a likelihood."""
    pairs = zip(one, other, strict=False)
    return max(1, next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other))))
