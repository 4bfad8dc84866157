"""The answers of an MCP tool, validated as strictly as a configuration."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from vllm_lora_router.config.adapter_names import invalid_name_reason
from vllm_lora_router.config.names import UNPRINTABLE
from vllm_lora_router.config.schema import Config, Effort, Threshold
from vllm_lora_router.text import printable

MAX_ANSWER_BYTES = 64 * 1024
MAX_LIST_BYTES = 2 * 1024 * 1024  # of the list of categories, including their system prompts
# Of a whole response, including the JSON-RPC envelope and the same answer as text and as structured content.
MAX_RESPONSE_BYTES = MAX_LIST_BYTES * 2
MAX_MODELS = 16
MAX_PROMPT_CHARACTERS = 32_768
MAX_CATEGORIES = 10_000
MAX_NAME_CHARACTERS = 256  # as in a configuration
MAX_KEEP_S = 86_400.0
MAX_EXCERPT_CHARACTERS = 200  # of a tool's text in a log line or an error


class InvalidAnswerError(Exception):
    """An answer of a tool cannot be used.

    The message states the reason. It quotes the tool's text only after its first colon.
    """


def excerpt(text: str) -> str:
    """Return the beginning of a tool's text on one line, for a log line or an error."""
    shown = printable(text[: MAX_EXCERPT_CHARACTERS + 1])
    return shown if len(shown) <= MAX_EXCERPT_CHARACTERS else f"{shown[:MAX_EXCERPT_CHARACTERS]}..."


def _single_line(name: str) -> str:
    if any(unicodedata.category(character) in UNPRINTABLE for character in name):
        raise ValueError("contains a line break or a control character")
    return name


def _printable(text: str) -> str:
    if any(
        unicodedata.category(character) in UNPRINTABLE - {"Zl", "Zp"} for character in text if character not in "\n\r\t"
    ):
        raise ValueError("contains a control character")
    return text


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS), AfterValidator(_single_line)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS), AfterValidator(_printable)]


class _ToolMessage(BaseModel):
    # Fields outside the contract are ignored, because a tool may return more than the router reads.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


T = TypeVar("T", bound=_ToolMessage)


class CachePolicy(_ToolMessage):
    """The `keep` field: for which queries and for how long an answer may be reused."""

    by: Literal["tenant", "text", "nothing"]
    seconds: float = Field(default=0, ge=0, le=MAX_KEEP_S)


class RequestedModel(_ToolMessage):
    """An entry of the `models` field."""

    model: Name
    score: float = Field(ge=0)


class Answer(_ToolMessage):
    """The answer of `classify_text`."""

    class_: Annotated[int, Field(ge=0)] | Name = Field(alias="class")  # an index into the tool's list, or a name
    confidence: Threshold
    probabilities: list[Threshold] | dict[Name, Threshold] | None = None
    model: Name | None = None
    models: list[RequestedModel] = Field(default=[], max_length=MAX_MODELS)
    use_reasoning: bool | None = None
    reasoning_effort: Effort | None = None
    system_prompt: Prompt | None = None
    keep: CachePolicy | None = None


class CategoryList(_ToolMessage):
    """The answer of `list_categories`."""

    categories: list[Name] = Field(min_length=1, max_length=MAX_CATEGORIES)
    category_system_prompts: dict[Name, Prompt] = {}
    category_descriptions: dict[Name, Prompt] = {}  # shown in the evidence of a classification


@dataclass(frozen=True)
class KnownNames:
    """The names that an answer may refer to."""

    categories: Collection[str]  # all categories of the configuration
    excluded_categories: Collection[str]  # categories whose `methods` do not include mcp
    names: Collection[str]  # base models and declared adapters; only these may contain a slash
    auto_names: Collection[str]

    @classmethod
    def from_config(cls, config: Config, served_name: str | None) -> "KnownNames":
        """Return the names of a configuration and the served name of its base model."""
        adapters = (lora.name for base in config.bases.values() for lora in base.loras)
        return cls(
            frozenset(category.name for category in config.categories),
            frozenset(category.name for category in config.categories if not category.may_be_chosen_by("mcp")),
            frozenset([*config.bases, *adapters, *([served_name] if served_name else [])]),
            config.auto_names,
        )


def read_answer(content: str | Mapping[str, Any], known: KnownNames, listed: Sequence[str]) -> tuple[Answer, str]:
    """Validate an answer of `classify_text` and return it with its category.

    Args:
        listed: The tool's own categories, in order.

    Raises:
        InvalidAnswerError: The answer is too long, has an unexpected structure, or refers to unknown names.
    """
    answer = _validate(Answer, _parse_object(content, MAX_ANSWER_BYTES))
    category = answer.class_
    if isinstance(category, int):
        if category >= len(listed):
            raise InvalidAnswerError(f"class is {category}, but the tool lists {len(listed)} categories")
        category = listed[category]
    elif category not in known.categories and category not in listed:
        raise InvalidAnswerError(f"class is not a category of the configuration or of the tool's list: {category!r}")
    if isinstance(answer.probabilities, list) and len(answer.probabilities) != len(listed):
        count = len(answer.probabilities)
        raise InvalidAnswerError(f"probabilities has {count} entries, but the tool lists {len(listed)} categories")
    for name in (answer.model, *(requested.model for requested in answer.models)):
        if name is not None and name not in known.names:
            _check_adapter_name(name, known)
    if len({requested.model for requested in answer.models}) < len(answer.models):
        raise InvalidAnswerError("models names a model twice")
    return answer, category


def read_categories(content: str | Mapping[str, Any]) -> CategoryList:
    """Validate an answer of `list_categories` and return it.

    Raises:
        InvalidAnswerError: The answer is too long or has an unexpected structure.
    """
    category_list = _validate(CategoryList, _parse_object(content, MAX_LIST_BYTES))
    if len(set(category_list.categories)) < len(category_list.categories):
        raise InvalidAnswerError("categories names a category twice")
    return category_list


def _check_adapter_name(name: str, known: KnownNames) -> None:
    problem = invalid_name_reason(name, (), known.auto_names)
    if problem is None and ("/" in name or "\\" in name or name.startswith(".")):
        problem = f"{name!r} is a path, but an adapter must be requested by its name"
    if problem is not None:
        raise InvalidAnswerError(f"model: {problem}")


def _parse_object(content: str | Mapping[str, Any], max_bytes: int) -> Mapping[str, Any]:
    if not isinstance(content, str):
        # The SDK has parsed the answer already. Encoded again, it has the size that the tool sent.
        try:
            content = msgspec.json.encode(content).decode()
        except (RecursionError, UnicodeEncodeError) as error:
            raise InvalidAnswerError(f"it cannot be read: {type(error).__name__}") from None
    if (size := len(content.encode("utf-8", "replace"))) > max_bytes:
        raise InvalidAnswerError(f"it has {size:,} bytes, but at most {max_bytes:,} are allowed")
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise InvalidAnswerError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise InvalidAnswerError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise InvalidAnswerError("it is not a JSON object")
    if "error" in value and "class" not in value and "categories" not in value:
        raise InvalidAnswerError(f"the tool reports an error: {excerpt(str(value['error']))!r}")
    return value


def _validate(kind: type[T], value: Mapping[str, Any]) -> T:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(
            f"{excerpt('.'.join(map(str, detail['loc'])))} {detail['msg'][:1].lower()}{detail['msg'][1:]}"
            for detail in error.errors(include_url=False, include_input=False)[:3]
        )
        raise InvalidAnswerError(f"{problems.replace(':', ',')}") from None
