"""Which backends there are, and which of them computes a stage.

This version brings four. Other installed packages add theirs through entry points of the group
``cutset.backends``, whose names are the backends' and whose objects are subclasses of
`cutset.backends.base.Backend`. One that cannot be used is reported and otherwise left alone.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from cutset.backends.base import Backend, ModelBackend, ProgramBackend, StageProgram
from cutset.backends.onnxruntime import OnnxruntimeBackend
from cutset.backends.openvino import OpenvinoBackend
from cutset.backends.torch_compiled import CompiledBackend
from cutset.backends.torch_eager import EagerBackend
from cutset.dtypes import FLOATING, NUMPY_DTYPES, Arrays, empty_array
from cutset.errors import CutsetError, EngineError
from cutset.extensions import extension_names, find_extension
from cutset.printable import printable
from cutset.processes import importing

if TYPE_CHECKING:
    from cutset.bundles.manifest import StageEntry
    from cutset.bundles.open import Bundle

_LOG = logging.getLogger(__name__)

GROUP = "cutset.backends"
"""The group of entry points through which packages add backends."""

AUTO = "auto"

REFERENCE_BACKEND = EagerBackend.name
"""The backend whose numbers are the model's own."""

_BUILT_IN: dict[str, type[Backend]] = {
    kind.name: kind for kind in (EagerBackend, OnnxruntimeBackend, OpenvinoBackend, CompiledBackend)
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_TRIAL_LIMIT_S = 0.5
_TRIAL_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class BrokenBackend:
    """A backend that an installed package offers and that cannot be used.

    Attributes:
        name: of its entry point, as a terminal may show it.
        reason: why it cannot be used.
    """

    name: str
    reason: str


def backend_names() -> tuple[str, ...]:
    """Every backend by its full name: this version's with the reference first, then those added.

    After each its variants, as far as this machine has them.
    """
    added, _ = _added()
    return tuple(name for kind in (*_BUILT_IN.values(), *added.values()) for name in _names(kind))


def broken_backends() -> tuple[BrokenBackend, ...]:
    """What installed packages offer in vain."""
    return _added()[1]


def get_backend(name: str) -> Backend:
    """The backend of that full name.

    Raises:
        EngineError: there is none; the message lists those there are, and says what is wrong with
            one that a package offers in vain.
    """
    base, colon, variant = name.partition(":")
    kind = _BUILT_IN.get(base) or _added()[0].get(base)
    if kind is not None and not colon:
        return kind()
    if kind is not None and variant:
        short = kind.short_name(variant)
        if not short or short in kind.variants():
            return kind(short)
    named = [broken for broken in broken_backends() if broken.name == base]
    why = "".join(f" (a package offers one: {each.reason})" for each in named)
    raise EngineError(
        f"there is no backend {printable(name)!r} here{why}; choose one of"
        f" {', '.join((AUTO, *backend_names()))}"
    )


def check_backend_name(name: str) -> str:
    """Refuses a name that is neither ``"auto"`` nor a backend's.

    Returns:
        The name as plans and profiles have it.

    Raises:
        EngineError: there is no such backend; see `get_backend`.
    """
    return name if name == AUTO else get_backend(name).full_name


def slow_backends() -> tuple[str, ...]:
    """Those that take longer than a few seconds to load a stage: never tried unasked."""
    return tuple(name for name in backend_names() if not get_backend(name).is_quick)


def usable_backends() -> tuple[Backend, ...]:
    """Every backend that lacks nothing here, the reference first where it is one of them."""
    return tuple(get_backend(name) for name in backend_names() if not _lacks(name))


def missing_here(name: str) -> str:
    """What this machine lacks for the backend of that name; ``""`` if nothing."""
    return get_backend(name).missing()


def never_computes(name: str, entry: StageEntry) -> str:
    """Why a backend cannot compute a stage wherever it is installed, for want of a form it reads.

    ``""`` where it can, and for one that is not known here.
    """
    base = name.partition(":")[0]
    kind = _BUILT_IN.get(base) or _added()[0].get(base) or Backend
    if issubclass(kind, ModelBackend) and entry.model is None:
        return f"the stage has no ONNX form ({entry.model_missing})"
    if issubclass(kind, ProgramBackend) and entry.program is None:
        return "the stage has no torch program"
    return ""


def _lacks(name: str) -> str:
    try:
        return missing_here(name)
    except Exception as error:  # noqa: BLE001 - of another package's code
        _LOG.warning("backend %s is left out: %s", name, error)
        return str(error) or type(error).__name__


def _names(kind: type[Backend]) -> Iterator[str]:
    yield kind.name
    try:
        yield from (f"{kind.name}:{variant}" for variant in kind.variants())
    except Exception as error:  # noqa: BLE001 - of another's code, and one backend less is no harm
        _LOG.warning("the variants of backend %s cannot be listed: %s", kind.name, error)


def _added() -> tuple[dict[str, type[Backend]], tuple[BrokenBackend, ...]]:
    """What other packages add, by name in alphabetical order, and what they offer in vain."""
    kinds: dict[str, type[Backend]] = {}
    broken: list[BrokenBackend] = []
    for name in extension_names(GROUP):
        found = _kind_of(name)
        if isinstance(found, str):
            _LOG.warning("backend %s of another package is left out: %s", name, found)
            broken.append(BrokenBackend(name=printable(name), reason=printable(found)))
        else:
            kinds[name] = found
    return kinds, tuple(broken)


def _kind_of(name: str) -> type[Backend] | str:
    """The class that is offered by a name, or what is wrong with it."""
    if name in _BUILT_IN:
        return "Cutset brings a backend of that name; call it otherwise"
    if name == AUTO or not _NAME.fullmatch(name):
        return "no such name can be: a letter, then at most 63 letters, digits, '-', '_', '.'"
    try:
        kind = find_extension(GROUP, name, EngineError)
    except EngineError as error:
        return str(error)
    if not isinstance(kind, type) or not issubclass(kind, (ModelBackend, ProgramBackend)):
        return f"{kind!r} is no subclass of cutset.ModelBackend or cutset.ProgramBackend"
    if kind.__abstractmethods__:
        return f"{kind.__name__} does not implement {', '.join(sorted(kind.__abstractmethods__))}"
    if getattr(kind, "name", None) != name:
        return f"{kind.__name__} calls itself {getattr(kind, 'name', None)!r}"
    return kind


def import_libraries(bundle: Bundle, stage: int, *, backend: str) -> None:
    """Imports what `load_stage` may compute a stage with; what cannot be imported is left to it.

    For a process that limits its memory before it loads the stage: torch alone maps 0.7 GB for
    data, which are not the program's.

    Raises:
        EngineError: no such backend.
    """
    entry = bundle.manifest.stages[stage]
    chosen = _planned(bundle, entry) if backend == AUTO else get_backend(backend)
    for each in _quick_backends() if chosen is None else [chosen]:
        with contextlib.suppress(Exception), importing():  # whatever a module raises
            if not each.why_not(entry):
                for module in each.needs:
                    importlib.import_module(module)


def load_stage(
    bundle: Bundle, stage: int, *, backend: str, num_threads: int, micro_batch: int
) -> StageProgram:
    """Loads one stage for one backend.

    Args:
        bundle: opened and checked, at least for this stage.
        stage: index of the stage.
        backend: a name from `backend_names`, or ``"auto"``: the backend that the plan names for
            the stage because its profile measured it as the fastest. A plan that names the
            reference backend or none may never have measured another, and a planned one may be
            missing here; then each backend that loads quickly and can run the stage is tried on
            random rows for at most half a second, and the one with the least median time is kept.
            A session asks for this only when a stage is loaded for the first time; a worker that
            replaces another gets the same backend, so that answers do not change.
        num_threads: threads to compute with.
        micro_batch: rows of the largest micro-batch.

    Raises:
        EngineError: no such backend, or it cannot run this stage; says why and what to do.
        BundleError: the stage's file is missing, changed or unsafe.
    """
    entry = bundle.manifest.stages[stage]
    chosen = _planned(bundle, entry) if backend == AUTO else get_backend(backend)
    if chosen is not None:
        reason = chosen.why_not(entry)
        if reason:
            raise EngineError(f"backend {backend!r} cannot run stage {stage}: {reason}")
        try:
            return _loaded(chosen, bundle, stage, num_threads, micro_batch)
        except EngineError as error:
            raise EngineError(f"stage {stage}: {error}") from error
    programs = _load_all(bundle, entry, num_threads, micro_batch)
    return programs[0] if len(programs) == 1 else _fastest(programs, entry, micro_batch)


def _planned(bundle: Bundle, entry: StageEntry) -> Backend | None:
    """The backend that the plan names for a stage, if it was measured and can run it here."""
    name = bundle.manifest.plan.stages[entry.index].backend
    if name in (None, "", REFERENCE_BACKEND):
        return None
    try:
        backend = get_backend(name)
        reason = backend.why_not(entry)
    except EngineError as error:
        reason = str(error)
    if not reason:
        return backend
    _LOG.warning("stage %d: not run with %s as planned: %s", entry.index, printable(name), reason)
    return None


def _loaded(
    backend: Backend, bundle: Bundle, stage: int, num_threads: int, micro_batch: int
) -> StageProgram:
    try:
        compute = backend.load(bundle, stage, num_threads=num_threads, micro_batch=micro_batch)
    except Exception as error:
        if isinstance(error, CutsetError) or type(backend) in _BUILT_IN.values():
            raise
        raise EngineError(
            f"backend {backend.full_name} fails with {type(error).__name__}: {error}"
        ) from error
    return StageProgram(backend=backend.full_name, compute=compute)


def _quick_backends() -> list[Backend]:
    return [each for each in map(get_backend, backend_names()) if each.is_quick]


def _load_all(
    bundle: Bundle, entry: StageEntry, num_threads: int, micro_batch: int
) -> list[StageProgram]:
    """The stage in every quick backend that can run it, the reference first."""
    quick = _quick_backends()
    reasons = {backend.full_name: backend.why_not(entry) for backend in quick}
    programs: list[StageProgram] = []
    for backend in quick:
        name = backend.full_name
        if reasons[name]:
            continue
        try:
            program = _loaded(backend, bundle, entry.index, num_threads, micro_batch)
        except EngineError as error:
            reasons[name] = str(error)
            _LOG.warning("stage %d: backend %s not tried: %s", entry.index, name, error)
            continue
        programs.append(program)
    if not programs:
        each = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise EngineError(f"no backend can run stage {entry.index}: {each}")
    return programs


def _fastest(programs: list[StageProgram], entry: StageEntry, micro_batch: int) -> StageProgram:
    inputs = random_inputs(entry, micro_batch)
    best, best_s = programs[0], float("inf")
    for program in programs:
        try:
            elapsed_s = _median_time(program, inputs)
        except Exception as error:  # noqa: BLE001 - what libraries and others' backends raise
            # Random rows may be refused (an embedding wants small indices). The reference backend
            # then runs the stage, and the log says so.
            _LOG.warning("stage %d: backend %s not tried: %s", entry.index, program.backend, error)
            continue
        _LOG.info("stage %d: %s took %.6f s", entry.index, program.backend, elapsed_s)
        if elapsed_s < best_s:
            best, best_s = program, elapsed_s
    return best


def _median_time(program: StageProgram, inputs: Arrays) -> float:
    program(inputs)
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < _TRIAL_RUNS and time.perf_counter() - started < _TRIAL_LIMIT_S:
        begin = time.perf_counter()
        program(inputs)
        samples.append(time.perf_counter() - begin)
    return median(samples) if samples else time.perf_counter() - started


def random_inputs(entry: StageEntry, num_rows: int) -> Arrays:
    """Seeded inputs for a stage: normal for floating and complex dtypes, zeros for the others.

    Args:
        entry: the stage.
        num_rows: rows of the inputs.
    """
    generator = np.random.default_rng(0)
    inputs = []
    for spec in entry.inputs:
        array = empty_array(spec.concrete_shape(num_rows), NUMPY_DTYPES[spec.dtype])
        array[...] = 0
        if spec.dtype in FLOATING:
            array[...] = generator.standard_normal(array.shape, np.float32)
        inputs.append(array)
    return tuple(inputs)
