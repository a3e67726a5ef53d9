"""What was measured of a model on one device: a profile, and its file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cutset.errors import PlanError
from cutset.graph.cuts import CutPoints
from cutset.ranges import Rows

PROFILE_FORMAT = "cutset-profile/1"
INPUT_NAME = "input"
OUTPUT_NAME = "output"


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that one piece took for one micro-batch, over repeated runs."""

    median_s: float
    p10_s: float
    p90_s: float
    num_runs: int

    def scaled(self, factor: float) -> Timing:
        """The same with every time `factor` times as long."""
        return Timing(
            median_s=self.median_s * factor,
            p10_s=self.p10_s * factor,
            p90_s=self.p90_s * factor,
            num_runs=self.num_runs,
        )


class PieceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one piece (the operations between two neighbouring candidate cut points) cost.

    Attributes:
        last: name of the cut point that ends it (``CutPoint.after``); ``"output"`` for the last.
        flops: multiply-adds for one row.
        timings: measured seconds per micro-batch, by backend name (``"torch"``,
            ``"onnxruntime"``, ...).
    """

    last: str
    flops: int
    timings: dict[str, Timing]


class SizedTimings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the pieces cost with another number of rows in a micro-batch.

    Attributes:
        micro_batch: rows in each run.
        timings: of each piece, as `PieceProfile.timings`; of some of the backends at least.
        whole: as `Profile.whole`.
    """

    micro_batch: Rows
    timings: tuple[dict[str, Timing], ...]
    whole: dict[str, Timing] = {}


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured costs of one model on one device, as `cutset profile` writes them.

    Attributes:
        format: ``"cutset-profile/1"``.
        model: the model's name as it was given.
        device: name of the device it was measured on.
        micro_batch: rows in each run.
        num_threads: threads that computed.
        pieces: in execution order; one more than there are candidate cut points.
        software: versions of what computed, e.g. ``{"torch": "2.14.1"}``.
        whole: measured seconds of the whole model for one micro-batch, by backend name.
        sizes: the same for other numbers of rows than `micro_batch`, none of them twice.
    """

    format: str
    model: str
    device: str
    micro_batch: int
    num_threads: int
    pieces: tuple[PieceProfile, ...]
    software: dict[str, str]
    whole: dict[str, Timing] = {}
    sizes: tuple[SizedTimings, ...] = ()

    def __post_init__(self) -> None:
        """Checks what belongs together: a profile may come from a file.

        Raises:
            ValueError: a number of rows is there twice, or has not as many pieces.
        """
        numbers = [self.micro_batch, *(each.micro_batch for each in self.sizes)]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"a number of rows is there twice: {numbers}")
        for each in self.sizes:
            if len(each.timings) != len(self.pieces):
                raise ValueError(
                    f"with {each.micro_batch} rows there are {len(each.timings)} pieces, with "
                    f"{self.micro_batch} there are {len(self.pieces)}"
                )

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of all that computed a piece, in alphabetical order."""
        return tuple(sorted({name for piece in self.pieces for name in piece.timings}))

    @property
    def micro_batches(self) -> tuple[int, ...]:
        """The numbers of rows that it has costs for, rising."""
        return tuple(sorted((self.micro_batch, *(each.micro_batch for each in self.sizes))))

    def at(self, micro_batch: int) -> Profile:
        """The profile with one number of rows alone.

        Raises:
            PlanError: it has no costs for that number.
        """
        if micro_batch == self.micro_batch:
            return msgspec.structs.replace(self, sizes=())
        for each in self.sizes:
            if each.micro_batch == micro_batch:
                pieces = zip(self.pieces, each.timings, strict=True)
                return msgspec.structs.replace(
                    self,
                    micro_batch=micro_batch,
                    pieces=tuple(msgspec.structs.replace(p, timings=t) for p, t in pieces),
                    whole=each.whole,
                    sizes=(),
                )
        raise PlanError(
            f"the profile of {self.device!r} was made with micro-batches of "
            f"{in_words(self.micro_batches)}, not the {micro_batch} that were asked for; leave the "
            "size out (--batch-size), or profile it again with that size"
        )


def of_sizes(profiles: Sequence[Profile]) -> Profile:
    """One profile out of several of one number of rows each: what `Profile.at` takes apart."""
    first, *others = profiles
    return msgspec.structs.replace(
        first,
        sizes=tuple(
            SizedTimings(
                micro_batch=each.micro_batch,
                timings=tuple(piece.timings for piece in each.pieces),
                whole=each.whole,
            )
            for each in others
        ),
    )


def in_words(sizes: Sequence[int]) -> str:
    """Numbers of rows as a text has them: ``1, 2 or 4 rows``."""
    *most, last = map(str, sizes)
    words = f"{', '.join(most)} or {last}" if most else last
    return f"{words} {'row' if words == '1' else 'rows'}"


def profile_to_json(profile: Profile) -> str:
    """The profile as an indented JSON document, which `load_profile` reads."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=2).decode()


def load_profile(path: str | Path) -> Profile:
    """Reads a profile that `cutset profile` wrote.

    Raises:
        PlanError: the file cannot be read, is no profile, or of another format version.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: the profile cannot be read: {error}") from error
    return profile_from_json(data, source=str(path))


def profile_from_json(data: str | bytes, *, source: str = "profile") -> Profile:
    """Reads a profile; `source` names it in errors.

    Raises:
        PlanError: it is no profile, or of another format version.
    """
    try:
        profile = msgspec.json.decode(data, type=Profile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PlanError(f"{source}: the profile cannot be read: {error}") from error
    if profile.format != PROFILE_FORMAT:
        raise PlanError(f"{source}: expected format {PROFILE_FORMAT!r}, got {profile.format!r}")
    return profile


def with_backend(profile: Profile, backend: str) -> Profile:
    """The profile as if nothing but one backend had been measured.

    Numbers of rows that it was not measured with go.

    Raises:
        PlanError: a piece has no time with it at `Profile.micro_batch`.
    """
    sizes = tuple(
        msgspec.structs.replace(
            each,
            timings=tuple({backend: timings[backend]} for timings in each.timings),
            whole={backend: each.whole[backend]} if backend in each.whole else {},
        )
        for each in profile.sizes
        if all(backend in timings for timings in each.timings)
    )
    pieces = []
    for piece in profile.pieces:
        timing = piece.timings.get(backend)
        if timing is None:
            raise PlanError(
                f"the profile of {profile.device} has no time with backend {backend!r} for the"
                f" piece that ends with {piece.last!r}; it has {', '.join(piece.timings) or 'none'}"
            )
        pieces.append(msgspec.structs.replace(piece, timings={backend: timing}))
    return msgspec.structs.replace(profile, pieces=tuple(pieces), sizes=sizes)


def with_stages(
    profile: Profile, lasts: Sequence[str], backends: Sequence[str], seconds: Sequence[float]
) -> Profile:
    """The profile with the pieces of stages scaled to add up to what the stages took as wholes.

    Only the timings of a stage's backend are changed, and only those of the stage's pieces.

    Args:
        profile: what was measured piece by piece, with one number of rows.
        lasts: name of the piece that ends each stage, in order; the stages cover all pieces.
        backends: of each stage.
        seconds: of each stage, above 0.

    Raises:
        PlanError: a stage ends where no piece does, or its backend was not measured.
    """
    ends = {piece.last: index + 1 for index, piece in enumerate(profile.pieces)}
    pieces = list(profile.pieces)
    start = 0
    for last, backend, stage_s in zip(lasts, backends, seconds, strict=True):
        stop = ends.get(last, start)
        timings = [piece.timings.get(backend) for piece in pieces[start:stop]]
        known = [timing for timing in timings if timing is not None]
        if not known or len(known) < len(timings):
            raise PlanError(
                f"the profile has no times with backend {backend!r} for a stage that ends with"
                f" {last!r}; measure anew: cutset profile"
            )
        factor = stage_s / math.fsum(timing.median_s for timing in known)
        for index, timing in enumerate(known, start):
            changed = {**pieces[index].timings, backend: timing.scaled(factor)}
            pieces[index] = msgspec.structs.replace(pieces[index], timings=changed)
        start = stop
    return msgspec.structs.replace(profile, pieces=tuple(pieces))


def check_profile(profile: Profile, cuts: CutPoints, micro_batch: int) -> None:
    """Checks that a profile is of these cut points and of so many rows in a micro-batch.

    Raises:
        PlanError: it is of others.
    """
    expected = [*(point.after for point in cuts.points), OUTPUT_NAME]
    actual = [piece.last for piece in profile.pieces]
    if actual != expected:
        at = next((i for i, (a, e) in enumerate(zip(actual, expected, strict=False)) if a != e), -1)
        detail = f"piece {at} ends at {actual[at]!r}, not {expected[at]!r}" if at >= 0 else ""
        raise PlanError(
            f"the profile of {profile.model!r} on {profile.device!r} has {len(actual)} pieces, "
            f"this model has {len(expected)}{'; ' + detail if detail else ''}; profile it again "
            "with the same model, keep, divide and max_tensors"
        )
    if profile.micro_batch != micro_batch:
        raise PlanError(
            f"the profile of {profile.device!r} was made with micro-batches of "
            f"{profile.micro_batch} rows, another one with {micro_batch}; profile it again"
        )
