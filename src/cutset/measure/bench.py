"""How fast a bundle runs, against its prediction, its slowest stage alone and the whole model.

What ``cutset bench DIR`` prints. Everything is measured on random rows, now: the whole model on
this machine, the rest where the engine runs it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cutset.backends.selection import random_inputs
from cutset.bundles.open import Bundle, open_bundle
from cutset.data.arrays import Array
from cutset.engines.registry import EngineSettings, find_engine
from cutset.measure.bench_results import BenchReport, Quantiles, StageShare
from cutset.measure.stages import AloneResult, measure_alone
from cutset.measure.stages_on_nodes import time_stages_on_nodes
from cutset.progress import Progress, no_progress
from cutset.runtime.chrome_trace import Trace, chrome_trace
from cutset.runtime.session import Session, open_session
from cutset.runtime.status import SessionStatus

_NUM_WARM_UP = 10
_MIN_MICRO_BATCHES = 20
_MIN_LATENCIES = 20
_MAX_LATENCIES = 1000
_NUM_SPANS = 2000
_TELL_EVERY_S = 0.2


def bench_bundle(
    bundle: Bundle | str | Path,
    *,
    engine: str | EngineSettings = "local",
    backend: str = "auto",
    micro_batch: int | None = None,
    num_threads: int = 1,
    duration_s: float = 5.0,
    trace: bool = False,
    progress: Progress = no_progress,
) -> tuple[BenchReport, Trace | None]:
    """Measures a bundle.

    Args:
        bundle: a bundle, or the path of its folder.
        engine: as for `open_session`.
        backend: as for `open_session`.
        micro_batch: rows of a micro-batch; the plan's where None.
        num_threads: threads of each stage.
        duration_s: seconds for each of the four measurements, at least.
        trace: also return a timeline.
        progress: told what is measured now, and what was found so far.

    Returns:
        The report, and with `trace` a document in the Chrome trace format, else None.

    Raises:
        BundleError: the bundle cannot be read.
        EngineError: the pipeline does not come up.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    manifest = opened.manifest
    rows = manifest.plan.micro_batch if micro_batch is None else micro_batch
    inputs = random_inputs(manifest.stages[0], rows)
    if manifest.takes_pixels and manifest.preprocessing is not None:
        shape = (rows, *manifest.preprocessing.crop, 3)
        inputs = (np.random.default_rng(0).integers(0, 256, shape, np.uint8),)
    settings = find_engine(engine)() if isinstance(engine, str) else engine
    with open_session(
        opened,
        engine=settings,
        backend=backend,
        micro_batch=rows,
        num_threads=num_threads,
        num_spans=_NUM_SPANS if trace else 0,
    ) as session:
        for _ in session.stream(itertools.repeat(inputs, _NUM_WARM_UP)):
            pass
        before, asked_s = session.stats(), time.perf_counter()
        num_done, elapsed_s = measure_throughput(
            session,
            inputs,
            duration_s,
            progress=lambda done, spent_s: progress(
                f"1 of 4, throughput: {done * rows / spent_s:.4g} rows/s"
            ),
        )
        after, stats_s = session.stats(), time.perf_counter() - asked_s
        found = f"{num_done * rows / elapsed_s:.4g} rows/s"
        progress(f"2 of 4, latency of one alone ({found})")
        latencies = measure_latency(session, inputs, duration_s)
        document = chrome_trace(session.timeline()) if trace else None
    backends = [stage.backend for stage in after.stages]
    indices = range(len(backends))
    found += f", {quantiles(latencies).p50 * 1e3:.3g} ms for one alone"
    progress(f"3 of 4, each stage alone ({found})")
    alone = _time_stages(opened, settings, backends, num_threads, rows, duration_s)
    progress(f"4 of 4, the whole model in one process ({found})")
    (whole,) = measure_alone(
        opened,
        [tuple(indices)],
        backends=backends,
        num_threads=num_threads * len(backends),
        micro_batch=rows,
        duration_s=duration_s,
    )
    report = BenchReport(
        period_s=elapsed_s / num_done,
        rows_per_s=num_done * rows / elapsed_s,
        latency_s=quantiles(latencies),
        predicted_period_s=manifest.plan.expected_period_s,
        slowest_stage_alone_s=max(result.mean_s for result in alone),
        whole_model_period_s=whole.mean_s,
        stages=_shares(before, after, stats_s),
        part=manifest.part,
    )
    return report, document


def _time_stages(
    bundle: Bundle,
    settings: EngineSettings,
    backends: Sequence[str],
    num_threads: int,
    micro_batch: int,
    duration_s: float,
) -> tuple[AloneResult, ...]:
    """Every stage without transfers, where the engine computes it."""
    elsewhere = settings.stage_programs(bundle, lambda _text: None)
    if elsewhere is not None:
        with elsewhere as programs:
            return time_stages_on_nodes(
                programs,
                backends=backends,
                num_threads=num_threads,
                micro_batch=micro_batch,
                duration_s=duration_s,
            )
    return measure_alone(
        bundle,
        [(index,) for index in range(len(backends))],
        backends=backends,
        num_threads=num_threads,
        micro_batch=micro_batch,
        duration_s=duration_s,
    )


def measure_throughput(
    session: Session,
    inputs: tuple[Array, ...],
    duration_s: float,
    *,
    least: int = _MIN_MICRO_BATCHES,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[int, float]:
    """Streams one micro-batch again and again.

    Args:
        session: warm.
        inputs: the model's inputs, one micro-batch of rows.
        duration_s: for how long, at least.
        least: never fewer micro-batches than this.
        progress: told now and then how many were answered so far, and in how many seconds.

    Returns:
        How many micro-batches were answered, and in how many seconds, both counted from the answer
        after the pipeline was full to the last answer before it ran empty.
    """
    num_done = 0
    skip = session.window
    started_s = time.perf_counter()
    stopped_s = told_s = started_s
    for index, _ in enumerate(session.stream(itertools.repeat(inputs))):
        stopped_s = time.perf_counter()
        if index == skip:
            started_s = stopped_s
        num_done = max(0, index - skip)
        if progress is not None and num_done and stopped_s - told_s > _TELL_EVERY_S:
            progress(num_done, stopped_s - started_s)
            told_s = stopped_s
        if num_done >= least and stopped_s - started_s >= duration_s:
            break
    return num_done, stopped_s - started_s


def measure_latency(
    session: Session,
    inputs: tuple[Array, ...],
    duration_s: float,
    *,
    least: int = _MIN_LATENCIES,
) -> list[float]:
    """Seconds from submission to answer, one micro-batch at a time; never fewer than `least`."""
    samples: list[float] = []
    begun_s = time.perf_counter()
    while len(samples) < _MAX_LATENCIES:
        started_s = time.perf_counter()
        if len(samples) >= least and started_s - begun_s >= duration_s:
            break
        session.run(*inputs)
        samples.append(time.perf_counter() - started_s)
    return samples


def quantiles(samples: Sequence[float]) -> Quantiles:
    """The nearest-rank percentiles of at least one sample."""
    ordered = sorted(samples)
    p50, p95, p99 = (
        ordered[max(0, -(-percent * len(ordered) // 100) - 1)] for percent in (50, 95, 99)
    )
    return Quantiles(p50=p50, p95=p95, p99=p99)


def _shares(
    before: SessionStatus, after: SessionStatus, elapsed_s: float
) -> tuple[StageShare, ...]:
    return tuple(
        StageShare(
            busy=(new.stats.busy_s - old.stats.busy_s) / workers_s,
            waiting=(new.stats.waiting_s - old.stats.waiting_s) / workers_s,
            sending=(new.stats.sending_s - old.stats.sending_s) / workers_s,
            backend=new.backend,
            received_bytes_per_row=(new.stats.received_bytes - old.stats.received_bytes) / num_rows,
            sent_bytes_per_row=(new.stats.sent_bytes - old.stats.sent_bytes) / num_rows,
        )
        for old, new in zip(before.stages, after.stages, strict=True)
        for num_rows in [max(1, new.stats.num_rows - old.stats.num_rows)]
        for workers_s in [elapsed_s * max(1, len(new.replicas))]  # the mean of replicas
    )
