"""Models of the health, configuration, reload and feedback routes."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from vllm_lora_router.server.schemas.common import Model, RouterError


class RefusalSummary(Model):
    """The last configuration that was refused, without its problems."""

    version: str
    """The first eight hexadecimal digits of the SHA-256 of its content."""
    at: str
    """When it was refused (RFC 3339, UTC)."""


class RefusedConfiguration(RefusalSummary):
    """The last configuration that was refused."""

    problems: list[str]
    """Why it was refused, one problem per item."""


class ConfigurationSummary(Model):
    """The configuration in effect in this process."""

    version: str
    """The version of the configuration in effect in this process."""
    generation: int | None = None
    """The number of the configuration in effect in this process: 1 at start, one more for each reload."""
    agreed_generation: int | None = None
    """The number of the last configuration that all API-server processes accepted."""
    state: Literal["in-effect", "preparing", "behind"] | None = None
    """`in-effect`: the configuration is in effect; `preparing`: a new one is being built; `behind`: this process has
    not applied the agreed configuration. It tries again every second."""
    refused: RefusalSummary | None = None
    """The last configuration that was refused."""


class ConfigurationStatus(ConfigurationSummary):
    """The configuration in effect in this process and in the other API-server processes."""

    file: str | None = None
    """The name of the configuration file."""
    problem: str | None = None
    """Why this process has not applied the agreed configuration."""
    refused: RefusedConfiguration | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """The last configuration that was refused."""
    processes: dict[str, int] | None = None
    """Process id to generation, for each API-server process that is alive."""


class CacheCounts(Model):
    """Counts of a cache."""

    entries: int
    """The number of entries."""
    hits: int
    """The number of lookups that found an entry."""


class ClassificationCache(CacheCounts):
    """Counts of the classification cache."""

    bytes: int
    """The estimated size in bytes."""
    misses: int
    """The number of lookups that found no entry."""


class LastFailure(Model):
    """The last failure of a method."""

    reason: str
    """`error`, `timeout` or `overload`."""
    error: str
    """What failed."""
    at: str
    """When it failed (RFC 3339, UTC)."""


class MethodSummary(Model):
    """The state of one method in this process. Fields that do not apply to the method are absent."""

    failures: dict[str, int]
    """`error`, `timeout` or `overload` to the number of failures."""
    stuck_s: int | None = None
    """Models: seconds since the current forward pass started, when it does not return; null: it is not stuck."""
    connected: bool | None = None
    """MCP: whether the session is connected."""
    circuit_open_s: float | None = None
    """MCP: seconds until the tool is called again, while the circuit breaker is open."""


class MethodStatus(MethodSummary):
    """The state and the counts of one method in this process. Fields that do not apply to the method are absent."""

    last_failure: LastFailure | None = None
    """The last failure; absent: the method has not failed."""
    runs_on: str | None = None
    """Models: the device and runtime."""
    batches: int | None = None
    """Models: the number of batches."""
    texts: int | None = None
    """Models: the number of texts."""
    failed: int | None = None
    """Models: the number of batches that failed."""
    largest: int | None = None
    """Models: the size of the largest batch, in texts."""
    server: str | None = None
    """MCP: the MCP server."""
    tool: str | None = None
    """MCP: the tool; null: the server was never reached."""
    problem: str | None = None
    """MCP: why the session is not connected."""
    calls: int | None = None
    """MCP: the number of tool calls."""
    consecutive_failures: int | None = None
    """MCP: the number of consecutive failures."""
    cache: CacheCounts | None = None
    """MCP: the answer cache."""


class AuditStatus(Model):
    """The state of the audit record."""

    written: int
    """The number of lines written."""
    lost: int
    """The number of lines lost."""
    problem: str | None
    """Why lines cannot be written; null: no problem."""


class AdaptersHealth(Model):
    """Adapters that cannot be loaded now because a resource of the server has run out, such as disk space, or because a
    file system does not answer."""

    unavailable: int
    """Their number. Routed requests fall back, and a client that names such an adapter gets status 503."""
    problem: str | None
    """What has run out, or which file system does not answer, and the remedy; null: no problem. `unavailable` does not
    count adapters that the server has not imported yet from a file system that does not answer."""


class HealthSummary(Model):
    """The state of this API-server process, as clients without the admin key get it."""

    status: Literal["ok", "draining"]
    """`draining`: the server is shutting down and accepts no new requests."""
    version: str
    """The version of vllm-lora-router."""
    config: ConfigurationSummary
    """The configuration in effect."""
    methods: dict[str, MethodSummary]
    """Method to status, for each configured method."""
    decisions: dict[str, int]
    """Reason to number of decisions."""
    in_progress: int
    """The number of routed requests in progress."""
    aborted: int
    """The number of routed requests with an incomplete response."""
    failed: int
    """The number of routed requests that were answered with a status of 500 or higher."""


class HealthResponse(HealthSummary):
    """The state of this API-server process, as clients with the admin key get it."""

    process: int
    """The process id."""
    config: ConfigurationStatus  # pyright: ignore[reportIncompatibleVariableOverride]
    """The configuration in effect."""
    methods: dict[str, MethodStatus]  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method to status, for each configured method."""
    cache: ClassificationCache
    """The classification cache."""
    audit: AuditStatus | None
    """The audit record; null: `router.audit.path` is not set."""
    adapters: AdaptersHealth | None
    """The adapters; null: the server runs without LoRA."""


class ServedBase(Model):
    """The base model."""

    alias: str
    """Its name in the configuration."""
    served_names: list[str]
    """The names that vLLM serves it under."""


class DomainLabel(Model):
    """The category of one label of the domain model."""

    label: str
    """The label."""
    category: str | None
    """The category; null: `default_model`."""
    source: Literal["name", "mmlu_categories", "similarity", "fallback"]
    """The rule that maps the label to the category; `fallback`: no rule applies."""
    similarity: float | None
    """The cosine similarity, when `source` is `similarity`."""


class ConfigSummary(Model):
    """The configuration in effect, as clients without the admin key get it."""

    version: str
    """The version of the configuration."""
    categories: list[str]
    """The names of the categories."""
    methods: dict[str, bool]
    """Method to whether it is configured."""
    deadline_ms: float | None
    """The deadline in effect for classification, in milliseconds, also when the configuration does not set one."""


class ConfigResponse(ConfigSummary):
    """The configuration in effect without secrets, as clients with the admin key get it."""

    base: ServedBase
    """The base model that this server serves."""
    labels: list[DomainLabel]
    """The labels of the domain model; empty: no domain model."""
    config: dict[str, Any]
    """The configuration with the keys of the file and all defaults; secrets are replaced by `***`."""


class ReloadResponse(Model):
    """The outcome of a reload."""

    outcome: Literal["applied", "unchanged", "refused"]
    """`applied`: the configuration is in effect, except in the processes under `problems`; `unchanged`: it was already
    in effect in all processes; `refused`: the previous configuration stays in effect."""
    generation: int
    """The number of the configuration in effect in this process."""
    problems: list[str]
    """Why the configuration was refused; for `applied`: the processes that have not applied it yet, and why."""


class ReloadRefusedResponse(ReloadResponse):
    """The outcome of a reload that was refused."""

    error: RouterError
    """The same in the form that OpenAI clients expect."""


class FeedbackRequest(Model):
    """A user's score for an answer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=256, examples=["chatcmpl-9f1c"])]
    """The `id` of the answer."""
    score: Annotated[float, Field(allow_inf_nan=False, examples=[1.0])]
    """The score; higher is better. It is between `router.feedback.min` and `max`, which are 0 and 1 by default."""
    comment: Annotated[str, Field(max_length=4096)] | None = None
    """A comment for the audit record."""


class FeedbackResponse(Model):
    """The decision that the feedback was joined to, as far as this process knows it."""

    id: str
    """The `id` of the answer."""
    joined: bool
    """Whether this process knows the decision. If not (status 202), the feedback is in the audit record, and
    `vllm-lora-router audit` and `ab` join it to the decision if another process, or this one earlier, recorded it."""
    category: str | None
    """The category of the decision; null: unknown to this process, or no category."""
    arm: str | None
    """The A/B arm of the decision; null: unknown to this process, or no A/B test."""
