"""Frozen values that the modules exchange: queries, classifications, plans, decisions and outcomes.

A request creates about fifteen of these objects. They are msgspec structs because msgspec creates them in C: when the
code of a frozen dataclass is not in the processor's caches, creating one with eleven fields takes four times as long.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

from vllm_lora_router.ids import new_id

Method = Literal["keyword", "embedding", "domain", "mcp"]
Scale = Literal["rule", "similarity", "probability"]
Mode = Literal["insert", "replace"]
# fmt: off
Reason = Literal[
    "routed", "affinity", "below_threshold", "no_text", "error", "timeout", "overload", "mixed",
    "not_loadable", "not_allowed", "observe", "off", "not_in_share", "named",
]
# fmt: on

# Reasons that mean that a classifier failed, not that the request has no category. `router.on_error` applies to them.
FAILURES: frozenset[Reason] = frozenset({"error", "timeout", "overload"})


class Client(Struct, frozen=True):
    """The client of a request, as far as the request identifies it. Every value has a bounded length."""

    tenant: str | None = None
    api_key_fingerprint: str | None = None  # digest of the API key that the client sends
    ab_keys: Mapping[str, str] = field(default_factory=dict)  # entry of `router.ab.key` -> digest of its value
    user: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # those of `mcp_category_model.forward_headers`


ANONYMOUS = Client()


class Query(Struct, frozen=True):
    """The part of one request that a classifier may read."""

    text: str  # the last user message; empty when the request has no readable text
    turns: tuple[str, ...] = ()  # all user messages, oldest first
    api: str = "chat"  # the API shape of the request
    previous_response_id: str | None = (
        None  # the response that this request continues, when the request omits the earlier turns
    )
    client: Client = ANONYMOUS  # the same for all queries of a request
    model: str | None = None  # the `model` of the request
    may_call_tools: bool = True  # whether an MCP tool may be called for this request

    @property
    def has_text(self) -> bool:
        """Return whether there is text to classify. Token ids and images have none."""
        return bool(self.text) and not self.text.isspace()


class RequestInfo(Struct, frozen=True):
    """The part of a request that is recorded. It outlives the request, so it has no user text and no credentials."""

    path: str = ""
    api: str = ""
    model: str | None = None  # the `model` of the request
    tenant: str | None = None
    api_key_fingerprint: str | None = None
    prompts: int = 1


class Overrides(Struct, frozen=True):
    """The settings that an MCP tool returns in addition to a category."""

    model: str | None = None  # an adapter or the base model; tried first
    models: Mapping[str, float] = field(default_factory=dict)  # adapter or base model -> score, as in `model_scores`
    use_reasoning: bool | None = None
    reasoning_effort: str | None = None
    system_prompt: str | None = None


class Classification(Struct, frozen=True):
    """The answer of one method to one query."""

    category: str | None  # the best category, whether or not it is accepted
    score: float  # score of that category, on `scale`
    scores: Mapping[str, float]  # category -> score, rounded as the decision used it
    scale: Scale
    threshold: float  # the score that `category` has to reach
    accepted: bool
    evidence: Mapping[str, object] = field(default_factory=dict)  # matched keywords; nearest example; label -> p
    cached: bool = False  # taken from a cache
    thresholds: Mapping[str, float] = field(default_factory=dict)  # category -> the score that it has to reach
    overrides: Overrides | None = None


class Step(Struct, frozen=True):
    """One method of a cascade: its classification, or the reason why it gave none."""

    method: Method
    duration_ms: float
    classification: Classification | None = None
    failure: Reason | None = None  # error, timeout or overload
    error: str | None = None


class Reasoning(Struct, frozen=True):
    """Reasoning settings in the form that the base model's family expects; each API shape writes them differently."""

    on: bool
    template_kwargs: Mapping[str, bool] = field(default_factory=dict)
    effort: str | None = None  # low, medium, high, ... in vLLM's names


class Candidate(Struct, frozen=True):
    """A model that can serve the request. A plan lists its candidates in the order in which they are tried."""

    model: str  # the name that vLLM knows: an adapter's name or the base model's served name
    adapter: str | None  # None: the base model
    reasoning: Reasoning | None = None  # None: the model's own default applies
    system_prompt: str | None = None
    system_prompt_mode: Mode = "insert"
    source: str = ""  # why the plan contains this candidate
    arm: str | None = None  # its arm in the category's A/B test


class ActiveTopic(Struct, frozen=True):
    """The category of a conversation."""

    category: str
    score: float  # from the last turn that was classified as this category
    method: Method
    overrides: Overrides | None = None  # the overrides of that turn


class Turn(Struct, frozen=True):
    """An earlier turn of the conversation whose classification was accepted."""

    turns_ago: int  # number of turns before the last one
    category: str
    score: float
    method: Method
    active_topic_score: (
        float  # score of the then active topic in the same classification; 0 if the classification does not score it
    )
    overrides: Overrides | None = None


class Affinity(Struct, frozen=True):
    """The topic of the conversation before its last turn, and whether the last turn changed it."""

    category: str
    kept: bool  # whether the topic stayed the same
    alternative: str | None  # the category of the last turn alone; None: no method accepted one
    margin: float
    turns: tuple[Turn, ...]  # oldest first
    earlier_topic: ActiveTopic | None = None  # the topic before the oldest of these turns, if it is known


class Assignment(Struct, frozen=True):
    """The arm of a category's A/B test that one key is assigned to."""

    category: str
    key: str  # digest of a value that stays the same for the same user
    key_source: str  # the entry of `router.ab.key` that the value comes from
    arm: str
    weights: Mapping[str, float]  # arm -> weight


class Share(Struct, frozen=True):
    """Whether a key belongs to the share of keys that are routed."""

    key: str
    key_source: str
    share: float
    position: float  # position of the key between 0 and 1; it is routed if the position is below `share`


class Plan(Struct, frozen=True):
    """The routing result for a request, before any adapter is loaded and before the body is edited."""

    steps: tuple[Step, ...]
    reason: Reason
    category: str | None
    confidence: float | None  # score of the accepted classification; None: no classification was accepted
    method: Method | None  # the method whose classification was accepted
    candidates: tuple[Candidate, ...]  # never empty: the base model or `default_model` is last
    config_version: str
    affinity: Affinity | None = None  # None: the conversation had no topic yet
    assignment: Assignment | None = None  # None: the category has no A/B test
    share: Share | None = None  # None: all requests are routed
    active_topic: ActiveTopic | None = None  # the topic of the conversation after this request


class Edit(Struct, frozen=True):
    """The changes to the client's request body. All other fields stay as they are."""

    model: str
    system_prompt: str | None = None
    system_prompt_mode: Mode = "insert"
    reasoning: Reasoning | None = None


class AppliedEdit(Struct, frozen=True):
    """The part of an edit that was written. A client's own reasoning settings win, and some API shapes lack fields."""

    system_prompt: bool = False
    reasoning: bool | None = None  # on or off; None: nothing was written and the model's default applies

    @property
    def more_than_model(self) -> bool:
        """Return whether the edit wrote anything besides the model."""
        return self.system_prompt or self.reasoning is not None


class Decision(Struct, frozen=True):
    """What the router did with one request."""

    id: str  # id of the response, such as chatcmpl-...
    plan: Plan
    candidate: Candidate
    reason: Reason
    applied: AppliedEdit
    overhead_ms: float  # from the complete request body until the request is passed on
    version: str | None = (
        None  # the engine's name for the adapter version, which is also the response's `model`; None: the base model
    )
    skipped: tuple[tuple[str, str], ...] = ()  # (adapter, reason) of earlier candidates that could not serve
    content_digest: str | None = None  # digest of that version's content
    request: RequestInfo = RequestInfo()
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # duration of each phase: read, plan, lease, edit
    is_rejected: bool = False  # `router.on_error: reject` refused the request; `candidate` would have been the fallback
    key: str = field(default_factory=new_id)  # unique, unlike `id`: two clients can send the same X-Request-Id


class Outcome(Struct, frozen=True):
    """How the response to a decision ended."""

    decision: Decision
    status: int | None  # None: the client disconnected before the response began
    first_byte_ms: float | None  # from the decision to the first byte of the response body
    total_ms: float
    aborted: bool  # the client disconnected or the server failed before the response was complete
    finish_reason: str | None = None  # as in the response: stop, length, tool_calls, ...
