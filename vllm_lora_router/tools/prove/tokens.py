"""Tokenization of a prompt with its answer, and the position at which the answer begins."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from vllm_lora_router.tools.prove.endpoint import Endpoint, ServerError, TokenizedPrompt
from vllm_lora_router.tools.prove.pairs import Pair

# At least one of these answers begins with another character than the pair's own answer.
_OTHER_ANSWERS = ("1", "a")


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """The tokens of a prompt and its answer."""

    ids: tuple[int, ...]
    answer_start: int  # index of the answer's first token
    max_model_len: int  # tokens

    @property
    def answer_tokens(self) -> int:
        """The number of the answer's tokens."""
        return len(self.ids) - self.answer_start


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """A way to render a pair as tokens."""

    tokenize: Callable[[Endpoint, str, Pair], Awaitable[TokenizedPair]]
    note: str = ""  # how it differs from routed requests; empty: it does not differ


async def choose_format(endpoint: Endpoint, model: str, pair: Pair, system_prompt: str | None) -> PromptFormat:
    """Return the first format that the server accepts for a pair: that of routed requests, else the closest one.

    Raises:
        ServerError: The server accepts no format. The error is that of the first format.
    """
    first_error: ServerError | None = None
    for prompt_format in _formats(system_prompt):
        try:
            await prompt_format.tokenize(endpoint, model, pair)
        except ServerError as error:
            if error.status != 400:
                raise
            first_error = first_error or error
        else:
            return prompt_format
    assert first_error is not None
    raise ServerError(f"{pair.location}: {first_error}", first_error.status)


def _formats(system_prompt: str | None) -> Iterator[PromptFormat]:
    yield PromptFormat(lambda endpoint, model, pair: _in_chat(endpoint, model, pair, system_prompt))
    if system_prompt is not None:
        note = "scored without the category's system prompt, which the chat template does not support"
        yield PromptFormat(lambda endpoint, model, pair: _in_chat(endpoint, model, pair, None), note)
    note = "answers follow the generation prompt, because the chat template cannot continue a message"
    yield PromptFormat(_after_chat, note)
    yield PromptFormat(_plain, "answers directly follow their prompts, because the server has no chat template")


async def _in_chat(endpoint: Endpoint, model: str, pair: Pair, system_prompt: str | None) -> TokenizedPair:
    """Tokenize the answer as the assistant's message in the server's chat template.

    The answer begins where its tokens differ from those of another answer. So tokens that a template inserts before
    an answer, such as an empty thought, are not scored.
    """
    prompt = _messages(pair.prompt, system_prompt)

    async def with_answer(answer: str) -> TokenizedPrompt:
        messages = [*prompt, {"role": "assistant", "content": answer}]
        options = {"add_generation_prompt": False, "continue_final_message": True}
        return await endpoint.tokenize(model, {"messages": messages, **options})

    other = next(other for other in _OTHER_ANSWERS if not pair.answer.lstrip().startswith(other))
    tokens, other_tokens = await with_answer(pair.answer), await with_answer(other)
    return TokenizedPair(tokens.ids, _common_prefix(tokens.ids, other_tokens.ids), tokens.max_model_len)


async def _after_chat(endpoint: Endpoint, model: str, pair: Pair) -> TokenizedPair:
    """Append the answer's tokens to the chat with its generation prompt."""
    messages = _messages(pair.prompt, None)
    prompt = await endpoint.tokenize(model, {"messages": messages, "add_generation_prompt": True})
    answer = await endpoint.tokenize(model, {"prompt": pair.answer, "add_special_tokens": False})
    return TokenizedPair((*prompt.ids, *answer.ids), len(prompt.ids), prompt.max_model_len)


async def _plain(endpoint: Endpoint, model: str, pair: Pair) -> TokenizedPair:
    """Tokenize prompt and answer as one text; a token that contains parts of both belongs to the answer."""
    tokens = await endpoint.tokenize(model, {"prompt": pair.prompt + pair.answer})
    prompt = await endpoint.tokenize(model, {"prompt": pair.prompt})
    return TokenizedPair(tokens.ids, _common_prefix(tokens.ids, prompt.ids), tokens.max_model_len)


def _messages(prompt: str, system_prompt: str | None) -> list[dict[str, str]]:
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, {"role": "user", "content": prompt}]


def _common_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Return the length of the common prefix; at least 1, because a server scores no token without a context."""
    pairs = zip(first, second, strict=False)
    shorter = min(len(first), len(second))
    return max(1, next((index for index, (left, right) in enumerate(pairs) if left != right), shorter))
