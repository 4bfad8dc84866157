"""What Prometheus is told, beside vLLM's own metrics and through its own endpoint."""

from prometheus_client import Counter, Gauge, Histogram

# A load holds every stream up for as long as it takes.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """Made once a process, when vLLM has set up where several processes sum their values."""

    def __init__(self) -> None:
        self._loads = Counter("lora_router_adapter_loads", "Adapters that the engine was asked to load.", ["outcome"])
        self._load_seconds = Histogram(
            "lora_router_adapter_load_seconds", "How long the engine took to load one.", buckets=SECONDS
        )
        self._reloads = Counter("lora_router_reloads", "Configurations that were taken or refused.", ["outcome"])
        self._snapshot_bytes = Gauge(
            "lora_router_snapshot_bytes", "Private copies of adapters on disk.", multiprocess_mode="livemostrecent"
        )

    def loaded(self, seconds: float) -> None:
        self._loads.labels("loaded").inc()
        self._load_seconds.observe(seconds)

    def failed(self) -> None:
        self._loads.labels("failed").inc()

    def reloaded(self, outcome: str) -> None:
        self._reloads.labels(outcome).inc()

    def snapshots(self, used_bytes: int) -> None:
        self._snapshot_bytes.set(used_bytes)
