"""Every error that Cutset raises on purpose, in one tree.

::

    CutsetError                    exit code 1
    ├── MissingExtra               a package that an extra of Cutset brings is not installed
    ├── ModelError                 the model, its weights or its input cannot be found or used
    │   ├── WeightsMismatch        the weights belong to another model
    │   └── CaptureError           torch.export could not turn the model into a graph
    ├── PlanError                  exit code 3
    │   └── InfeasiblePlan         no placement fits the devices' memory
    ├── BundleError                exit code 4
    │   ├── ManifestError          manifest.json is missing, malformed or contradicts itself
    │   ├── ChecksumMismatch       a file is not the one the manifest names
    │   ├── UnsafeBundle           a file could run code when it is loaded
    │   └── UnsupportedVersion     a newer format than this Cutset knows
    ├── VerificationError          exit code 5: the pieces do not equal the whole
    └── EngineError                exit code 6
        ├── StageFailed            a worker died, froze or raised
        ├── LinkTimeout            a neighbour did not send or take a tensor in time
        └── ContractViolation      a tensor at a boundary is not what the bundle promises

Exit code 2 is left to wrong usage of the command line. Every message says what went wrong,
where, what was expected against what was found, and what to do. The same values are attributes,
so that a program need not read the text.
"""

from __future__ import annotations

from typing import ClassVar


class CutsetError(Exception):
    """The root of the tree; catch it to catch everything Cutset raises on purpose."""

    exit_code: ClassVar[int] = 1


class MissingExtra(CutsetError, ImportError):
    """A package that an extra of Cutset brings is not installed; an `ImportError` too.

    Attributes:
        package: the package that was wanted.
        extra: the extra that brings it: ``pip install 'cutset[EXTRA]'``.
    """

    def __init__(self, message: str, *, package: str, extra: str) -> None:
        super().__init__(message)
        self.package = package
        self.extra = extra


class ModelError(CutsetError):
    """The model, its weights or its input cannot be found or used."""


class WeightsMismatch(ModelError):
    """The weights belong to another model.

    Attributes:
        path: the file of weights.
        missing: names that the model has and the file has not.
        unexpected: names that the file has and the model has not.
        misshaped: per entry of another shape, ``"NAME expects [..], found [..]"``.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        misshaped: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.path = path
        self.missing = missing
        self.unexpected = unexpected
        self.misshaped = misshaped


class CaptureError(ModelError):
    """`torch.export` could not turn the model into a graph.

    Attributes:
        module_path: dotted path of the module in whose forward the capture stopped, or None.
        source: ``file:line`` of the user's code there, or None.
        operation: the operation that stopped it, or None.
        parts: modules of the model that could be split in its place, if they were named: path and
            share of the whole model's work, 0 to 1, the largest first.
    """

    def __init__(
        self,
        message: str,
        *,
        module_path: str | None = None,
        source: str | None = None,
        operation: str | None = None,
        parts: tuple[tuple[str, float], ...] = (),
    ) -> None:
        super().__init__(message)
        self.module_path = module_path
        self.source = source
        self.operation = operation
        self.parts = parts


class PlanError(CutsetError):
    """No plan can be made from what was asked for.

    Attributes:
        is_proven: whether it is known that there is none, rather than that none was found.
    """

    exit_code = 3

    def __init__(self, *args: object, is_proven: bool = False) -> None:
        super().__init__(*args)
        self.is_proven = is_proven


class InfeasiblePlan(PlanError):
    """No placement fits the devices' memory.

    Attributes:
        needed_bytes: the least memory that would do on `device`.
        available_bytes: what `device` has.
        device: name of the device that lacks memory.
    """

    def __init__(
        self, message: str, *, needed_bytes: int, available_bytes: int, device: str
    ) -> None:
        super().__init__(message, is_proven=True)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.device = device


class BundleError(CutsetError):
    """A bundle cannot be written or read.

    Attributes:
        path: the file or folder concerned, as a string, or None.
    """

    exit_code = 4

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class ManifestError(BundleError):
    """manifest.json is missing, malformed or contradicts itself; `path` is a JSON path."""


class ChecksumMismatch(BundleError):
    """A file is not the one the manifest names.

    Attributes:
        expected: the sha256 (hex) or size in bytes that the manifest names.
        actual: what was found.
    """

    def __init__(self, message: str, *, path: str, expected: str, actual: str) -> None:
        super().__init__(message, path=path)
        self.expected = expected
        self.actual = actual


class UnsafeBundle(BundleError):
    """A file could run code when it is loaded, or reaches outside the bundle."""


class UnsupportedVersion(BundleError):
    """The bundle has a format that this version of Cutset does not know.

    Attributes:
        expected: the format this version reads.
        actual: the format that was found.
    """

    def __init__(self, message: str, *, path: str, expected: str, actual: str) -> None:
        super().__init__(message, path=path)
        self.expected = expected
        self.actual = actual


class VerificationError(CutsetError):
    """The pieces do not equal the whole.

    Attributes:
        stage: index of the first stage that differs, or None if no number differs.
        tensor: name of the boundary tensor that differs, or None.
        max_abs_error: largest absolute difference found, or None.
        tolerance: the largest that was allowed, or None.
    """

    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        stage: int | None = None,
        tensor: str | None = None,
        max_abs_error: float | None = None,
        tolerance: float | None = None,
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.tensor = tensor
        self.max_abs_error = max_abs_error
        self.tolerance = tolerance


class EngineError(CutsetError):
    """The pipeline could not be started or could not go on."""

    exit_code = 6


class StageFailed(EngineError):
    """A worker died, froze or raised.

    Attributes:
        stage: index of the stage.
        device: name of the device it ran on.
    """

    def __init__(self, message: str, *, stage: int, device: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.device = device


class LinkTimeout(EngineError):
    """A neighbour did not send or take a tensor in time.

    Attributes:
        link: ``"stage 0 -> stage 1"``; the caller is called ``caller``.
        seconds: how long was waited.
    """

    def __init__(self, message: str, *, link: str, seconds: float) -> None:
        super().__init__(message)
        self.link = link
        self.seconds = seconds


class ContractViolation(EngineError):
    """A tensor at a boundary is not what the bundle promises.

    Attributes:
        boundary: where, e.g. ``"into stage 1, after layer3.0"``.
        expected: the promised tensor, e.g. ``"float32[batch, 64, 56, 56]"``.
        actual: the tensor that came.
    """

    def __init__(self, message: str, *, boundary: str, expected: str, actual: str) -> None:
        super().__init__(message)
        self.boundary = boundary
        self.expected = expected
        self.actual = actual
