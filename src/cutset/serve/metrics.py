"""``/metrics`` for Prometheus: requests, rows, latency, queue, stages, links."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from cutset.runtime.status import ReplicaStatus, StageStatus
from cutset.serve.batching import Batcher
from cutset.serve.bodies import Budget
from cutset.serve.monitor import Monitor

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_KNOWN_ROUTES = ("infer", "classify", "page", "metrics", "status", "health", "metadata")


class Metrics:
    """A registry of its own: several servers in one process do not meet.

    Args:
        batcher: the queue.
        monitor: the stages.
        budget: of bytes.
    """

    def __init__(self, batcher: Batcher, monitor: Monitor, budget: Budget) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cutset_requests",
            "Requests answered",
            ("route", "status"),
            registry=self._registry,
        )
        self._latency = Histogram(
            "cutset_request_seconds",
            "Seconds from a request's headers to the end of its answer",
            ("route",),
            buckets=_LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(_Pipeline(batcher, monitor, budget))

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts an answer."""
        route = scope["state"].get("route", "other")
        label = route if route in _KNOWN_ROUTES else "other"
        self._requests.labels(label, str(status)).inc()
        if status < 400:
            self._latency.labels(label).observe(seconds)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self._registry)


class _Pipeline(Collector):
    """Reads queue and stages when it is asked."""

    def __init__(self, batcher: Batcher, monitor: Monitor, budget: Budget) -> None:
        self._batcher = batcher
        self._monitor = monitor
        self._budget = budget

    def collect(self) -> Iterable[Metric]:
        batcher = self._batcher
        yield _counter("cutset_rows", "Rows answered", batcher.num_answered_rows)
        yield _counter("cutset_dropped_rows", "Rows given up", batcher.num_dropped_rows)
        yield _counter("cutset_micro_batches", "Micro-batches sent", batcher.num_sent_micro_batches)
        yield _gauge("cutset_queue_rows", "Rows accepted, not sent", batcher.num_waiting_rows)
        yield _gauge("cutset_queue_limit_rows", "Most rows accepted at once", batcher.max_rows)
        yield _gauge("cutset_in_flight_micro_batches", "In the pipeline", batcher.num_in_flight)
        yield _gauge("cutset_pending_bytes", "Bytes of requests", self._budget.num_taken_bytes)
        document = self._monitor.document()
        yield _gauge("cutset_epoch", "How often the links were made", document["epoch"])
        yield _gauge(
            "cutset_predicted_period_seconds", "The plan's period", document["predicted_period_s"]
        )
        sample = self._monitor.last
        if sample is None:
            return
        labels = ("stage", "device")
        busy = GaugeMetricFamily("cutset_stage_busy_share", "Busy share, 5 s mean", labels=labels)
        up = GaugeMetricFamily("cutset_stage_up", "1 while its worker runs", labels=labels)
        rss = GaugeMetricFamily("cutset_stage_resident_bytes", "Resident memory", labels=labels)
        counters = {
            key: CounterMetricFamily(f"cutset_stage_{name}", text, labels=labels)
            for key, name, text in (
                ("num_rows", "rows", "Rows computed"),
                ("busy_s", "busy_seconds", "Seconds spent computing"),
                ("received_bytes", "received_bytes", "Bytes of tensors received"),
                ("sent_bytes", "sent_bytes", "Bytes of tensors sent"),
            )
        }
        restarts = CounterMetricFamily("cutset_stage_restarts", "Workers replaced", labels=labels)
        share = GaugeMetricFamily("cutset_replica_share", "Part that it takes now", labels=labels)
        for stage, entry in zip(sample.status.stages, document["stages"], strict=True):
            workers: Sequence[StageStatus | ReplicaStatus] = stage.replicas or (stage,)
            for worker, shown in zip(workers, entry["replicas"] or (entry,), strict=True):
                where = (str(stage.index), worker.device)
                busy.add_metric(where, shown["busy_share"])
                up.add_metric(where, float(shown["state"] == "running"))
                rss.add_metric(where, worker.stats.rss_bytes)
                restarts.add_metric(where, worker.num_restarts)
                share.add_metric(where, shown.get("share", 1.0))
                for key, family in counters.items():
                    family.add_metric(where, getattr(worker.stats, key))
        yield from (busy, up, rss, restarts, share, *counters.values())


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
