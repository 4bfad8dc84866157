"""Pydantic models of the configuration file. A key's docstring is its description in the schema and the reference."""

import unicodedata
from typing import Annotated, Literal
from urllib.parse import urlsplit

import regex
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from vllm_lora_router.config.names import MAX_CHARACTERS, name_problem
from vllm_lora_router.linear_regex import compile_linear
from vllm_lora_router.types import Method


def _check_name(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


def _check_keyword(keyword: str) -> str:
    if _BLANK.fullmatch(unicodedata.normalize("NFKC", keyword)):
        raise ValueError("is blank; remove it, or write the word or phrase that it stands for")
    return keyword


def _check_url(url: str) -> str:
    try:
        has_host = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError as error:
        raise ValueError(f"is not a URL: {error}") from None
    if not has_host:
        raise ValueError("is not a URL: it needs a host, as in http://127.0.0.1:8100/mcp")
    return url


MAX_ITEMS = 10_000  # in a list of categories, rules, adapters or example texts
MAX_KEYWORDS = 250_000  # of one rule
# The name of a category, label, base model or adapter.
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS), AfterValidator(_check_name)]
Phrase = Annotated[str, StringConstraints(min_length=1, max_length=256)]
# Spaces, control, format and other invisible characters, blank Braille, Arabic tatweel, and marks without a letter.
_BLANK = regex.compile(r"[\p{Z}\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2800\u0640\p{M}]+")
Keyword = Annotated[Phrase, AfterValidator(_check_keyword)]
Description = Annotated[str, StringConstraints(max_length=16384)]
PathText = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
# Linux limits an argument or environment variable of a process to 128 KiB.
Argument = Annotated[str, StringConstraints(max_length=32768)]
EnvironmentVariable = Annotated[str, StringConstraints(pattern=r"^[^=\s]+$", max_length=256)]
Threshold = Annotated[float, Field(ge=0, le=1)]
ExampleText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16384)]
DEFAULT_AUTO_NAME, AUTO_NAME = "MoM", "auto"  # values of `model` that request routing
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
HeaderName = Annotated[str, StringConstraints(pattern=f"^{_TOKEN}$", max_length=256)]
_HEADER = f"header:{_TOKEN}"
Header = Annotated[str, StringConstraints(pattern=f"^{_HEADER}$", max_length=256)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=4096), AfterValidator(_check_url)]
# Request headers that carry a client's credentials.
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
# A part of the request that stays the same for the same user.
UserKeySource = Annotated[
    str,
    StringConstraints(pattern=rf"^(safety_identifier|metadata\.user_id|user|conversation|{_HEADER})$", max_length=256),
]
# The parts of a request that identify its user, over all APIs.
USER_KEY_SOURCES = ("safety_identifier", "metadata.user_id", "user", "header:x-user")
# ONNX Runtime runs on the CPU only. It exports the model on first use.
Runtime = Literal["torch", "onnx", "onnx-int8"]
# The values that vLLM accepts as `reasoning_effort` of a chat completion.
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def _off_as_text(value: object) -> object:
    """Return the text `off` for false: YAML 1.1 reads an unquoted `off` as false."""
    return "off" if value is False else value


class Block(BaseModel):
    """A mapping of keys. Unknown keys, wrong types and numbers that are not finite are errors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class CategoryModel(Block):
    """`classifier.category_model`: a sequence classifier with labels that are mapped to categories."""

    model_id: str = Field(default="", max_length=4096, examples=["models/category_classifier_modernbert-base_model"])
    """Folder or hub id of a sequence classifier saved by `transformers` as safetensors. Empty: no domain model."""

    category_mapping_path: str | None = Field(
        default=None,
        max_length=4096,
        examples=["models/category_classifier_modernbert-base_model/category_mapping.json"],
    )
    """JSON file with the labels of the model's outputs under `idx_to_category`. Unset: `category_mapping.json` in the
    model's folder, or `id2label` in its `config.json`."""

    threshold: Threshold = 0.6
    """Minimum probability of a category. The probability of a category is the sum over its labels. Below the threshold
    the next method classifies the request."""

    fallback_category: Name | None = Field(default=None, examples=["general"])
    """Category of the requests that no method accepts, whether the score is below the threshold or a method failed.
    Unset: `default_model` serves them."""

    use_cpu: bool = False
    """Run the domain model on the CPU, whatever `device` is. It then uses the server's own cores. Leave the key out to
    run the model on the GPU."""

    use_modernbert: bool = False
    """Accepted and ignored: the model's own `config.json` names its architecture."""

    device: Phrase = Field(default="auto", examples=["cuda"])
    """Device that runs the model, such as `cpu` or `cuda`. `auto`: the GPU that serves the base model where there is
    one (in bfloat16, as CUDA graphs), else the CPU."""

    runtime: Runtime = "torch"
    """Library that runs the model. `onnx` is faster on a CPU, and `onnx-int8` takes about half the time of `onnx`. Both
    run on the CPU only and need `pip install 'vllm-lora-router[onnx]'`. The first start exports the model, which takes
    up to a minute, to `$VLLM_LORA_ROUTER_CACHE` or `~/.cache/vllm-lora-router`; a changed model is exported again."""

    threads: int = Field(default=1, ge=1)
    """Number of CPU threads of the model. The engine needs the other cores; raise the value only if it leaves some
    idle."""

    max_tokens: int | None = Field(default=None, ge=8, examples=[256])
    """Maximum tokens of a text, special tokens included. Unset: the model's own maximum. The lowest of this value, the
    model's own maximum and `router.text.max_tokens` applies."""


class EmbeddingModel(Block):
    """`classifier.embedding_model`: the sentence encoder of embedding rules, heads and label mapping."""

    model_id: PathText = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder or hub id of a sentence encoder, or a folder in model2vec's format (a static encoder). A static encoder
    has one vector per token, classifies texts of up to 512 characters on the event loop, and needs `pip install
    'vllm-lora-router[static]'`; `vllm-lora-router distill` makes one from any encoder."""

    head: Annotated[
        PathText | None, BeforeValidator(_off_as_text, json_schema_input_type=PathText | Literal[False] | None)
    ] = Field(default=None, examples=["head"])
    """Classifier on top of the embedding, which returns the probability of each category and of none. A folder: the
    head that `vllm-lora-router fit` wrote. `auto`: fit a head at start from the categories' examples and descriptions.
    `off`: no head. Unset: like `auto` if a category has examples or if nothing else is configured that can tell the
    categories apart; otherwise no head. Embedding rules take precedence over the head."""

    threshold: Threshold | None = Field(default=None, examples=[0.7])
    """Minimum probability of a category by the head. Unset: the thresholds that `fit` chose, or 0.5 without one."""

    thresholds: dict[Name, Threshold] = Field(default={}, max_length=MAX_ITEMS, examples=[{"legal": 0.8}])
    """Minimum probability by the head for single categories. Overrides `threshold`."""

    device: Phrase = Field(default="auto", examples=["cuda"])
    """Device that runs the encoder, such as `cpu` or `cuda`. `auto`: the GPU that serves the base model where there is
    one (in bfloat16), else the CPU."""

    runtime: Runtime = "torch"
    """Library that runs the encoder. `onnx` is faster on a CPU, and `onnx-int8` takes about half the time of `onnx`.
    Both run on the CPU only and need `pip install 'vllm-lora-router[onnx]'`. The first start exports the model, which
    takes up to a minute, to `$VLLM_LORA_ROUTER_CACHE` or `~/.cache/vllm-lora-router`; a changed model is exported
    again."""

    threads: int = Field(default=1, ge=1)
    """Number of CPU threads of the encoder. The engine needs the other cores; raise the value only if it leaves some
    idle."""

    max_tokens: int | None = Field(default=None, ge=8, examples=[256])
    """Maximum tokens of a text, special tokens included. Unset: the encoder's own maximum. The lowest of this value,
    the encoder's own maximum and `router.text.max_tokens` applies."""


class McpCategoryModel(Block):
    """`classifier.mcp_category_model`: an MCP tool that names the category, the adapter or both."""

    enabled: bool = False
    """Classify with the tool. While it is false, the other keys of this block have no effect."""

    transport_type: Literal["stdio", "streamable-http", "http"] = "stdio"
    """Connection to the tool server. `stdio`: each API-server process starts the tool as a child process and ends it
    when the server ends. `streamable-http`: MCP's own HTTP transport. `http`: a plain `POST {url}/tools/call` for each
    call, without a session, as the tool servers of vllm-project/semantic-router expect."""

    command: PathText | None = Field(default=None, examples=["python"])
    """Program that `stdio` starts, required for `stdio`. `python` is the interpreter that runs the server."""

    args: list[Argument] = Field(default=[], max_length=1000, examples=[["tenants.py", "tenants.db"]])
    """Arguments of `command`. The name of a file in the configuration's folder is replaced by its full path."""

    env: dict[EnvironmentVariable, Argument] = Field(
        default={}, max_length=1000, examples=[{"TABLE": "/srv/tenants.db"}]
    )
    """Environment variables of the tool's process. They are added to the few that it inherits, such as `PATH` and
    `HOME`."""

    url: Url | None = Field(default=None, examples=["http://127.0.0.1:8100/mcp"])
    """Address of the tool server, required for `streamable-http` and `http`."""

    headers_env: dict[HeaderName, EnvironmentVariable] = Field(
        default={}, max_length=100, examples=[{"authorization": "TOOL_TOKEN"}]
    )
    """Headers of every call over HTTP: the name of the header, and the environment variable that holds its value."""

    tool_name: Phrase | None = Field(default=None, examples=["classify_text"])
    """Name of the tool that classifies. Unset: the router finds it by its name or by its parameters."""

    threshold: Threshold = 0.6
    """Minimum confidence of the tool's answer. Below it the next method classifies the request."""

    timeout_seconds: float = Field(default=2, gt=0, le=60)
    """Timeout of one call, in seconds. It applies to the tool instead of `router.deadline_ms`. After five failures in a
    row the router pauses calls for one second, then for up to 30 seconds, until a call succeeds."""

    forward_headers: list[HeaderName] = Field(default=[], max_length=100, examples=[["x-plan"]])
    """Request headers that the tool gets in its parameter `headers`. Case is ignored."""

    allow_secrets: bool = False
    """Allow `forward_headers` to contain headers that carry credentials: `authorization`, `proxy-authorization`,
    `cookie`, `x-api-key` and `api-key`."""

    @field_validator("forward_headers")
    @classmethod
    def _lower_case(cls, names: list[str]) -> list[str]:
        return [name.lower() for name in names]

    @model_validator(mode="after")
    def _check_connection(self) -> "McpCategoryModel":
        secrets = [name for name in self.forward_headers if name in SECRET_HEADERS]
        if secrets and not self.allow_secrets:
            raise ValueError(
                f"forward_headers would send the client's credentials ({', '.join(secrets)}) to the tool; remove them, "
                "or set `allow_secrets: true`"
            )
        if self.enabled and self.transport_type == "stdio" and self.command is None:
            raise ValueError("transport_type is stdio, which needs `command`, the program that starts the tool")
        if self.enabled and self.transport_type != "stdio" and self.url is None:
            raise ValueError(f"transport_type is {self.transport_type}, which needs `url`, the address of the tool")
        return self


class ClassifierSettings(Block):
    """`classifier`: the models and tools that classify requests."""

    category_model: CategoryModel = CategoryModel()
    """The domain model (method `domain`): a sequence classifier with labels that are mapped to categories. A label is
    mapped to the category of the same name, else to the category that lists it in `mmlu_categories`, else to the
    category with the most similar "name: description" (cosine of at least 0.40 by the embedding model), else to the
    category without an adapter, else to `default_model`. `vllm-lora-router validate` prints the mapping, and the
    `mmlu_categories` to paste."""

    embedding_model: EmbeddingModel = EmbeddingModel()
    """The sentence encoder (method `embedding`) of `embedding_rules`, of a head, and of domain labels that are mapped
    by their meaning."""

    mcp_category_model: Annotated[
        McpCategoryModel, BeforeValidator(lambda block: {} if block is None else block, McpCategoryModel | None)
    ] = McpCategoryModel()
    """An MCP tool of your own (method `mcp`) that names the category of a request, the adapter, or both. `null` is the
    same as an empty block."""


class KeywordRule(Block):
    """An entry of `keyword_rules`."""

    category: Name = Field(examples=["legal"])
    """Category of the requests that match the rule. It must be listed under `categories`."""

    operator: Literal["AND", "OR", "NOR"] = "OR"
    """How many keywords must occur for the rule to match. `OR`: at least one. `AND`: all. `NOR`: none. A request
    without text matches no rule."""

    keywords: list[Keyword] = Field(min_length=1, max_length=MAX_KEYWORDS, examples=[["contract", "GDPR"]])
    """Words or phrases. A keyword matches whole words, which end at spaces and punctuation (`law` matches `law's` and
    `by-law`); in scripts without spaces, such as Chinese, Japanese and Thai, it matches as a substring. Typographic
    apostrophes, quotation marks and hyphens equal `'`, `"` and `-`, and soft hyphens, invisible characters, Arabic
    harakat and Hebrew points are ignored; other accents count. A phrase may be broken over lines. All keywords are
    found in one pass over the text, so its length matters and their number does not."""

    case_sensitive: bool = False
    """Whether the case of letters counts."""


class EmbeddingRule(Block):
    """An entry of `embedding_rules`."""

    category: Name = Field(examples=["support"])
    """Category of the requests that reach the rule's threshold. It must be listed under `categories`."""

    threshold: Threshold = 0.6
    """Minimum similarity (cosine) of a request to the rule's examples. A good value depends on the encoder:
    `vllm-lora-router calibrate` chooses it from labelled prompts."""

    keywords: list[Phrase] = Field(default=[], max_length=MAX_ITEMS, examples=[["printer"]])
    """Example texts of the category, like `candidates`. A rule needs at least one text in `candidates` or
    `keywords`."""

    candidates: list[Phrase] = Field(
        default=[], max_length=MAX_ITEMS, examples=[["My printer does not work", "I cannot log in"]]
    )
    """Example texts of the category."""

    aggregation_method: Literal["mean", "avg", "max", "any"] = "max"
    """How the similarities to the examples become one score. `max` and `any`: the most similar example. `mean` and
    `avg`: the mean over all examples."""

    @property
    def examples(self) -> list[str]:
        """All example texts: `keywords`, then `candidates`."""
        return [*self.keywords, *self.candidates]

    @model_validator(mode="after")
    def _check_examples(self) -> "EmbeddingRule":
        if not self.examples:
            raise ValueError("needs `candidates` (or `keywords`): example texts of the category")
        return self


class DeclaredAdapter(Block):
    """An entry of `model_config.<base>.loras`."""

    name: Name = Field(examples=["medical-lora"])
    """Name of the adapter, by which `lora_name` and clients refer to it."""

    description: Description = Field(default="", examples=["Specialized for medical and healthcare domain"])
    """Text for people. `vllm-lora-router validate` prints it; routing does not use it."""

    path: PathText | None = Field(default=None, examples=["/adapters/medical"])
    """Folder of the adapter, or `hf:organization/name`, perhaps followed by `@revision`, to download it from the
    Hugging Face hub at startup and at reload. Unset: the command line (`--lora-modules name=path`) or
    `router.adapters.sources` provides it."""


class BaseModelConfig(Block):
    """A value of `model_config`: a base model and its adapters."""

    reasoning_family: str | None = Field(default=None, max_length=MAX_CHARACTERS, examples=["qwen3"])
    """Name of the reasoning family of the base model, which says how `use_reasoning` and `reasoning_effort` are
    written: `qwen3`, `deepseek`, `gpt-oss`, `gpt`, or a name under `reasoning_families`. For an unknown family, or
    without one, nothing is written about reasoning, and the server logs a warning if a category sets it."""

    loras: list[DeclaredAdapter] = Field(default=[], max_length=MAX_ITEMS)
    """The adapters of the base model."""


class ReasoningFamily(Block):
    """A value of `reasoning_families`."""

    type: Literal["chat_template_kwargs", "reasoning_effort"]
    """How reasoning is written. `chat_template_kwargs`: the chat template has a switch, which is set to the value of
    `use_reasoning`, true or false. `reasoning_effort`: the model always reasons and has efforts; an effort is written
    where `use_reasoning` is true, and nothing where it is false."""

    parameter: Phrase = Field(examples=["enable_thinking"])
    """Name of the switch in `chat_template_kwargs`. Families of type `reasoning_effort` do not use it: each API has its
    own field for the effort."""


class ModelScore(Block):
    """An entry of `categories[].model_scores`."""

    model: Name = Field(examples=["llama-3"])
    """A key of `model_config`. Entries for a base model that this server does not serve are skipped, with a warning."""

    lora_name: Name | None = Field(default=None, examples=["medical-lora"])
    """Adapter that serves the category. It must be declared under `model_config.<base>.loras` or on the command line,
    unless `router.adapters.sources` is set. Unset: the base model itself."""

    score: float = Field(default=1.0, ge=0)
    """Rank of the entry. `selection: highest` tries the highest score first (of equal scores the first listed) and the
    other entries only if it cannot be served. With `selection: weighted` it is the weight of an arm of the A/B test."""

    use_reasoning: bool | None = Field(default=None)
    """Switch reasoning on or off, in the way of the base model's `reasoning_family`. Unset: nothing is written and the
    model's own default applies. Reasoning fields that the client sets take precedence."""

    reasoning_effort: Effort | None = Field(default=None, examples=["high"])
    """Effort that is written where `use_reasoning` is true and the reasoning family has type `reasoning_effort`. Unset:
    `default_reasoning_effort`."""


class Category(Block):
    """An entry of `categories`."""

    name: Name = Field(examples=["medical"])
    """Name of the category, unique in the file. Response headers, logs and the audit record show it."""

    description: Description = Field(default="", examples=["Medical and healthcare questions"])
    """Subject of the requests of the category. A head is fitted from it together with `examples`, and labels of the
    domain model that match no name are mapped by its meaning."""

    examples: list[ExampleText] = Field(
        default=[], max_length=MAX_ITEMS, examples=[["Is ibuprofen safe during pregnancy?"]]
    )
    """Example requests of the category. If a category has examples, a head is fitted from them when the server starts,
    unless `classifier.embedding_model.head` is `off` or a folder. `vllm-lora-router validate --files` reports how well
    the head tells the categories apart."""

    mmlu_categories: list[Name] = Field(default=[], max_length=MAX_ITEMS, examples=[["health", "biology"]])
    """Labels of the domain model that mean this category. A label may belong to one category only."""

    methods: list[Method] | None = Field(default=None, examples=[["keyword", "domain"]])
    """Methods that may choose the category. Unset: all methods."""

    system_prompt: str | None = Field(default=None, max_length=262_144, examples=["You are a medical expert."])
    """System prompt of the category, for APIs that have a place for one. It goes into one message together with the
    client's own, because many chat templates refuse a second system message."""

    system_prompt_enabled: bool = True
    """Whether a system prompt is written. `false` also suppresses the system prompt of an MCP tool."""

    system_prompt_mode: Literal["insert", "replace"] = "insert"
    """Position of the system prompt. `insert`: before the client's own. `replace`: in place of the client's own."""

    selection: Literal["highest", "weighted"] = "highest"
    """How an entry of `model_scores` is chosen. `highest`: by the highest score. `weighted`: an A/B test in which each
    user always gets the same entry, in proportion to `score` (see `router.ab`)."""

    model_scores: list[ModelScore] = Field(min_length=1, max_length=1000)
    """The candidates that serve the category. If no candidate can be served, `default_model` serves the request."""

    @model_validator(mode="after")
    def _check_weights(self) -> "Category":
        if self.selection == "weighted" and not any(entry.score for entry in self.model_scores):
            raise ValueError("selection is weighted, but no entry of model_scores has a score above 0")
        return self

    def may_be_chosen_by(self, method: Method) -> bool:
        """Return whether `methods` allows a method to choose this category."""
        return self.methods is None or method in self.methods


class TextSettings(Block):
    """`router.text`: the part of a request's user text that is classified."""

    drop: list[str] = Field(default=[], max_length=64, examples=[["(?s)<context>.*?</context>"]])
    """Regular expressions in RE2 syntax (https://github.com/google/re2/wiki/Syntax). Their matches are removed from the
    user text before it is classified. Use them for boilerplate that is not the user's question. The request that the
    model gets is not changed. RE2 needs time linear in the text; it has no look-around and no backreferences, and
    `\\w`, `\\d`, `\\s` and `\\b` match ASCII only (`\\p{L}` is any letter). At most 10,000 instructions a pattern, and
    filtering counts towards `deadline_ms`."""

    max_tokens: int = Field(default=512, ge=8)
    """Maximum tokens of one window of the text, special tokens included."""

    windows: int = Field(default=2, ge=1, le=16)
    """Maximum number of windows of a longer text. With two windows, the beginning and the end of the text are read."""

    @field_validator("drop")
    @classmethod
    def _check_patterns(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            compile_linear(pattern)
        return patterns


class AffinitySettings(Block):
    """`router.affinity`: whether a conversation keeps its category."""

    enabled: bool = True
    """Whether a conversation keeps its category. `false`: each turn is classified on its own."""

    margin: Threshold = 0.15
    """Minimum difference by which an accepted category of a later turn must exceed the conversation's category, in the
    scores of that turn. A keyword match gives no score to other categories and therefore always changes the category. A
    good value depends on the encoder; 0.15 was chosen with MiniLM."""

    turns: int = Field(default=8, ge=2, le=64)
    """Maximum number of user turns that are classified together for a conversation that this process has not seen: the
    last turn and the ones before it. More are classified after them, from the latest one backwards, only until one of
    them determines the category. The audit record contains as many turns."""


class AbSettings(Block):
    """`router.ab`: the identity of a user for A/B tests and for `router.share`."""

    key: list[UserKeySource] = Field(default=[*USER_KEY_SOURCES, "conversation"], min_length=1, max_length=100)
    """Parts of a request that identify its user; the first that is present counts. Possible values:
    `safety_identifier`, `metadata.user_id`, `user`, `header:NAME`, and `conversation`, which is the first user turn
    together with the client's API key and tenant. The arm is therefore the same in every turn, process and replica, and
    after a restart, without shared state."""

    salt: str = Field(default="", max_length=4096, examples=["a long random text"])
    """Secret of the hash that draws an arm, and that replaces users' keys in the audit record. It must be the same in
    all replicas. A new salt draws every user again. If it is empty, anyone who knows a user's id can compute its arm
    and find it in the audit record."""


class FeedbackSettings(Block):
    """`router.feedback`: the scale of the scores that users give answers (`POST /v1/router/feedback`)."""

    min: float = Field(default=0, allow_inf_nan=False)
    """Score of the worst answer. Scores below it are refused."""

    max: float = Field(default=1, allow_inf_nan=False, examples=[5])
    """Score of the best answer. Scores above it are refused. All clients must use the same scale, because `audit` and
    `ab` compare means of scores."""

    @model_validator(mode="after")
    def _check_order(self) -> "FeedbackSettings":
        if self.min >= self.max:
            raise ValueError(f"min ({self.min:g}) must be below max ({self.max:g})")
        return self


class AuditSettings(Block):
    """`router.audit`: the audit record."""

    path: PathText | None = Field(default=None, examples=["audit"])
    """Folder of the audit record; a relative path begins at the folder of the configuration file. Unset: no record.
    `vllm-lora-router audit FOLDER` reads it."""

    text: Literal["full", "hmac", "none"] = "hmac"
    """How user text is recorded. `hmac`: as an HMAC with the key in `hmac.key` in the same folder. `full`: the text
    itself. `none`: not at all. Matched keywords and the nearest example come from the configuration and are always
    recorded."""

    scope: Literal["routed", "all"] = "routed"
    """Which requests are recorded. `all` also records requests that are not routed."""

    rotate_mb: float = Field(default=100, gt=0)
    """Size in MiB at which a process begins a new file. No file is ever deleted."""

    rotate_hours: float = Field(default=24, gt=0)
    """Age in hours at which a process begins a new file."""


class AdapterSource(Block):
    """An entry of `router.adapters.sources` with settings of its own."""

    path: PathText = Field(examples=["/store/{name}/current"])
    """Folder that contains a folder for each adapter, or a template with `{name}` and `{tenant}`."""

    immutable: bool = False
    """Whether an adapter's files never change once they exist. If true, the engine reads them in place, without copies,
    and the router does not watch them. If an adapter changes or vanishes nevertheless, an answer may come from both
    contents, or the engine may stop."""


class AdapterSettings(Block):
    """`router.adapters`: adapters that are added, changed and removed while the server runs."""

    sources: Annotated[
        list[AdapterSource],
        BeforeValidator(
            lambda sources: (
                [{"path": source} if isinstance(source, str) else source for source in sources]
                if isinstance(sources, list)
                else sources
            ),
            Annotated[list[AdapterSource | PathText], Field(max_length=100)],
        ),
    ] = Field(default=[], max_length=100, examples=[["/adapters", "/tenants/{tenant}/{name}"]])
    """Places where adapters are found by name: folders such as `/adapters`, or templates such as
    `/tenants/{tenant}/{name}`. A relative path begins at the folder of the configuration file. An adapter under
    `{tenant}` is available to requests of that tenant only, and takes precedence over an adapter of the same name that
    is available to everybody. Changes take effect within about two seconds."""

    snapshot: Annotated[
        Literal["auto", "off"], BeforeValidator(_off_as_text, json_schema_input_type=Literal["auto", "off", False])
    ] = "auto"
    """Whether the engine reads copies of the adapters. `auto`: it reads private copies, which share disk space with the
    originals where the file system supports it (reflink). `off`: it reads every adapter in place; if an adapter changes
    or vanishes during a request, the answer may come from both contents, or the engine may stop. If the file system
    stops answering while the engine reads an adapter, every stream waits until it answers."""

    client_may_name: Literal["all", "own", "none"] = "all"
    """Adapters that a client may request by name. `all`: every adapter. `own`: only those of its own tenant. `none`: no
    adapter."""

    max_loads_per_s: float = Field(default=4, ge=0)
    """Maximum number of adapter loads per second, over all API-server processes. 0: no limit. Every stream pauses while
    vLLM loads an adapter."""

    max_wait_ms: float = Field(default=2000, gt=0)
    """Maximum time in milliseconds that a routed request waits for its adapter to be loaded; after that the next
    candidate serves it. It is also the time after which a request that waits for a slot gets one: the adapter that has
    run longest then gets no new requests until its slot is free."""

    max_disk_gb: float | None = Field(default=None, gt=0, examples=[50])
    """Maximum size of all copies, in GB (10^9 bytes). The copies that were not requested for longest are removed first.
    Unset: room for copies of all declared adapters, and half of the disk space that is free besides when the server
    starts or reloads its configuration. The server does not start if the copies of the declared adapters do not fit."""

    run_dir: PathText | None = Field(default=None, examples=["/var/lib/vllm-lora-router"])
    """Folder of the copies and of the state that API-server processes share. It needs 1 MB and 0.4 MB per process
    besides the copies. Unset: a folder of its own under the system's temporary folder. A change needs a restart."""


class TenantKeySettings(Block):
    """`router.tenants`: which tenant an API key belongs to."""

    keys_env: EnvironmentVariable = Field(examples=["TENANT_KEYS"])
    """Environment variable with a JSON object from API keys to tenants, such as `{"sk-1": "acme", "sk-2": "acme"}`. A
    change needs a restart."""


class RouterSettings(Block):
    """`router`: settings that vllm-project/semantic-router does not have."""

    mode: Annotated[
        Literal["route", "observe", "off"],
        BeforeValidator(_off_as_text, json_schema_input_type=Literal["route", "observe", "off", False]),
    ] = "route"
    """Whether decisions are made and applied. `route`: both. `observe`: requests are classified, and the decision is
    shown in the headers and recorded, but not applied: auto requests get `default_model`, and requests that name a
    model get that model. `off`: nothing is classified; auto requests get `default_model`."""

    share: float = Field(default=1, ge=0, le=1)
    """Share of the users that are routed; the others get `default_model`. The same users are always chosen (see
    `router.ab`), and a larger share includes all users of a smaller one."""

    methods: list[Method] = ["keyword", "embedding", "domain", "mcp"]
    """Methods in the order in which they classify a request; the first accepted result decides. Methods that the
    configuration gives nothing to work with are skipped."""

    deadline_ms: float | None = Field(default=None, gt=0, examples=[100])
    """Maximum time in milliseconds for all methods together; after that `default_model` serves the request. An MCP tool
    has its own `timeout_seconds`. Unset: four times what the models take for a short question on this machine, at least
    50 and at most 1000. `GET /v1/router/config` shows the value in effect."""

    on_error: Literal["serve", "reject"] = "serve"
    """Behaviour when a classifier fails, exceeds the deadline or is overloaded. `serve`: `default_model` serves the
    request. `reject`: the client gets status 503."""

    route_base_model: bool = False
    """Whether requests that name the base model, or no model, are routed too."""

    text: TextSettings = TextSettings()
    """The part of the user text that is classified."""

    affinity: AffinitySettings = AffinitySettings()
    """Whether a conversation keeps its category. It begins with the first category that a method accepts and changes
    only for one that a later turn supports better by `margin`: an adapter change computes the whole prompt again.
    Everything is read from the request's own turns, so replicas agree and nothing is stored."""

    ab: AbSettings = AbSettings()
    """How A/B tests (`selection: weighted`) and `share` recognize the same user."""

    feedback: FeedbackSettings = FeedbackSettings()
    """The scale of the scores that users give answers."""

    audit: AuditSettings = AuditSettings()
    """The audit record: a folder with one line of JSON per decision."""

    log: Annotated[
        Literal["decisions", "off"],
        BeforeValidator(_off_as_text, json_schema_input_type=Literal["decisions", "off", False]),
    ] = "decisions"
    """Log lines about decisions. `decisions`: one INFO line per decision. `off`: none."""

    drain_s: float = Field(default=30, ge=0)
    """Time in seconds that running requests have to finish after SIGTERM or SIGINT; meanwhile new requests get status
    503. Requests that are still running then end with an error. `--shutdown-timeout` takes precedence. A change needs a
    restart."""

    tenant: Header | None = "header:x-tenant"
    """Request header that names the tenant, as `header:NAME`. Your gateway must set it and remove the client's own: the
    router trusts it, unless `tenants` is set. Requests that name several tenants get status 400. `null`: no tenant
    separation."""

    tenants: TenantKeySettings | None = None
    """Which tenant each API key belongs to, so that no client can name another tenant. The header in `tenant` is then
    optional: a request gets status 403 if the header names another tenant than its key's. Requests with other keys have
    no tenant. Needs `router.tenant`. Unset: the header alone decides."""

    guard_open_paths: bool = True
    """Whether the server's API key is also needed on paths that vLLM leaves open: `/tokenize`, `/detokenize`,
    `/generative_scoring`, `/invocations`, `/pooling`, `/classify`, `/score`, `/rerank`, and other open paths if the
    request names an adapter. `false`: requests there need no key; without a valid one they get no system prompt, no
    response headers about the decision and no tenant's adapter. No effect on a server without an API key."""

    tenant_cache: Literal["shared", "isolated"] = "shared"
    """Whether tenants share vLLM's prefix cache. `isolated`: every request that runs a prompt, routed or not, gets a
    `cache_salt` made from its tenant and the client's own salt. Neither timing nor `cached_tokens` then reveals the
    prompts of another tenant. Classification results are not shared between tenants either. Requests without the
    tenant's header count as one tenant. Requests to APIs without a salt (audio, `/v2/embed`, `/cohere/v2/chat`,
    WebSockets, unknown POST routes) get status 400. Needs `router.tenant`."""

    adapters: AdapterSettings = AdapterSettings()
    """Adapters that are added, changed and removed while the server runs."""

    admin_key_env: EnvironmentVariable | None = Field(default=None, examples=["ROUTER_ADMIN_KEY"])
    """Environment variable with the admin key, which clients send in the header `x-lora-router-admin-key`. It opens
    `GET /v1/router/decisions`, `GET /v1/router/adapters` and `POST /v1/router/reload`, which otherwise return status
    403, and the other routes show more with it. Unset or empty: no key is accepted."""

    @field_validator("methods")
    @classmethod
    def _check_methods(cls, methods: list[Method]) -> list[Method]:
        if len(set(methods)) < len(methods):
            raise ValueError("contains a method twice")
        return methods


class Config(Block):
    """The configuration file."""

    classifier: ClassifierSettings = ClassifierSettings()
    """Models and tools that classify requests."""

    keyword_rules: list[KeywordRule] = Field(default=[], max_length=MAX_ITEMS)
    """Rules of the method `keyword`. The first rule in this order that matches decides."""

    embedding_rules: list[EmbeddingRule] = Field(default=[], max_length=MAX_ITEMS)
    """Rules of the method `embedding`. Of the rules that reach their threshold, the one with the highest similarity
    decides."""

    # Pydantic reserves the attribute name `model_config`.
    bases: Annotated[
        dict[Name, BaseModelConfig],
        BeforeValidator(
            lambda bases: (
                {name: {} if base is None else base for name, base in bases.items()}
                if isinstance(bases, dict)
                else bases
            ),
            Annotated[dict[Name, BaseModelConfig | None], Field(min_length=1, max_length=1000)],
        ),
    ] = Field(alias="model_config", min_length=1, max_length=1000)
    """Base models and their adapters. The key is an alias of the model that the server serves. A single key may have
    any name; of several, the server uses the one that equals the served model name or its last path part. `null` is the
    same as an empty block."""

    reasoning_families: dict[Name, ReasoningFamily] = Field(
        default={},
        max_length=1000,
        examples=[{"mine": {"type": "chat_template_kwargs", "parameter": "enable_thinking"}}],
    )
    """How model families switch reasoning. `qwen3`, `deepseek`, `gpt-oss` and `gpt` are built in; an entry of the same
    name replaces the built-in one."""

    categories: list[Category] = Field(min_length=1, max_length=MAX_ITEMS)
    """The categories of requests, and the adapters that serve them."""

    default_model: Name = Field(examples=["llama-3"])
    """Base model or adapter that serves requests that no method accepts, and requests without a candidate that can be
    served."""

    auto_model_name: Name = DEFAULT_AUTO_NAME
    """The `model` of requests that are routed. `auto` is accepted too. It must not be the name of a base model or an
    adapter."""

    default_reasoning_effort: Effort = "medium"
    """Effort of entries with `use_reasoning: true` and no `reasoning_effort`."""

    router: RouterSettings = RouterSettings()
    """Settings that vllm-project/semantic-router does not have."""

    @property
    def auto_names(self) -> frozenset[str]:
        """The values of `model` that request routing."""
        return frozenset({self.auto_model_name, AUTO_NAME})
