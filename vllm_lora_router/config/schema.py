"""What config.yaml may say: the guide's keys and ours, with their defaults."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from vllm_lora_router.types import Method

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Threshold = Annotated[float, Field(ge=0, le=1)]
ExampleText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16384)]
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
HeaderName = Annotated[str, StringConstraints(pattern=f"^{_TOKEN}$")]
_HEADER = f"header:{_TOKEN}"
Header = Annotated[str, StringConstraints(pattern=f"^{_HEADER}$")]
# What a client proves with who it is.
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
# Where something stands that stays the same for the same user.
KeyPlace = Annotated[
    str,
    StringConstraints(pattern=rf"^(safety_identifier|metadata\.user_id|user|conversation|{_HEADER})$"),
]
# Where a request names the user whom it is for, in whichever API.
USER_PLACES = ("safety_identifier", "metadata.user_id", "user", "header:x-user")
# YAML takes a bare `off` for false.
_Off = BeforeValidator(lambda value: "off" if value is False else value)
# What runs a model. ONNX Runtime runs on the CPU alone, and exports the model when it is first used.
Runtime = Literal["torch", "onnx", "onnx-int8"]
# What vLLM takes as `reasoning_effort` of a chat completion.
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Block(BaseModel):
    """Unknown keys, wrong types and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class CategoryModel(Block):
    """`classifier.category_model`: a sequence classifier whose labels stand for categories."""

    model_id: str = ""  # a folder or a hub id; empty: no domain model
    category_mapping_path: str | None = None
    threshold: Threshold = 0.6
    fallback_category: str | None = None  # takes what no method is sure of
    use_cpu: bool = False
    use_modernbert: bool = False  # accepted: the model's own config.json says what it is
    device: str = "auto"
    runtime: Runtime = "torch"
    threads: int = Field(default=1, ge=1)  # on a CPU; the engine needs the other cores
    max_tokens: int | None = Field(default=None, ge=8)


class EmbeddingModel(Block):
    """`classifier.embedding_model`: the sentence encoder of embedding rules, heads and labels mapped by meaning."""

    model_id: Name = "sentence-transformers/all-MiniLM-L6-v2"
    # A folder that `fit` wrote. auto: fitted at start from examples and descriptions; unset: where there are examples,
    # or where nothing else says how to tell the categories apart.
    head: Annotated[Name | None, _Off] = None
    threshold: Threshold | None = None  # of a category's probability by the head; unset: what `fit` chose, or 0.5
    thresholds: dict[Name, Threshold] = {}  # the same for some of the categories
    device: str = "auto"
    runtime: Runtime = "torch"
    threads: int = Field(default=1, ge=1)  # on a CPU; the engine needs the other cores
    max_tokens: int | None = Field(default=None, ge=8)


class McpCategoryModel(Block):
    """`classifier.mcp_category_model`: a tool of yours that says which category, and which adapter."""

    enabled: bool = False
    transport_type: Literal["stdio", "streamable-http", "http"] = "stdio"  # http: a POST for each call, no session
    command: Name | None = None  # of stdio; `python` is the interpreter that runs the server
    args: list[str] = []
    env: dict[Name, str] = {}  # added to the few variables that the tool's process inherits
    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$")] | None = None
    headers_env: dict[HeaderName, Name] = {}  # a header of every call -> the environment variable with its value
    tool_name: Name | None = None  # unset: it is found by its name or by what it takes
    threshold: Threshold = 0.6
    timeout_seconds: float = Field(default=2, gt=0, le=60)  # beside router.deadline_ms
    forward_headers: list[HeaderName] = []  # of the client's request
    allow_secrets: bool = False

    @field_validator("forward_headers")
    @classmethod
    def _in_lower_case(cls, names: list[str]) -> list[str]:
        return [name.lower() for name in names]

    @model_validator(mode="after")
    def _can_be_asked(self) -> "McpCategoryModel":
        secrets = [name for name in self.forward_headers if name in SECRET_HEADERS]
        if secrets and not self.allow_secrets:
            raise ValueError(
                f"forward_headers would hand the client's {', '.join(secrets)} to the tool; take it out, or say "
                "`allow_secrets: true`"
            )
        if self.enabled and self.transport_type == "stdio" and self.command is None:
            raise ValueError("transport_type is stdio, which needs `command`: what starts the tool")
        if self.enabled and self.transport_type != "stdio" and self.url is None:
            raise ValueError(f"transport_type is {self.transport_type}, which needs `url`: where the tool answers")
        return self


class Classifier(Block):
    category_model: CategoryModel = CategoryModel()
    embedding_model: EmbeddingModel = EmbeddingModel()
    mcp_category_model: McpCategoryModel = McpCategoryModel()

    @field_validator("mcp_category_model", mode="before")
    @classmethod
    def _nothing(cls, block: object) -> object:
        return {} if block is None else block


class KeywordRule(Block):
    category: Name
    operator: Literal["AND", "OR", "NOR"] = "OR"
    keywords: list[Name] = Field(min_length=1)
    case_sensitive: bool = False


class EmbeddingRule(Block):
    category: Name
    threshold: Threshold = 0.6
    keywords: list[Name] = []
    candidates: list[Name] = []
    aggregation_method: Literal["mean", "avg", "max", "any"] = "max"

    @property
    def examples(self) -> list[str]:
        return [*self.keywords, *self.candidates]

    @model_validator(mode="after")
    def _has_examples(self) -> "EmbeddingRule":
        if not self.examples:
            raise ValueError("needs `candidates` (or `keywords`): texts that the rule's category is like")
        return self


class Lora(Block):
    name: Name
    description: str = ""
    path: str | None = None  # may stand on the command line instead: --lora-modules name=path


class Base(Block):
    """A key of `model_config`: a base model and the adapters made for it."""

    reasoning_family: str | None = None
    loras: list[Lora] = []


class ReasoningFamily(Block):
    type: Literal["chat_template_kwargs", "reasoning_effort"]
    parameter: Name


class ModelScore(Block):
    """An entry of `categories[].model_scores`; without `lora_name` it is the base."""

    model: Name
    lora_name: Name | None = None
    score: float = Field(default=1.0, ge=0)
    use_reasoning: bool | None = None  # unset: nothing is written, the model's own default stays
    reasoning_effort: Effort | None = None


class Category(Block):
    name: Name
    description: str = ""
    examples: list[ExampleText] = []  # what people ask that is of this category
    mmlu_categories: list[Name] = []  # labels of the domain model that mean this category
    methods: list[Method] | None = None  # which may choose it; all when unset
    system_prompt: str | None = None
    system_prompt_enabled: bool = True
    system_prompt_mode: Literal["insert", "replace"] = "insert"
    selection: Literal["highest", "weighted"] = "highest"  # weighted: an A/B test, `score` is each arm's weight
    model_scores: list[ModelScore] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_weights(self) -> "Category":
        if self.selection == "weighted" and not any(entry.score for entry in self.model_scores):
            raise ValueError("selection is weighted, and no entry of model_scores has a score above 0")
        return self

    def may_be_chosen_by(self, method: Method) -> bool:
        return self.methods is None or method in self.methods


class Text(Block):
    """`router.text`: which words of a request are classified."""

    drop: list[str] = []  # regular expressions for boilerplate that is not the user's question
    max_tokens: int = Field(default=512, ge=8)
    windows: int = Field(default=2, ge=1, le=16)

    @field_validator("drop")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns


class Affinity(Block):
    """`router.affinity`: a conversation stays with what it is about."""

    enabled: bool = True
    margin: Threshold = 0.15  # by how much a later turn must speak more for another category
    turns: int = Field(default=8, ge=2, le=64)  # of the user that are classified at once: the first, and the last ones


class AbTests(Block):
    """`router.ab`: who is the same user to an A/B test, and to `share`."""

    key: list[KeyPlace] = Field(default=[*USER_PLACES, "conversation"], min_length=1)
    salt: str = ""  # a secret that all replicas share; another one draws everything anew


class Audit(Block):
    """`router.audit`: a record of every decision, a line of JSON each."""

    path: Name | None = None  # a folder; unset: no record
    text: Literal["full", "hmac", "none"] = "hmac"
    scope: Literal["routed", "all"] = "routed"  # all: what was not routed, too
    rotate_mb: float = Field(default=100, gt=0)
    rotate_hours: float = Field(default=24, gt=0)


class AdapterSource(Block):
    """An entry of `router.adapters.sources` that says more than a path."""

    path: Name  # a folder of adapters, or a template with {name} and {tenant}
    immutable: bool = False  # what lies there never changes: the engine reads it in place, and nobody watches it


class Adapters(Block):
    """`router.adapters`: adapters that come, go and change while the server runs."""

    sources: list[AdapterSource] = []
    snapshot: Annotated[Literal["auto", "off"], _Off] = "auto"  # off: the engine reads every adapter where it lies
    client_may_name: Literal["all", "own", "none"] = "all"
    max_loads_per_s: float = Field(default=4, ge=0)  # 0: no limit
    max_wait_ms: float = Field(default=2000, gt=0)
    max_disk_gb: float | None = Field(default=None, gt=0)  # unset: half of what is free when the server starts
    run_dir: str | None = None  # unset: a folder of its own under the system's temporary folder

    @field_validator("sources", mode="before")
    @classmethod
    def _paths_alone(cls, sources: object) -> object:
        return (
            [{"path": one} if isinstance(one, str) else one for one in sources]
            if isinstance(sources, list)
            else sources
        )


class RouterSettings(Block):
    """`router`: everything that is ours."""

    mode: Annotated[Literal["route", "observe", "off"], _Off] = "route"  # observe: decide, say so, and apply nothing
    share: float = Field(default=1, ge=0, le=1)  # of the users; the others take default_model
    methods: list[Method] = ["keyword", "embedding", "domain", "mcp"]
    deadline_ms: float | None = Field(default=None, gt=0)  # None: by what the models take (classifiers/deadline.py)
    on_error: Literal["serve", "reject"] = "serve"
    route_base_model: bool = False
    text: Text = Text()
    affinity: Affinity = Affinity()
    ab: AbTests = AbTests()
    audit: Audit = Audit()
    log: Annotated[Literal["decisions", "off"], _Off] = "decisions"
    tenant: Header | None = "header:x-tenant"
    tenant_cache: Literal["shared", "isolated"] = "shared"  # isolated: each has a prefix cache of its own in vLLM
    adapters: Adapters = Adapters()
    admin_key_env: Name | None = (
        None  # the environment variable with the key of the admin routes; unset: they answer 403
    )

    @field_validator("methods")
    @classmethod
    def _once_each(cls, methods: list[Method]) -> list[Method]:
        if len(set(methods)) < len(methods):
            raise ValueError("names a method twice")
        return methods


class Config(Block):
    """A whole config.yaml."""

    classifier: Classifier = Classifier()
    keyword_rules: list[KeywordRule] = []
    embedding_rules: list[EmbeddingRule] = []
    # Pydantic keeps the name `model_config` for itself.
    bases: dict[Name, Base] = Field(alias="model_config", min_length=1)
    reasoning_families: dict[Name, ReasoningFamily] = {}
    categories: list[Category] = Field(min_length=1)
    default_model: Name
    auto_model_name: Name = "MoM"
    default_reasoning_effort: Effort = "medium"
    router: RouterSettings = RouterSettings()

    @field_validator("bases", mode="before")
    @classmethod
    def _empty_base(cls, bases: object) -> object:
        """A base with nothing under it, whose adapters the command line declares."""
        return (
            {name: {} if base is None else base for name, base in bases.items()} if isinstance(bases, dict) else bases
        )

    @property
    def auto_names(self) -> frozenset[str]:
        """The values of `model` that ask us to choose."""
        return frozenset({self.auto_model_name, "auto"})
