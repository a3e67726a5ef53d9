"""Measures what every piece of a model costs on this device with every backend."""

from __future__ import annotations

import functools
import logging
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise

from cutset.backends.base import Backend
from cutset.backends.selection import get_backend, usable_backends
from cutset.bundles.proof.results import BACKENDS as VERIFIED
from cutset.capture.captured import Captured
from cutset.costs.profile import (
    OUTPUT_NAME,
    PROFILE_FORMAT,
    PieceProfile,
    Profile,
    Timing,
    of_sizes,
)
from cutset.differences import max_abs_difference, tolerance_of
from cutset.dtypes import Arrays
from cutset.errors import EngineError
from cutset.graph.cuts import CutPoints
from cutset.measure.piece_times import (
    MIN_RUNS,
    PieceBackend,
    PieceTimes,
    run_again_and_again,
    timings_of,
)
from cutset.printable import first_line

logger = logging.getLogger(__name__)

_EXAMPLE_ROWS = 2


def piece_backends(
    captured: Captured, cuts: CutPoints, *, num_threads: int, also: Collection[str] = ()
) -> dict[str, PieceBackend]:
    """Every backend that lacks nothing here and can run the whole model, by its full name.

    Args:
        captured: the captured model.
        cuts: its judged positions; pieces begin and end at candidates.
        num_threads: threads that compute.
        also: names of backends that take longer than a few seconds to load and are wanted all the
            same; with any name in it that is not possible here, nothing is measured.

    Raises:
        EngineError: one of `also` is not possible here; says why.
    """
    ends = tuple(dict.fromkeys(spec for point in cuts.points for spec in point.tensors))
    for name in also:
        backend = get_backend(name)
        if missing := backend.missing():
            raise EngineError(missing)
        if reason := backend.why_no_pieces(captured, ends):
            raise EngineError(f"{reason} for {name}")
    found: dict[str, PieceBackend] = {}
    lacking: dict[str, list[str]] = {}
    for backend in usable_backends():
        if not backend.is_quick and backend.full_name not in also:
            continue
        reason = backend.why_no_pieces(captured, ends)
        if not reason:
            pieces = _pieces_in(backend, captured, num_threads)
            found[backend.full_name] = _as_whole(backend, pieces, captured, found)
        elif reason != captured.no_programs:
            lacking.setdefault(reason, []).append(backend.full_name)
    for reason, names in lacking.items():
        logger.warning("%s: not measured: %s", " and ".join(names), reason)
    return _that_agree(captured, found)


def _pieces_in(backend: Backend, captured: Captured, num_threads: int) -> PieceBackend:
    return functools.partial(backend.load_piece, captured, num_threads=num_threads)


def _as_whole(
    backend: Backend, pieces: PieceBackend, captured: Captured, before: Mapping[str, PieceBackend]
) -> PieceBackend:
    """Of a backend that does not load quickly the whole model alone; pieces run in the first one.

    To load every piece would take minutes, and `profile_costs` scales the pieces' seconds so that
    they add up to the whole model's: a piece is taken to cost the same share of the whole.
    """
    if backend.is_quick or not before:
        return pieces
    first, *_ = before.values()
    whole = (0, len(captured.graph.operations))
    return lambda start, stop: (pieces if (start, stop) == whole else first)(start, stop)


def _that_agree(
    captured: Captured, backends: Mapping[str, PieceBackend]
) -> dict[str, PieceBackend]:
    """Those whose numbers for the example are the first one's, within the stated tolerance.

    A bundle's verification proves torch's and ONNX Runtime's numbers, stage by stage; this is the
    only look at those of the other backends, so a plan names none that was not seen to agree.
    """
    kept: dict[str, PieceBackend] = {}
    whole = (0, len(captured.graph.operations))
    expected: Arrays = ()
    for name, pieces in backends.items():
        if kept and name not in VERIFIED:
            inputs = captured.rows(captured.micro_batch_only or _EXAMPLE_ROWS)
            first, *_ = kept.values()
            expected = expected or first(*whole)(inputs)
            try:
                outputs = pieces(*whole)(inputs)
            except Exception as error:  # noqa: BLE001 - a runtime's errors derive from it
                logger.warning("%s is not measured: %s", name, error)
                continue
            worst = max(
                max_abs_difference(one, other) - tolerance_of(other)
                for one, other in zip(outputs, expected, strict=True)
            )
            if not worst <= 0:
                logger.warning("%s is not measured: its numbers are %g too far off", name, worst)
                continue
        kept[name] = pieces
    return kept


def profile_costs(  # noqa: PLR0913  # what one may say of a measurement; each has a default
    captured: Captured,
    cuts: CutPoints,
    *,
    micro_batch: int = 1,
    more_sizes: Sequence[int] = (),
    num_threads: int = 1,
    num_runs: int = 20,
    max_seconds: float = 10.0,
    backends: Mapping[str, PieceBackend] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Profile:
    """Measures the pieces between neighbouring candidate cut points, one after the other.

    Each run sends one micro-batch through all pieces, so that every piece finds the caches as it
    would in the whole model, and then one through the whole model. Two runs warm up.

    A backend that plans across operations (ONNX Runtime keeps tensors in a blocked layout between
    convolutions) pays at every piece's ends what it would not pay inside a stage. So the pieces'
    times are scaled to add up to the whole model's. Under a quota of processor time they are what a
    stream takes (`stream_seconds`). The profile names the model by its class, and the device by its
    host.

    Args:
        captured: the captured model.
        cuts: its judged positions; the candidates divide it into pieces.
        micro_batch: rows in each run, at least 1.
        more_sizes: further numbers of rows, rising, all above `micro_batch`. A backend that is not
            far behind another is measured with the next one until it computes fewer rows a second
            than before, the memory is not there, or all of them together would take more than three
            times as long as `micro_batch` alone; with fewer runs, as each is longer.
        num_threads: threads that compute, at least 1.
        num_runs: measured runs for each backend, if time allows; at least 5 are made.
        max_seconds: after this long no further run is begun, for each backend.
        backends: what to measure, by name, as `piece_backends` gives them; if None the first that
            can run the model: eager torch for a model of torch.
        progress: called with the backend, the runs done and the runs wanted.

    Raises:
        ValueError: `micro_batch` or `num_threads` is below 1, or there is nothing to measure.
        EngineError: the first backend cannot run a piece. Any other that cannot is left out, since
            what a plan knows of a backend is about all pieces; a warning says why.
    """
    if micro_batch < 1 or num_threads < 1:
        raise ValueError(f"micro_batch {micro_batch} and num_threads {num_threads} start at 1")
    if backends is None:
        able = (each for each in usable_backends() if not each.why_no_pieces(captured, ()))
        first = next(able, None)
        backends = {first.full_name: _pieces_in(first, captured, num_threads)} if first else {}
    if not backends:
        raise ValueError("no backends: name those that can run the pieces of this model")
    positions = [0, *(point.position for point in cuts.points), len(captured.graph.operations)]
    times = PieceTimes(
        captured=captured,
        positions=positions,
        micro_batch=micro_batch,
        more_sizes=more_sizes,
        num_threads=num_threads,
        num_runs=num_runs,
        max_seconds=max_seconds,
        progress=progress,
    )
    with captured.computing(num_threads):
        for name, backend in backends.items():
            _try_backend(times, name, backend)
    profiles = [
        Profile(
            format=PROFILE_FORMAT,
            model=captured.graph.model_class,
            device=platform.node(),
            micro_batch=rows,
            num_threads=num_threads,
            pieces=_pieces(captured, cuts, positions, timings),
            whole={name: each[-1] for name, each in timings.items()},
            software={
                "python": platform.python_version(),
                **{name: get_backend(name).version() for name in times.found[micro_batch]},
            },
        )
        for rows, timings in sorted(times.found.items())
    ]
    return of_sizes(profiles)


def _try_backend(times: PieceTimes, name: str, backend: PieceBackend) -> None:
    """Measures with a backend; the first one has to be able to."""
    try:
        times.measure(name, backend)
    except Exception as error:
        # What runtimes raise has no common class but this.
        reason = first_line(error)
        if not times.found:
            raise EngineError(f"{name} cannot run every piece of the model: {reason}") from error
        logger.warning("%s is not measured, since it cannot run every piece: %s", name, reason)


def time_stages(
    captured: Captured,
    positions: Sequence[int],
    backends: Sequence[PieceBackend],
    *,
    micro_batch: int = 1,
    num_threads: int = 1,
    num_runs: int = 20,
    max_seconds: float = 10.0,
) -> tuple[Timing, ...]:
    """Measures stages as wholes, one after the other, as `profile_costs` measures pieces.

    What a backend saves within a stage and pays at its ends is in these times, where sums of
    pieces have the average of all cuts.

    Args:
        captured: the captured model.
        positions: where stages begin and end: 0, the cuts, the number of operations.
        backends: of each stage.
        micro_batch: rows in each run.
        num_threads: threads that compute.
        num_runs: measured runs, if time allows; at least 5 are made.
        max_seconds: after this long no further run is begun.
    """
    inputs = captured.rows(micro_batch)
    with captured.computing(num_threads):
        runners = [
            backend(start, stop)
            for backend, (start, stop) in zip(backends, pairwise(positions), strict=True)
        ]
        # The last runner is for what follows the pieces in a profile: nothing here.
        samples = run_again_and_again(
            [*runners, lambda _: ()],
            inputs,
            num_runs=max(num_runs, MIN_RUNS),
            max_seconds=max_seconds,
        )
    return timings_of(samples, num_threads)[:-1]


def _pieces(
    captured: Captured,
    cuts: CutPoints,
    positions: Sequence[int],
    timings: Mapping[str, Sequence[Timing]],
) -> tuple[PieceProfile, ...]:
    operations = captured.graph.operations
    names = [*(point.after for point in cuts.points), OUTPUT_NAME]
    return tuple(
        PieceProfile(
            last=last,
            flops=sum(operation.flops for operation in operations[start:stop]),
            timings={name: timing[index] for name, timing in timings.items()},
        )
        for index, (last, (start, stop)) in enumerate(zip(names, pairwise(positions), strict=True))
    )
