"""Prometheus metrics of the router, exported by vLLM's own `/metrics` endpoint."""

from collections.abc import Collection, Mapping
from typing import TypeVar, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.metrics import MetricWrapperBase

from vllm_lora_router.types import Decision, Method, Outcome, Reason

# Loading an adapter delays every running stream for its duration.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# From keyword rules to a slow encoder.
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, *SECONDS[:-1])
FIRST_BYTE_SECONDS = (*SECONDS[1:], 10.0, 30.0, 60.0)
CONFIDENCES = tuple(tenths / 10 for tenths in range(1, 11))
TEXTS = (1, 2, 4, 8, 16, 32, 64)

MAX_LABELS = 512
OTHER = "other"
BASE = "base"
DYNAMIC = "dynamic"  # an adapter that no configuration declares: from an adapter folder, or a tenant's own
METHODS: Mapping[str | None, str] = {None: "", **{method: method for method in get_args(Method)}}
REASONS: Mapping[str, str] = {reason: reason for reason in get_args(Reason)}

Child = TypeVar("Child", bound=MetricWrapperBase)


class Metrics:
    """The router's metrics. Create them once a process, after vLLM has set up its multiprocess metrics folder.

    The configuration bounds the number of label values; requests cannot add any. See `configure`. All methods can be
    called from any thread.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register the metrics."""

        def counter(name: str, description: str, *labels: str) -> "_Series[Counter]":
            return _Series(Counter(f"lora_router_{name}", description, labels, registry=registry))

        def histogram(name: str, description: str, buckets: Collection[float], *labels: str) -> "_Series[Histogram]":
            metric = Histogram(f"lora_router_{name}", description, labels, buckets=tuple(buckets), registry=registry)
            return _Series(metric)

        self._loads = counter("adapter_loads", "Adapter loads by the engine, by outcome.", "outcome")
        self._load_seconds = Histogram(
            "lora_router_adapter_load_seconds",
            "Time the engine takes to load one adapter.",
            buckets=SECONDS,
            registry=registry,
        )
        self._reloads = counter("reloads", "Configuration reloads, by outcome.", "outcome")
        self._snapshot_bytes = Gauge(
            "lora_router_snapshot_bytes",
            "Disk space used by adapter snapshots.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._unavailable_adapters = Gauge(
            "lora_router_unavailable_adapters",
            "Adapters that cannot be loaded now, such as for lack of disk space; the most of all API-server processes.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._not_answering = Gauge(
            "lora_router_file_systems_not_answering",
            "File systems of adapters that do not answer; the most of all API-server processes.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._generation = Gauge(
            "lora_router_config_generation",
            "Generation of the configuration in effect; the lowest of all API-server processes.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._decisions = counter(
            "decisions",
            "Routed requests, by category, serving adapter, deciding method and reason.",
            *("category", "adapter", "method", "reason"),
        )
        self._overhead_seconds = Histogram(
            "lora_router_overhead_seconds",
            "Time from receiving the complete request body to forwarding the request.",
            buckets=OVERHEAD_SECONDS,
            registry=registry,
        )
        self._method_seconds = histogram(
            "method_seconds", "Time a classification method takes for one request.", OVERHEAD_SECONDS, "method"
        )
        self._confidence = histogram("confidence", "Confidence of the deciding method.", CONFIDENCES, "method")
        self._failures = counter("failures", "Failed classifications, by method and reason.", "method", "reason")
        self._cached = counter("cached", "Classifications answered from the cache.", "method")
        self._arms = counter("arms", "A/B test assignments, by category and arm.", "category", "arm")
        self._first_byte_seconds = histogram(
            "first_byte_seconds",
            "Time from the decision to the first byte of the response body.",
            FIRST_BYTE_SECONDS,
            "adapter",
        )
        self._responses = counter("responses", "Routed responses, by adapter and status.", "adapter", "status")
        self._feedback: _Series[Summary] = _Series(
            Summary("lora_router_feedback", "Feedback scores of users.", ["category", "arm"], registry=registry)
        )
        self._audit_lines = counter("audit_lines", "Lines of the audit record, written or lost.", "outcome")
        self._batch_texts = histogram("batch_texts", "Texts that are classified in one batch.", TEXTS, "method")
        self._waiting_texts: _Series[Gauge] = _Series(
            Gauge(
                "lora_router_waiting_texts",
                "Texts waiting for a method's model, as of its last batch.",
                ["method"],
                multiprocess_mode="livesum",
                registry=registry,
            )
        )
        self._category_names, self._adapter_names, self._arm_names = _Labels(), _Labels(), _Labels()

    def configure(self, categories: Collection[str], adapters: Collection[str]) -> None:
        """Allow the names of a configuration that takes effect as label values.

        Names of earlier configurations stay allowed. A process has at most MAX_LABELS names of each kind during its
        lifetime; later names are counted as `other`.
        """
        self._category_names.allow(categories)
        self._adapter_names.allow(adapters)

    def set_generation(self, number: int) -> None:
        """Set the generation of the configuration in effect."""
        self._generation.set(number)

    def count_decision(self, decision: Decision) -> None:
        """Count a decision, and observe its steps, confidence and overhead."""
        plan = decision.plan
        # An MCP tool can return categories that the configuration does not have.
        category = self._category_names.label(plan.category) or ("" if plan.category is None else OTHER)
        method = METHODS.get(plan.method, OTHER)
        self._decisions[category, self._adapter(decision), method, REASONS.get(decision.reason, OTHER)].inc()
        self._overhead_seconds.observe(decision.overhead_ms / 1000)
        for step in plan.steps:
            step_method = METHODS.get(step.method, OTHER)
            self._method_seconds[step_method,].observe(step.duration_ms / 1000)
            if step.failure is not None:
                self._failures[step_method, REASONS.get(step.failure, OTHER)].inc()
            elif step.classification is not None and step.classification.cached:
                self._cached[step_method,].inc()
        if plan.confidence is not None and plan.method is not None:
            self._confidence[method,].observe(plan.confidence)
        assignment = plan.assignment
        if assignment is not None and (category := self._category_names.label(assignment.category)) is not None:
            overrides = plan.active_topic.overrides if plan.active_topic is not None else None
            if overrides is not None and assignment.arm in overrides.models:  # the MCP tool named the arms
                arm = self._adapter_names.label(assignment.arm) or DYNAMIC
            else:
                arm = self._arm_names.add(assignment.arm)
            self._arms[category, arm].inc()

    def count_outcome(self, outcome: Outcome) -> None:
        """Count the end of a response, and observe its time to the first byte."""
        adapter = self._adapter(outcome.decision)
        if outcome.first_byte_ms is not None:
            self._first_byte_seconds[adapter,].observe(outcome.first_byte_ms / 1000)
        status = "aborted" if outcome.aborted or outcome.status is None else f"{outcome.status // 100}xx"
        self._responses[adapter, status].inc()

    def observe_feedback(self, category: str | None, arm: str | None, score: float) -> None:
        """Observe a feedback score. Category and arm are None if they are unknown."""
        labels = self._category_names.label(category) or "", self._arm_names.label(arm) or ""
        self._feedback[labels].observe(score)

    def count_audit_lines(self, written: int, lost: int) -> None:
        """Count lines of the audit record that were written or lost since the last call."""
        self._audit_lines["written",].inc(written)
        self._audit_lines["lost",].inc(lost)

    def observe_batch(self, method: str, texts: int, waiting: int) -> None:
        """Observe a batch of a method's model.

        Args:
            texts: the number of texts in the batch; 0 if all of them were cancelled.
            waiting: the number of texts that still wait.
        """
        method = METHODS.get(method, OTHER)
        if texts:
            self._batch_texts[method,].observe(texts)
        self._waiting_texts[method,].set(waiting)

    def count_load(self, seconds: float) -> None:
        """Count a loaded adapter, and observe how long loading took."""
        self._loads["loaded",].inc()
        self._load_seconds.observe(seconds)

    def count_failed_load(self) -> None:
        """Count an adapter that the engine could not load."""
        self._loads["failed",].inc()

    def count_reload(self, outcome: str) -> None:
        """Count a reload of the configuration."""
        self._reloads[outcome,].inc()

    def set_unavailable_adapters(self, number: int) -> None:
        """Set the number of adapters that cannot be loaded now because a resource of the server has run out."""
        self._unavailable_adapters.set(number)

    def set_not_answering(self, number: int) -> None:
        """Set the number of file systems of adapters that do not answer."""
        self._not_answering.set(number)

    def set_snapshot_bytes(self, used_bytes: int) -> None:
        """Set the disk space that adapter snapshots use."""
        self._snapshot_bytes.set(used_bytes)

    def _adapter(self, decision: Decision) -> str:
        adapter = decision.candidate.adapter
        return BASE if adapter is None else self._adapter_names.label(adapter) or DYNAMIC


class _Series(dict[tuple[str, ...], Child]):
    """A metric's series by label values. Looking one up here is faster than `metric.labels`."""

    def __init__(self, metric: Child) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Child:
        series = self[labels] = self._metric.labels(*labels)
        return series


class _Labels:
    """Label values for names. Their number is bounded."""

    def __init__(self) -> None:
        self._labels: dict[str | None, str] = {}
        self._over_limit: frozenset[str] = frozenset()  # names of the last configuration beyond the limit

    def allow(self, names: Collection[str]) -> None:
        """Add names in alphabetical order, so that all processes keep the same ones."""
        for name in sorted(names):
            self.add(name)
        self._over_limit = frozenset(names) - self._labels.keys()

    def add(self, name: str) -> str:
        """Allow a name if the limit is not reached. Return its label."""
        if name not in self._labels and len(self._labels) < MAX_LABELS:
            # An unpaired surrogate in a label would make every scrape fail.
            self._labels[name] = name.encode("utf-8", "replace").decode()
        return self._labels.get(name, OTHER)

    def label(self, name: str | None) -> str | None:
        """Return the label of a name, or None for a name that was never allowed."""
        return self._labels.get(name) or (OTHER if name in self._over_limit else None)
