"""The frozen values that travel: what is asked, what was found, what is planned, decided and written.

A request makes about fifteen of them. As structs of msgspec they are made in C: where the code of a frozen dataclass is
not in the processor's caches, one of eleven fields takes four times as long.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

Method = Literal["keyword", "embedding", "domain", "mcp"]
Scale = Literal["rule", "similarity", "probability"]
Mode = Literal["insert", "replace"]
# fmt: off
Reason = Literal[
    "routed", "affinity", "below_threshold", "no_text", "error", "timeout", "overload", "mixed",
    "not_loadable", "not_allowed", "observe", "off", "not_in_share", "named",
]
# fmt: on

# A plan with one of these reasons is the fault of a classifier, not of the request: `router.on_error` speaks of them.
FAILURES: frozenset[Reason] = frozenset({"error", "timeout", "overload"})


class Client(Struct, frozen=True):
    """Who asks, as far as the request says."""

    tenant: str | None = None
    api_key_fingerprint: str | None = None  # of the API key that the client shows
    ab_keys: Mapping[str, str] = field(default_factory=dict)  # a place of `router.ab.key` -> what stands there
    user: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # those of `mcp_category_model.forward_headers`


ANONYMOUS = Client()


class Query(Struct, frozen=True):
    """What a classifier may read of one request."""

    text: str  # the last thing the user said; empty when there is none that can be read
    turns: tuple[str, ...] = ()  # everything the user said, oldest first
    api: str = "chat"  # which shape of request it came in
    previous_response_id: str | None = (
        None  # the id of the response that it goes on from, where the turns before are not in it
    )
    client: Client = ANONYMOUS  # the same for all queries of a request
    model: str | None = None  # what the client names
    may_call_tools: bool = True  # whether a tool may be called for it

    @property
    def has_text(self) -> bool:
        """Whether there are words to go by: token ids cannot be read, and an image has none."""
        return bool(self.text) and not self.text.isspace()


class RequestInfo(Struct, frozen=True):
    """A request as it came in."""

    path: str = ""
    api: str = ""
    model: str | None = None  # what the client names
    client: Client = Client()
    prompts: int = 1


class Overrides(Struct, frozen=True):
    """What a tool asks for beside a category."""

    model: str | None = None  # an adapter or the base, before all others
    models: Mapping[str, float] = field(default_factory=dict)  # adapter or base -> score, as in `model_scores`
    use_reasoning: bool | None = None
    reasoning_effort: str | None = None
    system_prompt: str | None = None


class Classification(Struct, frozen=True):
    """One method's answer to one query."""

    category: str | None  # the best category, whether or not the method is sure of it
    score: float  # of that category, on `scale`
    scores: Mapping[str, float]  # category -> score, as it was decided on
    scale: Scale
    threshold: float  # what `score` had to reach
    accepted: bool
    evidence: Mapping[str, object] = field(default_factory=dict)  # keywords matched; nearest example; label -> p
    cached: bool = False  # it was found before, for the same words
    thresholds: Mapping[str, float] = field(default_factory=dict)  # category -> what its score had to reach
    overrides: Overrides | None = None


class Step(Struct, frozen=True):
    """One method that was asked: its classification, or why there is none."""

    method: Method
    duration_ms: float
    classification: Classification | None = None
    failure: Reason | None = None  # error, timeout or overload
    error: str | None = None


class Reasoning(Struct, frozen=True):
    """How the base model's family is told to reason; every request shape has its own place for each field."""

    on: bool
    template_kwargs: Mapping[str, bool] = field(default_factory=dict)
    effort: str | None = None  # low, medium, high, ... as vLLM names them


class Candidate(Struct, frozen=True):
    """One way to serve the request; a plan lists them in the order in which they are tried."""

    model: str  # the name that vLLM knows: an adapter's, or the base's served name
    adapter: str | None  # None is the base
    reasoning: Reasoning | None = None  # None: the model's own default stays
    system_prompt: str | None = None
    system_prompt_mode: Mode = "insert"
    source: str = ""
    arm: str | None = None  # its name in the category's A/B test


class ActiveTopic(Struct, frozen=True):
    """What a conversation is about."""

    category: str
    score: float  # with which it was last found
    method: Method
    overrides: Overrides | None = None  # what was asked for with it


class Turn(Struct, frozen=True):
    """An earlier turn of the conversation that a method was sure of."""

    turns_ago: int  # turns before the last one
    category: str
    score: float
    method: Method
    active_topic_score: (
        float  # of the category that held then, by the same classification; 0 where it says nothing of it
    )
    overrides: Overrides | None = None


class Affinity(Struct, frozen=True):
    """What the conversation was about before its last turn, and what came of it."""

    category: str
    kept: bool  # it stayed
    alternative: str | None  # the category that the last turn alone would have taken; None: no method was sure of it
    margin: float
    turns: tuple[Turn, ...]  # oldest first
    earlier_topic: ActiveTopic | None = None  # what held before the oldest of them, as far as it is remembered


class Assignment(Struct, frozen=True):
    """A category's A/B test, as one key drew it."""

    category: str
    key: str  # a digest of what stays the same for the same user
    key_source: str  # the place of `router.ab.key` where that was found
    arm: str
    weights: Mapping[str, float]  # arm -> weight


class Share(Struct, frozen=True):
    """Whether a key is among those that are routed."""

    key: str
    key_source: str
    share: float
    position: float  # where the key stands between 0 and 1: routed below `share`


class Plan(Struct, frozen=True):
    """What routing says of a request, before anything is loaded or written."""

    steps: tuple[Step, ...]
    reason: Reason
    category: str | None
    confidence: float | None  # the deciding classification's score; None when no method was sure
    method: Method | None  # the method that was sure
    candidates: tuple[Candidate, ...]  # never empty: the base or `default_model` stands last
    config_version: str
    affinity: Affinity | None = None  # None: nothing was known of the conversation
    assignment: Assignment | None = None  # None: the category has no A/B test
    share: Share | None = None  # None: all are routed
    active_topic: ActiveTopic | None = None  # what the conversation is about from here on


class Edit(Struct, frozen=True):
    """What is written into the client's body; nothing else of it changes."""

    model: str
    system_prompt: str | None = None
    system_prompt_mode: Mode = "insert"
    reasoning: Reasoning | None = None


class AppliedEdit(Struct, frozen=True):
    """What an edit really wrote: a client's own wish about reasoning wins, and not every shape has a place for all."""

    system_prompt: bool = False
    reasoning: bool | None = None  # on or off; None: nothing was written, and the model does as it does by default

    @property
    def more_than_model(self) -> bool:
        """Whether anything was written but the model."""
        return self.system_prompt or self.reasoning is not None


class Decision(Struct, frozen=True):
    """What was done with one request."""

    id: str  # the id that the answer carries, such as chatcmpl-...
    plan: Plan
    candidate: Candidate
    reason: Reason
    applied: AppliedEdit
    overhead_ms: float  # from the complete body to handing it on
    version: str | None = (
        None  # what the engine calls the adapter's version, and the answer's `model` is; None: the base
    )
    skipped: tuple[tuple[str, str], ...] = ()  # the adapters that stood before it and could not serve, and why
    content_digest: str | None = None  # of that version's content
    request: RequestInfo = RequestInfo()
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # read, plan, lease, edit: what each took


class Outcome(Struct, frozen=True):
    """How the response to a decision went."""

    decision: Decision
    status: int | None  # None when the client left before the response began
    first_byte_ms: float | None  # from the decision to the first byte of the response's body
    total_ms: float
    aborted: bool  # the client left, or the server failed, before the response was complete
    finish_reason: str | None = None  # what the response says of why it ended: stop, length, tool_calls, ...
