"""Request and response models of `POST /v1/router/classify`."""

from typing import Any

from pydantic import Field

from vllm_lora_router.server.schemas.common import Model
from vllm_lora_router.types import Method, Mode, Reason, Scale


class ClassifyText(Model):
    """A text to classify."""

    text: str
    """The user text."""
    model: str | None = None
    """The model name that the client would send."""


# A whole request body is forwarded to the parser of its API, so its schema is that API's schema.
CLASSIFY_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "title": "ClassifyRequest",
                "anyOf": [
                    ClassifyText.model_json_schema(),
                    {
                        "title": "RequestBody",
                        "type": "object",
                        "description": "The body of a chat completion, completion, Messages or Responses request.",
                        "anyOf": [{"required": ["messages"]}, {"required": ["prompt"]}, {"required": ["input"]}],
                        "additionalProperties": True,
                    },
                ],
            },
            "examples": {
                "text": {"summary": "A text", "value": {"text": "What causes high blood pressure?"}},
                "request": {
                    "summary": "A chat completion request",
                    "value": {
                        "model": "MoM",
                        "messages": [{"role": "user", "content": "What causes high blood pressure?"}],
                    },
                },
            },
        }
    },
}


class PlanOverrides(Model):
    """Settings that an MCP tool requests in addition to a category."""

    model: str | None
    """The adapter or base that the tool requests before all others."""
    models: dict[str, float]
    """Adapter or base name to score, as in `model_scores`."""
    use_reasoning: bool | None
    """Whether to reason; null: not requested."""
    reasoning_effort: str | None
    """The reasoning effort; null: not requested."""
    system_prompt: str | None
    """The system prompt; null: not requested."""


class ClassificationSummary(Model):
    """The result of one method, without its basis."""

    category: str | None
    """The best category, also when its score is below the threshold."""
    score: float
    """The score of that category, on `scale`."""
    scores: dict[str, float]
    """Category to score."""
    scale: Scale
    """The kind of score."""
    threshold: float
    """The minimum score for the category to be accepted."""
    accepted: bool
    """Whether the score reached the threshold."""
    thresholds: dict[str, float]
    """Category to threshold, where categories have thresholds of their own."""


class PlanClassification(ClassificationSummary):
    """The result of one method."""

    evidence: dict[str, Any]
    """The basis of the result: matched keywords (at most 20, and the number of `more_keywords`), the nearest example,
    or the labels with their probabilities."""
    cached: bool
    """Whether the result came from the cache."""
    overrides: PlanOverrides | None
    """Settings that an MCP tool requests in addition."""


class StepSummary(Model):
    """One method that was run, without the basis of its result."""

    method: Method
    """The method."""
    duration_ms: float
    """The duration in milliseconds."""
    classification: ClassificationSummary | None
    """The result; null: the method failed."""
    failure: Reason | None
    """`error`, `timeout` or `overload`; null: the method did not fail."""


class PlanStep(StepSummary):
    """One method that was run."""

    classification: PlanClassification | None  # pyright: ignore[reportIncompatibleVariableOverride]
    """The result; null: the method failed."""
    error: str | None
    """The error message of the failure."""


class PlanReasoning(Model):
    """The reasoning settings that are written into the request."""

    on: bool
    """Whether the model reasons."""
    template_kwargs: dict[str, bool]
    """Chat template arguments to set."""
    effort: str | None
    """The reasoning effort."""


class CandidateSummary(Model):
    """One adapter, or the base model, that can serve the request, without the edit that it causes."""

    model: str
    """The model name: the adapter's name, or the base model's served name."""
    adapter: str | None
    """The adapter; null: the base model."""
    arm: str | None
    """The candidate's arm in the category's A/B test."""


class PlanCandidate(CandidateSummary):
    """One adapter, or the base model, that can serve the request."""

    reasoning: PlanReasoning | None
    """The reasoning settings; null: the model's default."""
    system_prompt: str | None
    """The system prompt to add."""
    system_prompt_mode: Mode
    """Whether the system prompt is inserted before the client's or replaces it."""
    source: str
    """The part of the configuration, or the MCP tool, that names the candidate."""


class PlanTopic(Model):
    """The topic of a conversation."""

    category: str
    """The category."""
    score: float
    """The score of the category when it was last accepted."""
    method: Method
    """The method that accepted it."""
    overrides: PlanOverrides | None
    """Settings that an MCP tool requested with it."""


class PlanTurn(Model):
    """An earlier turn of the conversation for which a method accepted a category."""

    turns_ago: int
    """The number of turns before the last one."""
    category: str
    """The category."""
    score: float
    """The score of the category."""
    method: Method
    """The method that accepted it."""
    active_topic_score: float
    """The score, in the same classification, of the topic that was active then; 0: not scored."""
    overrides: PlanOverrides | None
    """Settings that an MCP tool requested with it."""


class PlanAffinity(Model):
    """The topic of the conversation before its last turn, and whether it was kept."""

    category: str
    """The topic before the last turn."""
    kept: bool
    """Whether the conversation keeps that topic."""
    alternative: str | None
    """The category of the last turn on its own; null: no method accepted one."""
    margin: float
    """The margin by which a new category must be better (`router.affinity.margin`)."""
    turns: list[PlanTurn]
    """The earlier turns that count, oldest first."""
    earlier_topic: PlanTopic | None
    """The remembered topic before the oldest of these turns."""


class PlanAssignment(Model):
    """The assignment of a key to an arm of the category's A/B test."""

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


class PlanShare(Model):
    """Whether a key is in the share of users that is routed."""

    key: str
    """A salted hash of the key."""
    key_source: str
    """The entry of `router.ab.key` that the key was read from."""
    share: float
    """The routed share (`router.share`)."""
    position: float
    """The position of the key between 0 and 1; keys below `share` are routed."""


class PlanSummary(Model):
    """The routing decision for a request that is not run, as clients without the admin key get it."""

    model: str = Field(examples=["medical-lora"])
    """The model name that would serve the request now."""
    reason: Reason
    """Why this model would serve the request."""
    category: str | None
    """The category; null: no method accepted one."""
    confidence: float | None
    """The score of the deciding classification; null: no method accepted a category."""
    method: Method | None
    """The method that decided; null: no method accepted a category."""
    steps: list[StepSummary]
    """The methods that were run, in order."""
    candidates: list[CandidateSummary]
    """The candidates in the order in which they are tried."""
    config_version: str
    """The version of the configuration in effect."""


class PlanResponse(PlanSummary):
    """The routing decision for a request that is not run, as clients with the admin key get it."""

    steps: list[PlanStep]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The methods that were run, in order."""
    candidates: list[PlanCandidate]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The candidates in the order in which they are tried."""
    affinity: PlanAffinity | None
    """Conversation affinity; null: the request has no earlier turns, or affinity is off."""
    assignment: PlanAssignment | None
    """The A/B assignment; null: the category has no A/B test."""
    share: PlanShare | None
    """The routed share; null: all requests are routed."""
    active_topic: PlanTopic | None
    """The topic of the conversation after this request."""
