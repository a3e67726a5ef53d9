"""How long a request's rows spent in each stage, from the session's timeline."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection

from cutset.engines.protocol import Span
from cutset.errors import CutsetError
from cutset.runtime.chrome_trace import ProcessTimeline
from cutset.runtime.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageTime:
    """One stage's work on one request.

    Attributes:
        stage: index of the stage.
        start_s: when it began to receive the request's first rows, on the monotonic clock.
        stop_s: when it had sent the last of them.
        compute_s: seconds spent computing on micro-batches that carried the request's rows.
    """

    stage: int
    start_s: float
    stop_s: float
    compute_s: float


class StageTimes:
    """Asks for the timeline; only one question is under way at a time.

    Args:
        session: opened with `num_spans` above 0, else nothing is ever found.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = asyncio.Lock()

    async def of(self, sequences: Collection[int]) -> tuple[StageTime, ...] | None:
        """What each stage did to some micro-batches, or None where that is not known any more."""
        timelines = await self.timelines()
        return None if timelines is None else stage_times(timelines, sequences)

    async def timelines(self) -> tuple[ProcessTimeline, ...] | None:
        """The timeline now, or None when the session is over."""
        async with self._lock:
            try:
                return await asyncio.to_thread(self._session.timeline)
            except CutsetError:
                return None


def stage_times(
    timelines: Collection[ProcessTimeline], sequences: Collection[int]
) -> tuple[StageTime, ...] | None:
    """Picks from a timeline what each stage did to some micro-batches.

    Args:
        timelines: the caller's first, then the stages' (or their replicas', which stand for the
            stage together), as `Session.timeline` gives them.
        sequences: numbers of the micro-batches.

    Returns:
        One entry a stage, in order; None where a stage has no computation of one of them.
    """
    wanted = set(sequences)
    found = []
    of_stages: dict[str, list[Span]] = {}
    for timeline in list(timelines)[1:]:
        stage, *_ = timeline.name.split(" replica ")
        of_stages.setdefault(stage, []).extend(timeline.spans)
    for index, all_spans in enumerate(of_stages.values()):
        spans = [span for span in all_spans if span.sequence in wanted]
        # A micro-batch that was sent again after a failure counts once: its last computation.
        last = {span.sequence: span for span in spans if span.activity == "compute"}
        if not wanted or set(last) != wanted:
            return None
        found.append(
            StageTime(
                stage=index,
                start_s=min(span.start_s for span in spans),
                stop_s=max(span.stop_s for span in spans),
                compute_s=sum(span.stop_s - span.start_s for span in last.values()),
            )
        )
    return tuple(found)
