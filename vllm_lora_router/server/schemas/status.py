"""Models of the health, configuration, reload and feedback routes."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from vllm_lora_router.server.schemas.common import Model, RouterError


class RefusedConfiguration(Model):
    """The last configuration that was refused."""

    version: str
    """The first eight hexadecimal digits of the SHA-256 of its content."""
    problems: list[str]
    """Why it was refused, one problem per item."""
    at: str
    """When it was refused (RFC 3339, UTC)."""


class ConfigurationStatus(Model):
    """The configuration in effect in this process and in the other API-server processes."""

    version: str
    """The version of the configuration in effect in this process."""
    generation: int | None = None
    """The number of the configuration in effect in this process: 1 at start, one more for each reload."""
    file: str | None = None
    """The name of the configuration file."""
    state: Literal["in-effect", "preparing", "behind"] | None = None
    """`in-effect`: the configuration is in effect; `preparing`: a new one is being built; `behind`: this process failed
    to apply a configuration that is in effect in other processes."""
    refused: RefusedConfiguration | None = None
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


class MethodStatus(Model):
    """Counts of one method in this process. Fields that do not apply to the method are absent."""

    failures: dict[str, int]
    """`error`, `timeout` or `overload` to the number of failures."""
    runs_on: str | None = None
    """Models: the device and runtime."""
    stuck_s: int | None = None
    """Models: seconds since the current forward pass started, when it does not return; null: it is not stuck."""
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
    connected: bool | None = None
    """MCP: whether the session is connected."""
    problem: str | None = None
    """MCP: why the session is not connected."""
    calls: int | None = None
    """MCP: the number of tool calls."""
    consecutive_failures: int | None = None
    """MCP: the number of consecutive failures."""
    circuit_open_s: float | None = None
    """MCP: seconds until the tool is called again, while the circuit breaker is open."""
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


class HealthResponse(Model):
    """The configuration in effect in this API-server process, and its counts since it started."""

    status: Literal["ok"]
    """Always `ok`."""
    version: str
    """The version of vllm-lora-router."""
    process: int
    """The process id."""
    config: ConfigurationStatus
    """The configuration in effect."""
    methods: dict[str, MethodStatus]
    """Method to status, for each configured method."""
    cache: ClassificationCache
    """The classification cache."""
    decisions: dict[str, int]
    """Reason to number of decisions."""
    in_progress: int
    """The number of routed requests in progress."""
    aborted: int
    """The number of routed requests with an incomplete response."""
    failed: int
    """The number of routed requests that were answered with a status of 500 or higher."""
    audit: AuditStatus | None
    """The audit record; null: `router.audit.path` is not set."""


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


class ConfigResponse(Model):
    """The configuration in effect, without secrets."""

    version: str
    """The version of the configuration."""
    base: ServedBase
    """The base model that this server serves."""
    methods: dict[str, bool]
    """Method to whether it is configured."""
    deadline_ms: float | None
    """The deadline in effect for classification, in milliseconds, also when the configuration does not set one."""
    labels: list[DomainLabel]
    """The labels of the domain model; empty: no domain model."""
    config: dict[str, Any]
    """The configuration with the keys of the file and all defaults; secrets are replaced by `***`."""


class ReloadResponse(Model):
    """The outcome of a reload."""

    outcome: Literal["applied", "unchanged", "refused"]
    """`applied`: the new configuration is in effect; `unchanged`: the file has not changed; `refused`: the previous
    configuration stays in effect."""
    generation: int
    """The number of the configuration in effect in this process."""
    problems: list[str]
    """Why the configuration was refused; for `applied`: the processes that have not applied it yet."""


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
    """The score; higher is better."""
    comment: Annotated[str, Field(max_length=4096)] | None = None
    """A comment for the audit record."""


class FeedbackResponse(Model):
    """The decision that the feedback was joined to, as far as this process knows it."""

    id: str
    """The `id` of the answer."""
    category: str | None
    """The category of the decision; null: unknown to this process, or no category."""
    arm: str | None
    """The A/B arm of the decision; null: unknown to this process, or no A/B test."""
