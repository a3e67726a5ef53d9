"""What the pipeline does just now: samples of its counters, and what they say about its pace."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import time
from typing import Any

import msgspec

from cutset.errors import CutsetError
from cutset.runtime.contract import groups_of
from cutset.runtime.session import Session
from cutset.runtime.status import ReplicaStatus, SessionStatus, StageStatus
from cutset.serve.batching import Batcher

_LOG = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_WINDOW = 5
_HISTORY = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """The counters at one moment.

    Attributes:
        at_s: when, on the monotonic clock.
        status: of the session.
        num_answered_rows: rows answered since the server began.
    """

    at_s: float
    status: SessionStatus
    num_answered_rows: int


class Monitor:
    """Samples a session once a second, in a thread, for asking the workers may take a moment.

    Args:
        session: the running pipeline.
        batcher: the queue in front of it.
    """

    def __init__(self, session: Session, batcher: Batcher) -> None:
        self._session = session
        self._batcher = batcher
        self._samples: collections.deque[Sample] = collections.deque(maxlen=_WINDOW + 1)
        self._history: collections.deque[tuple[float, int]] = collections.deque(maxlen=_HISTORY)
        self._started_s = time.monotonic()

    async def run(self) -> None:
        """Samples until it is cancelled."""
        while True:
            with contextlib.suppress(CutsetError):  # the session is over: the last sample stays
                await self.sample()
            await asyncio.sleep(_INTERVAL_S)

    async def sample(self) -> None:
        """Takes one sample now."""
        status = await asyncio.to_thread(self._session.stats)
        sample = Sample(
            at_s=time.monotonic(), status=status, num_answered_rows=self._batcher.num_answered_rows
        )
        if self._samples:
            before = self._samples[-1]
            rows = sample.num_answered_rows - before.num_answered_rows
            rate = rows / (sample.at_s - before.at_s)
            self._history.append((round(rate, 3), self._batcher.num_accepted_rows))
        self._samples.append(sample)

    @property
    def last(self) -> Sample | None:
        """The newest sample, or None before the first."""
        return self._samples[-1] if self._samples else None

    def document(self) -> dict[str, Any]:
        """What the page shows, as JSON: see docs/serving.md for its keys."""
        manifest = self._session.bundle.manifest
        plan, batcher = manifest.plan, self._batcher
        period_s = plan.expected_period_s
        newest = self._samples[-1] if self._samples else None
        oldest = self._samples[0] if self._samples else None
        stages = [self._stage(index, newest, oldest) for index in range(len(plan.stages))]
        known = [stage for stage in stages if stage["compute_s"] is not None]
        slowest = max(known, key=lambda stage: stage["compute_s"], default=None)
        elapsed_s = newest.at_s - oldest.at_s if newest and oldest else 0.0
        rows = newest.num_answered_rows - oldest.num_answered_rows if newest and oldest else 0
        return {
            "model": manifest.model,
            "part": msgspec.to_builtins(manifest.part),
            "micro_batch": batcher.micro_batch,
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "state": self._state(stages),
            "epoch": self._session.epoch,
            "rows_per_s": round(rows / elapsed_s, 3) if elapsed_s else 0.0,
            "predicted_rows_per_s": plan.micro_batch / period_s if period_s else None,
            "predicted_period_s": period_s,
            "num_answered_rows": batcher.num_answered_rows,
            "num_accepted_rows": batcher.num_accepted_rows,
            "num_waiting_rows": batcher.num_waiting_rows,
            "num_in_flight": batcher.num_in_flight,
            "max_rows": batcher.max_rows,
            "slowest": slowest["index"] if slowest else None,
            "slowest_over_predicted": _ratio(slowest),
            "stages": stages,
            "links": self._links(newest, oldest),
            "history": [{"rows_per_s": rate, "rows_held": held} for rate, held in self._history],
            "takes_images": manifest.preprocessing is not None,
        }

    def _state(self, stages: list[dict[str, Any]]) -> str:
        if self._batcher.broken is not None:
            return "over"
        if self._batcher.draining:
            return "leaving"
        return "running" if all(stage["state"] == "running" for stage in stages) else "recovering"

    def _stage(self, index: int, newest: Sample | None, oldest: Sample | None) -> dict[str, Any]:
        manifest = self._session.bundle.manifest
        plan, entry = manifest.plan.stages[index], manifest.stages[index]
        expected = manifest.plan.expected
        now = newest.status.stages[index] if newest else None
        then = oldest.status.stages[index] if oldest else None
        busy_share, compute_s, rows = _pace(now, then, newest, oldest)
        pids = self._session.worker_pids
        members = groups_of(manifest.plan).members[index]
        replicas = [
            self._replica(number, index, pids[member], newest, oldest)
            for number, member in enumerate(members)
            if len(members) > 1
        ]
        pid = next((pids[member] for member in members if pids[member]), 0)
        return {
            "index": index,
            "device": now.device if now else plan.device,
            "backend": now.backend if now else "",
            "first": plan.first,
            "last": plan.last,
            "num_units": len(entry.units),
            "weight_bytes": entry.weight_bytes,
            "state": "running" if all(pids[m] for m in members) else "restarting",
            "pid": pid,
            "num_restarts": now.num_restarts if now else 0,
            "busy_share": round(min(1.0, busy_share / len(members)), 4),
            "compute_s": compute_s,
            "rows_per_micro_batch": rows,
            "predicted_compute_s": expected.compute_s[index] if expected else plan.compute_s,
            "predicted_from_profile": bool(plan.backend),
            "rss_bytes": now.stats.rss_bytes if now else 0,
            "replicas": replicas,
        }

    def _replica(
        self, number: int, stage: int, pid: int, newest: Sample | None, oldest: Sample | None
    ) -> dict[str, Any]:
        """One replica of a stage that has several."""
        now = newest.status.stages[stage].replicas[number] if newest else None
        then = oldest.status.stages[stage].replicas[number] if oldest else None
        busy_share, compute_s, _ = _pace(now, then, newest, oldest)
        group = self._session.bundle.manifest.plan.stages[stage].group
        return {
            "device": now.device if now else group[number].device,
            "state": "running" if pid else "restarting",
            "pid": pid,
            "share": now.share if now else 0.0,
            "busy_share": min(1.0, busy_share),
            "compute_s": compute_s,
            "num_restarts": now.num_restarts if now else 0,
            "rss_bytes": now.stats.rss_bytes if now else 0,
        }

    def _links(self, newest: Sample | None, oldest: Sample | None) -> list[dict[str, Any]]:
        """The links caller to stage 0, stage to stage, last stage to caller."""
        manifest = self._session.bundle.manifest
        num_stages = len(manifest.stages)
        links = []
        for index in range(num_stages + 1):
            bytes_per_s = 0.0
            if newest and oldest and newest is not oldest:
                key = "received_bytes" if index < num_stages else "sent_bytes"
                stage = min(index, num_stages - 1)
                moved = getattr(newest.status.stages[stage].stats, key) - getattr(
                    oldest.status.stages[stage].stats, key
                )
                bytes_per_s = max(0.0, moved / (newest.at_s - oldest.at_s))
            specs = (
                manifest.stages[index].inputs if index < num_stages else manifest.stages[-1].outputs
            )
            links.append(
                {
                    "from": "caller" if index == 0 else f"stage {index - 1}",
                    "to": "caller" if index == num_stages else f"stage {index}",
                    "bytes_per_row": sum(spec.bytes_per_sample for spec in specs),
                    "bytes_per_s": round(bytes_per_s, 1),
                }
            )
        return links


def _pace(
    now: StageStatus | ReplicaStatus | None,
    then: StageStatus | ReplicaStatus | None,
    newest: Sample | None,
    oldest: Sample | None,
) -> tuple[float, float | None, float | None]:
    """Busy share (of replicas together), seconds and rows a micro-batch, between two samples.

    While nothing was computed between them, the means since the beginning stand for the two last.
    """
    if now is None or then is None or newest is None or oldest is None:
        return 0.0, None, None
    elapsed_s = newest.at_s - oldest.at_s
    busy_s = max(0.0, now.stats.busy_s - then.stats.busy_s)
    batches = now.stats.num_micro_batches - then.stats.num_micro_batches
    rows = now.stats.num_rows - then.stats.num_rows
    share = busy_s / elapsed_s if elapsed_s else 0.0
    if batches <= 0:
        busy_s, batches, rows = now.stats.busy_s, now.stats.num_micro_batches, now.stats.num_rows
    if batches <= 0:
        return round(share, 4), None, None
    return round(share, 4), busy_s / batches, round(rows / batches, 3)


def _ratio(stage: dict[str, Any] | None) -> float | None:
    if stage is None or not stage["predicted_compute_s"]:
        return None
    return float(round(stage["compute_s"] / stage["predicted_compute_s"], 4))
