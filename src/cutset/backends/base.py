"""What a backend is, which ones there are, and how one is chosen.

A backend turns a stage's file into a function from arrays to arrays. The runtime knows no more
of it than `StageProgram`. Only the backend that is asked for is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import time
from statistics import median
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from cutset.capture.torch_settings import apply_settings
from cutset.dtypes import FLOATING, NUMPY_DTYPES, empty_array
from cutset.errors import CutsetError, EngineError

if TYPE_CHECKING:
    from cutset.bundles.manifest import StageEntry
    from cutset.bundles.open import Bundle

_LOG = logging.getLogger(__name__)

BACKENDS: tuple[str, ...] = ("torch", "onnxruntime", "openvino", "torch-compiled")
"""Every backend that this version knows, the reference first."""

QUICK_BACKENDS: tuple[str, ...] = BACKENDS[:3]
"""Those that load a stage in a few seconds, so that they may be tried; compiling takes longer."""

AUTO = "auto"

_MODULES = {
    "torch": "cutset.backends.torch_eager",
    "onnxruntime": "cutset.backends.onnxruntime",
    "openvino": "cutset.backends.openvino",
    "torch-compiled": "cutset.backends.torch_compiled",
}
_TRIAL_LIMIT_S = 0.5
_TRIAL_RUNS = 5

Arrays: TypeAlias = tuple[np.ndarray, ...]


class StageProgram(Protocol):
    """One loaded stage."""

    @property
    def backend(self) -> str:
        """Name of the backend that runs it."""

    def __call__(self, inputs: Arrays) -> Arrays:
        """Computes the stage's outputs, in the order of its contract.

        The caller has checked rank, shape and dtype of the inputs, which may have any strides. The
        outputs may share memory with the inputs (a stage may pass an array on), never with an
        earlier call's outputs: another thread may still be sending those.
        """


class BackendModule(Protocol):
    """What the module of a backend offers."""

    def load(
        self, bundle: Bundle, stage: int, *, num_threads: int, micro_batch: int
    ) -> StageProgram:
        """Loads one stage."""

    def missing(self) -> str:
        """What this machine lacks for the backend, in words with a hint; ``""`` if nothing."""

    def start(self) -> None:
        """Computes one small convolution, so that this process holds what every stage needs."""

    def why_not(self, entry: StageEntry) -> str:
        """Why this backend cannot run the stage here, in words with a hint; ``""`` if it can."""


def check_backend_name(name: str) -> None:
    """Refuses a name that is neither ``"auto"`` nor a backend.

    Raises:
        EngineError: there is no such backend; the message lists those there are.
    """
    if name != AUTO and name not in BACKENDS:
        raise EngineError(
            f"there is no backend {name!r}; choose one of {', '.join((AUTO, *BACKENDS))}"
        )


def missing_here(name: str) -> str:
    """What this machine lacks for one of `BACKENDS`, in words with a hint; ``""`` if nothing."""
    return _module(name).missing()


def start(name: str) -> None:
    """Has one of `BACKENDS` compute one small convolution: then this process holds its libraries.

    So much memory does a worker of this backend take whose stage is next to nothing.
    """
    _module(name).start()


def load_stage(
    bundle: Bundle, stage: int, *, backend: str, num_threads: int, micro_batch: int
) -> StageProgram:
    """Loads one stage for one backend, after giving this process the bundle's settings of torch.

    Args:
        bundle: opened and checked, at least for this stage.
        stage: index of the stage.
        backend: a name from `BACKENDS`, or ``"auto"``: the backend that the plan names for the
            stage because its profile measured it as the fastest. A plan that names the reference
            backend or none may never have measured another, and a planned one may be missing here;
            then each of `QUICK_BACKENDS` that can run the stage is tried on random rows for at
            most half a second, and the one with the least median time is kept. A session asks for
            this only when a stage is loaded for the first time; a worker that replaces another
            gets the same backend, so that answers do not change.
        num_threads: threads to compute with.
        micro_batch: rows of the largest micro-batch.

    Raises:
        EngineError: no such backend, or it cannot run this stage; says why and what to do.
        BundleError: the stage's file is missing, changed or unsafe.
    """
    check_backend_name(backend)
    apply_settings(bundle.manifest.torch_settings)
    entry = bundle.manifest.stages[stage]
    planned = bundle.manifest.plan.stages[stage].backend
    if backend == AUTO and planned in BACKENDS[1:]:
        reason = _module(planned).why_not(entry)
        if reason:
            _LOG.warning("stage %d: not run with %s as planned: %s", stage, planned, reason)
        else:
            backend = planned
    if backend != AUTO:
        reason = _module(backend).why_not(entry)
        if reason:
            raise EngineError(f"backend {backend!r} cannot run stage {stage}: {reason}")
        return _module(backend).load(
            bundle, stage, num_threads=num_threads, micro_batch=micro_batch
        )
    programs = _load_all(bundle, entry, num_threads, micro_batch)
    return programs[0] if len(programs) == 1 else _fastest(programs, entry, micro_batch)


def _load_all(
    bundle: Bundle, entry: StageEntry, num_threads: int, micro_batch: int
) -> list[StageProgram]:
    """The stage in every quick backend that can run it, the reference first."""
    reasons = {name: _module(name).why_not(entry) for name in QUICK_BACKENDS}
    programs: list[StageProgram] = []
    for name in [name for name, reason in reasons.items() if not reason]:
        try:
            program = _module(name).load(
                bundle, entry.index, num_threads=num_threads, micro_batch=micro_batch
            )
        except EngineError as error:
            reasons[name] = str(error)
            _LOG.warning("stage %d: backend %s not tried: %s", entry.index, name, error)
            continue
        programs.append(program)
    if not programs:
        each = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise EngineError(f"no backend can run stage {entry.index}: {each}")
    return programs


def _module(name: str) -> BackendModule:
    module: BackendModule = importlib.import_module(_MODULES[name])
    return module


def _fastest(programs: list[StageProgram], entry: StageEntry, micro_batch: int) -> StageProgram:
    inputs = random_inputs(entry, micro_batch)
    best, best_s = programs[0], float("inf")
    for program in programs:
        try:
            elapsed_s = _median_time(program, inputs)
        except (RuntimeError, CutsetError) as error:
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
