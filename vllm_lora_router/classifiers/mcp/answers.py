"""What a tool may say: checked as strictly as a configuration."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from vllm_lora_router.adapters.files.vllm_limits import UNPRINTABLE, refuse_reason
from vllm_lora_router.config.schema import Config, Effort, Threshold

MOST_BYTES = 64 * 1024  # of an answer
MOST_LIST_BYTES = 2 * 1024 * 1024  # of the list of categories, with their system prompts
MOST_MODELS = 16
MOST_PROMPT = 32_768  # characters
MOST_CATEGORIES = 10_000
MOST_NAME = 256  # characters, as in a configuration
LONGEST_KEEP_S = 86_400.0


class BadAnswer(Exception):
    """What a tool said cannot be used; the message says why, and quotes the tool only behind its first colon."""


def _one_line(name: str) -> str:
    if any(unicodedata.category(character) in UNPRINTABLE for character in name):
        raise ValueError("contains a line break or a control character")
    return name


def _readable(text: str) -> str:
    if any(
        unicodedata.category(character) in UNPRINTABLE - {"Zl", "Zp"} for character in text if character not in "\n\r\t"
    ):
        raise ValueError("contains a control character")
    return text


Name = Annotated[str, Field(min_length=1, max_length=MOST_NAME), AfterValidator(_one_line)]
Prompt = Annotated[str, Field(max_length=MOST_PROMPT), AfterValidator(_readable)]


class _Said(BaseModel):
    # What a tool says beside the contract is its own.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


T = TypeVar("T", bound=_Said)


class Keep(_Said):
    """Who may be given an answer again, and for how long."""

    by: Literal["tenant", "text", "nothing"]
    seconds: float = Field(default=0, ge=0, le=LONGEST_KEEP_S)


class WishedModel(_Said):
    model: Name
    score: float = Field(ge=0)


class Answer(_Said):
    """What `classify_text` says."""

    class_: Annotated[int, Field(ge=0)] | Name = Field(alias="class")  # a place in the tool's list, or a name
    confidence: Threshold
    probabilities: list[Threshold] | dict[Name, Threshold] | None = None
    model: Name | None = None
    models: list[WishedModel] = Field(default=[], max_length=MOST_MODELS)
    use_reasoning: bool | None = None
    reasoning_effort: Effort | None = None
    system_prompt: Prompt | None = None
    keep: Keep | None = None


class Categories(_Said):
    """What `list_categories` says."""

    categories: list[Name] = Field(min_length=1, max_length=MOST_CATEGORIES)
    category_system_prompts: dict[Name, Prompt] = {}
    category_descriptions: dict[Name, Prompt] = {}


@dataclass(frozen=True)
class Known:
    """What an answer may speak of."""

    categories: Collection[str]  # of the configuration
    not_by_tool: Collection[str]  # those of them whose `methods` leave mcp out
    names: Collection[str]  # of bases and declared adapters: they alone may have a slash
    auto_names: Collection[str]

    @classmethod
    def of(cls, config: Config, served_name: str | None) -> "Known":
        """What a configuration knows, and what its base is served as."""
        adapters = (lora.name for base in config.bases.values() for lora in base.loras)
        return cls(
            frozenset(category.name for category in config.categories),
            frozenset(category.name for category in config.categories if not category.may_be_chosen_by("mcp")),
            frozenset([*config.bases, *adapters, *([served_name] if served_name else [])]),
            config.auto_names,
        )


def read_answer(content: str | Mapping[str, Any], known: Known, listed: Sequence[str]) -> tuple[Answer, str]:
    """An answer and its category.

    Args:
        listed: the tool's own categories, in their order.

    Raises:
        BadAnswer: it is too long, no answer, or speaks of what nobody knows.
    """
    said = _object(content, MOST_BYTES)
    answer = _checked(Answer, said)
    category = answer.class_
    if isinstance(category, int):
        if category >= len(listed):
            raise BadAnswer(f"class is {category}, and the tool lists {len(listed)} categories")
        category = listed[category]
    elif category not in known.categories and category not in listed:
        raise BadAnswer(f"class is no category of the configuration or of the tool's list: {category!r}")
    if isinstance(answer.probabilities, list) and len(answer.probabilities) != len(listed):
        said_of = f"{len(answer.probabilities)} probabilities are given"
        raise BadAnswer(f"{said_of}, and the tool lists {len(listed)} categories")
    for name in (answer.model, *(one.model for one in answer.models)):
        if name is not None and name not in known.names:
            _check_adapter(name, known)
    if len({one.model for one in answer.models}) < len(answer.models):
        raise BadAnswer("models names one twice")
    return answer, category


def read_categories(content: str | Mapping[str, Any]) -> Categories:
    """The tool's list of categories.

    Raises:
        BadAnswer: it is too long, or no such list.
    """
    found = _checked(Categories, _object(content, MOST_LIST_BYTES))
    if len(set(found.categories)) < len(found.categories):
        raise BadAnswer("categories names one twice")
    return found


def _check_adapter(name: str, known: Known) -> None:
    problem = refuse_reason(name, (), known.auto_names)
    if problem is None and ("/" in name or "\\" in name or name.startswith(".")):
        problem = f"{name!r} is a path, and an adapter is asked for by its name"
    if problem is not None:
        raise BadAnswer(f"model: {problem}")


def _object(content: str | Mapping[str, Any], most_bytes: int) -> Mapping[str, Any]:
    if not isinstance(content, str):
        # What the SDK has parsed: as JSON it is what the tool has sent.
        content = msgspec.json.encode(content).decode()
    if (size := len(content.encode("utf-8", "replace"))) > most_bytes:
        raise BadAnswer(f"it is {size:,} bytes long, and at most {most_bytes:,} are read")
    try:
        said = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise BadAnswer(f"it is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise BadAnswer("it is no JSON object")
    if "error" in said and "class" not in said and "categories" not in said:
        raise BadAnswer(f"the tool reports an error: {str(said['error'])[:200]!r}")
    return said


def _checked(kind: type[T], said: Mapping[str, Any]) -> T:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:3]
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))} {one['msg'][:1].lower()}{one['msg'][1:]}" for one in found)
        raise BadAnswer(f"{wrong.replace(':', ',')}") from None
