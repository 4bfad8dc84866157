"""What Prometheus is told, beside vLLM's own metrics and through its own endpoint."""

from collections.abc import Collection, Mapping
from typing import TypeVar, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.metrics import MetricWrapperBase

from vllm_lora_router.types import Decision, Method, Outcome, Reason

# A load holds every stream up for as long as it takes.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, *SECONDS[:-1])  # keywords to a slow encoder
FIRST_BYTE_SECONDS = (*SECONDS[1:], 10.0, 30.0, 60.0)
CONFIDENCES = tuple(tenths / 10 for tenths in range(1, 11))
TEXTS = (1, 2, 4, 8, 16, 32, 64)

MOST_NAMES = 512
OTHER = "other"
BASE = "base"
DYNAMIC = "dynamic"  # any adapter that no configuration declares: one of a folder, or a tenant's own
METHODS: Mapping[str | None, str] = {None: "", **{method: method for method in get_args(Method)}}
REASONS: Mapping[str, str] = {reason: reason for reason in get_args(Reason)}

Child = TypeVar("Child", bound=MetricWrapperBase)


class Metrics:
    """Made once a process, when vLLM has set up where several processes sum their values.

    What stands in labels is bounded by the configuration, never by requests: see `configure`. Whatever runs on other
    threads may call this, too.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, says: str, *labels: str) -> "_Series[Counter]":
            return _Series(Counter(f"lora_router_{name}", says, labels, registry=registry))

        def histogram(name: str, says: str, buckets: Collection[float], *labels: str) -> "_Series[Histogram]":
            made = Histogram(f"lora_router_{name}", says, labels, buckets=tuple(buckets), registry=registry)
            return _Series(made)

        self._loads = counter("adapter_loads", "Adapters that the engine was asked to load.", "outcome")
        self._load_seconds = Histogram(
            "lora_router_adapter_load_seconds",
            "How long the engine took to load one.",
            buckets=SECONDS,
            registry=registry,
        )
        self._reloads = counter("reloads", "Configurations that were taken or refused.", "outcome")
        self._snapshot_bytes = Gauge(
            "lora_router_snapshot_bytes",
            "Private copies of adapters on disk.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self._generation = Gauge(
            "lora_router_config_generation",
            "The configuration in force; of several processes, in the one that is furthest behind.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._decisions = counter("decisions", "Requests routed.", "category", "adapter", "method", "reason")
        self._overhead_seconds = Histogram(
            "lora_router_overhead_seconds",
            "From a request's complete body to handing it on.",
            buckets=OVERHEAD_SECONDS,
            registry=registry,
        )
        self._method_seconds = histogram("method_seconds", "How long a method took.", OVERHEAD_SECONDS, "method")
        self._confidence = histogram("confidence", "How sure the deciding method was.", CONFIDENCES, "method")
        self._failures = counter("failures", "Methods that failed.", "method", "why")
        self._cached = counter("cached", "Classifications that were made before.", "method")
        self._arms = counter("arms", "Draws of A/B tests.", "category", "arm")
        self._first_byte_seconds = histogram(
            "first_byte_seconds", "From a decision to the response's first byte.", FIRST_BYTE_SECONDS, "adapter"
        )
        self._responses = counter("responses", "Routed responses, as they ended.", "adapter", "status")
        self._feedback: _Series[Summary] = _Series(
            Summary("lora_router_feedback", "What users thought of answers.", ["category", "arm"], registry=registry)
        )
        self._audit_lines = counter("audit_lines", "Lines of the audit record.", "outcome")
        self._batch_texts = histogram("batch_texts", "Texts classified together.", TEXTS, "method")
        self._waiting_texts: _Series[Gauge] = _Series(
            Gauge(
                "lora_router_waiting_texts",
                "Texts that wait for a method's model, as of its last batch.",
                ["method"],
                multiprocess_mode="livesum",
                registry=registry,
            )
        )
        self._category_names, self._adapter_names, self._arm_names = _Names(), _Names(), _Names()

    def configure(self, categories: Collection[str], adapters: Collection[str]) -> None:
        """What stands in labels by name, from a configuration that comes into force.

        Names of earlier ones stay: there are MOST_NAMES of each kind in the life of a process, later ones are `other`.
        """
        self._category_names.allow(categories)
        self._adapter_names.allow(adapters)

    def generation(self, number: int) -> None:
        self._generation.set(number)

    def decided(self, decision: Decision) -> None:
        plan = decision.plan
        # A tool may have categories of its own.
        category = self._category_names.label(plan.category) or ("" if plan.category is None else OTHER)
        method = METHODS.get(plan.method, OTHER)
        self._decisions[category, self._adapter(decision), method, REASONS.get(decision.reason, OTHER)].inc()
        self._overhead_seconds.observe(decision.overhead_ms / 1000)
        for step in plan.steps:
            asked = METHODS.get(step.method, OTHER)
            self._method_seconds[asked,].observe(step.duration_ms / 1000)
            if step.failure is not None:
                self._failures[asked, REASONS.get(step.failure, OTHER)].inc()
            elif step.classification is not None and step.classification.cached:
                self._cached[asked,].inc()
        if plan.confidence is not None and plan.method is not None:
            self._confidence[method,].observe(plan.confidence)
        if (draw := plan.assignment) is not None and (tested := self._category_names.label(draw.category)) is not None:
            wish = plan.active_topic.overrides if plan.active_topic is not None else None
            wished = wish is not None and draw.arm in wish.models
            arm = self._adapter_names.label(draw.arm) or DYNAMIC if wished else self._arm_names.take(draw.arm)
            self._arms[tested, arm].inc()

    def ended(self, outcome: Outcome) -> None:
        adapter = self._adapter(outcome.decision)
        if outcome.first_byte_ms is not None:
            self._first_byte_seconds[adapter,].observe(outcome.first_byte_ms / 1000)
        status = "aborted" if outcome.aborted or outcome.status is None else f"{outcome.status // 100}xx"
        self._responses[adapter, status].inc()

    def feedback(self, category: str | None, arm: str | None, score: float) -> None:
        """What somebody thought of an answer of this category and arm; neither is known of every answer."""
        labels = self._category_names.label(category) or "", self._arm_names.label(arm) or ""
        self._feedback[labels].observe(score)

    def recorded(self, written: int, lost: int) -> None:
        """Of the audit record, that many lines more."""
        self._audit_lines["written",].inc(written)
        self._audit_lines["lost",].inc(lost)

    def batched(self, method: str, texts: int, waiting: int) -> None:
        """A method's model answered so many texts together (none where all had been given up), and so many wait."""
        method = METHODS.get(method, OTHER)
        if texts:
            self._batch_texts[method,].observe(texts)
        self._waiting_texts[method,].set(waiting)

    def loaded(self, seconds: float) -> None:
        self._loads["loaded",].inc()
        self._load_seconds.observe(seconds)

    def failed(self) -> None:
        self._loads["failed",].inc()

    def reloaded(self, outcome: str) -> None:
        self._reloads[outcome,].inc()

    def snapshots(self, used_bytes: int) -> None:
        self._snapshot_bytes.set(used_bytes)

    def _adapter(self, decision: Decision) -> str:
        adapter = decision.candidate.adapter
        return BASE if adapter is None else self._adapter_names.label(adapter) or DYNAMIC


class _Series(dict[tuple[str, ...], Child]):
    """A metric's series by the values of its labels: to ask the metric itself takes longer than to count."""

    def __init__(self, metric: Child) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Child:
        series = self[labels] = self._metric.labels(*labels)
        return series


class _Names:
    """Names as labels: a bounded number of them, whatever comes."""

    def __init__(self) -> None:
        self._labels: dict[str | None, str] = {}
        self._late: frozenset[str] = frozenset()  # those of the last configuration that found no room

    def allow(self, names: Collection[str]) -> None:
        for name in sorted(names):  # so that all processes keep the same ones
            self.take(name)
        self._late = frozenset(names) - self._labels.keys()

    def take(self, name: str) -> str:
        """The label of a name that is allowed from here on, if there is room."""
        if name not in self._labels and len(self._labels) < MOST_NAMES:
            # One half of an emoji in a label would fail everything that is scraped.
            self._labels[name] = name.encode("utf-8", "replace").decode()
        return self._labels.get(name, OTHER)

    def label(self, name: str | None) -> str | None:
        """None for a name that was never allowed."""
        return self._labels.get(name) or (OTHER if name in self._late else None)
