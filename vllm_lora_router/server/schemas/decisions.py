"""Response model of `GET /v1/router/decisions`: decisions in the form of the audit record, without user text."""

from typing import Any, Literal

from pydantic import Field

from vllm_lora_router.server.schemas.common import Model
from vllm_lora_router.types import Method, Reason, Scale


class RecordedStep(Model):
    """One method that was run: its classification, or its failure."""

    method: Method
    """The method."""
    duration_ms: float
    """The duration in milliseconds."""
    failure: Reason | None = None
    """`error`, `timeout` or `overload`; absent: the method did not fail."""
    error: str | None = None
    """The exception's name; absent: the method did not fail."""
    category: str | None = None
    """The best category, also when its score is below the threshold."""
    score: float | None = None
    """The score of that category, on `scale`."""
    threshold: float | None = None
    """The minimum score for the category to be accepted."""
    accepted: bool | None = None
    """Whether the score reached the threshold."""
    scale: Scale | None = None
    """The kind of score."""
    scores: dict[str, float] | None = None
    """Category to score."""
    thresholds: dict[str, float] | None = None
    """Category to threshold."""
    evidence: dict[str, Any] | None = None
    """Matched keywords (at most 20, and the number of `more_keywords`), the nearest example, or the labels with their
    probabilities."""
    cached: bool | None = None
    """Whether the result came from the cache."""


class RecordedCandidate(Model):
    """A candidate of the plan."""

    model: str
    """The model name."""
    adapter: str | None
    """The adapter; null: the base model."""
    arm: str | None
    """The arm of the A/B test."""


class RecordedTopic(Model):
    """The remembered topic of a conversation."""

    category: str
    """The category."""
    score: float
    """The score of the category."""
    method: Method
    """The method that accepted it."""


class RecordedTurn(Model):
    """An earlier turn of the conversation."""

    turns_ago: int
    """The number of turns before the last one."""
    category: str
    """The category."""
    score: float
    """The score of the category."""
    method: Method
    """The method that accepted it."""
    active_topic_score: float
    """The score of the topic that was active then."""


class RecordedAffinity(Model):
    """Conversation affinity."""

    category: str
    """The topic before the last turn."""
    kept: bool
    """Whether the conversation kept that topic."""
    alternative: str | None
    """The category of the last turn on its own."""
    margin: float
    """The margin by which a new category must be better."""
    earlier_topic: RecordedTopic | None
    """The remembered topic before the oldest of these turns."""
    turns: list[RecordedTurn]
    """The earlier turns that count, oldest first."""


class RecordedAssignment(Model):
    """The assignment of a key to an arm."""

    category: str
    """The category."""
    key: str
    """A salted hash of the key."""
    key_source: str
    """The entry of `router.ab.key` that the key was read from."""
    arm: str
    """The assigned arm."""
    weights: dict[str, float]
    """Arm to weight."""


class RecordedShare(Model):
    """Whether a key is in the routed share."""

    key: str
    """A salted hash of the key."""
    key_source: str
    """The entry of `router.ab.key` that the key was read from."""
    share: float
    """The routed share."""
    position: float
    """The position of the key between 0 and 1; keys below `share` are routed."""


class RecordedPlan(Model):
    """The plan of the decision."""

    reason: Reason
    """Why the first candidate was planned."""
    category: str | None
    """The category."""
    confidence: float | None
    """The score of the deciding classification."""
    method: Method | None
    """The method that decided."""
    steps: list[RecordedStep]
    """The methods that were run, in order."""
    candidates: list[RecordedCandidate]
    """The candidates in the order in which they are tried."""
    affinity: RecordedAffinity | None = None
    """Conversation affinity; absent: not applied."""
    assignment: RecordedAssignment | None = None
    """The A/B assignment; absent: the category has no A/B test."""
    share: RecordedShare | None = None
    """The routed share; absent: all requests are routed."""


class ServedModel(Model):
    """The candidate that served the request."""

    model: str
    """The model name."""
    adapter: str | None
    """The adapter; null: the base model."""
    arm: str | None
    """The arm of the A/B test."""
    version: str | None
    """The adapter's version; null: the base model."""
    content_digest: str | None
    """The digest of the version's content."""
    system_prompt: bool
    """Whether a system prompt was written into the request."""
    reasoning: bool | None
    """The reasoning setting that was written; null: not written."""


class SkippedCandidate(Model):
    """A candidate that could not serve the request."""

    adapter: str
    """The adapter."""
    reason: str
    """The cause."""


class RecordedOutcome(Model):
    """How the response went."""

    type: Literal["outcome"]
    """The type of the record."""
    at: str
    """When the response ended (RFC 3339, UTC)."""
    id: str
    """The `id` of the answer."""
    key: str
    """The unique key of the decision."""
    status: int | None
    """The HTTP status; null: the client disconnected before the response began."""
    first_byte_ms: float | None
    """Milliseconds from the decision to the first byte of the response body."""
    total_ms: float
    """Milliseconds from the decision to the end of the response."""
    finish_reason: str | None
    """The finish reason: `stop`, `length`, `tool_calls`, ..."""
    aborted: bool
    """Whether the response ended before it was complete."""
    system_prompt: bool
    """Whether a system prompt was in the request that was answered."""
    reasoning: bool | None
    """The reasoning setting of the request that was answered."""


class RecordedDecision(Model):
    """One decision with its outcome and feedback."""

    type: Literal["decision"]
    """The type of the record."""
    at: str
    """When the decision was made (RFC 3339, UTC)."""
    id: str = Field(examples=["chatcmpl-9f1c"])
    """The `id` of the answer, which clients can choose with X-Request-Id."""
    key: str
    """The unique key of the decision."""
    config: str
    """The version of the configuration."""
    path: str
    """The path of the request."""
    api: str
    """The API of the request."""
    requested_model: str | None
    """The `model` of the client's request."""
    tenant: str | None
    """The tenant."""
    client: str | None
    """A fingerprint of the client's API key."""
    prompts: int
    """The number of prompts in the request."""
    reason: Reason
    """Why the model served the request."""
    rejected: bool = False
    """Whether `router.on_error: reject` refused the request; `served` is then the model that would have served it."""
    plan: RecordedPlan
    """The plan."""
    served: ServedModel
    """The candidate that served the request."""
    skipped: list[SkippedCandidate]
    """The candidates that could not serve the request."""
    timings_ms: dict[str, float]
    """Stage to duration in milliseconds: `read`, `plan`, `lease`, `edit`, `overhead`."""
    outcome: RecordedOutcome | None
    """How the response went; null: the request is in progress."""
    feedback: list[float]
    """The latest 16 scores that users gave the answer."""


class DecisionsResponse(Model):
    """The most recent decisions of one process."""

    process: int
    """The process id."""
    decisions: list[RecordedDecision]
    """The decisions, newest first."""
