"""All codecs by name, and which of them writes a tensor.

A codec is one file of this package and a line here. Both ends of a link must know it, so none is
added from outside.
"""

from __future__ import annotations

from collections.abc import Sequence

from cutset.codecs.coding import Codec
from cutset.codecs.fp16 import Fp16
from cutset.codecs.int8 import Int8
from cutset.codecs.packed import Packed, Same
from cutset.codecs.packing import PACKER
from cutset.tensors import TensorSpec

NONE = "none"
"""The name under which tensors travel as they are."""

PIXELS = "uint8-image"
"""The name under which a model's inputs travel as pixels; `cutset.data.images` reads them."""

_LOSSY: tuple[Codec, ...] = (Fp16(), Int8())
_PACKED = tuple(Packed(codec) for codec in (Same(), *_LOSSY))

CODECS: dict[str, Codec] = {codec.name: codec for codec in (*_LOSSY, *_PACKED)}
"""By name, the milder first; ``"fp16+zstd"`` is ``"fp16"``, packed."""

ALLOWABLE = (*(codec.name for codec in _LOSSY), PACKER)
"""What a user may allow; a packer with a codec allows both together too."""


def allowed_codecs(allowed: Sequence[str]) -> tuple[str, ...]:
    """Names of the codecs that a plan may use where a user allowed some of `ALLOWABLE`."""
    lossy = [name for name in CODECS if name in allowed and name != PACKER]
    packed = [PACKER, *(f"{name}+{PACKER}" for name in lossy)] if PACKER in allowed else []
    return (*lossy, *packed)


def lossy_part(name: str) -> str:
    """The codec that decides which numbers arrive; `NONE` where those that were sent do."""
    lossy = name.partition("+")[0]
    return lossy if lossy in CODECS and CODECS[lossy].lossy else NONE


def codec_names(choice: str, specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """The codec of each tensor of a boundary where `choice` was chosen for it.

    What a codec does not take, whole numbers above all, travels as it is, or packed where the
    others are.

    Args:
        choice: `NONE` or a key of `CODECS`.
        specs: the tensors that cross.

    Raises:
        ValueError: there is no such codec.
    """
    if choice == NONE:
        return (NONE,) * len(specs)
    if choice not in CODECS:
        raise ValueError(f"codec {choice!r} is unknown; there are {', '.join((NONE, *CODECS))}")
    codec = CODECS[choice]
    others = {PACKER: CODECS[PACKER].dtypes} if codec.packs else {}
    return tuple(
        next(
            (name for name, own in {choice: codec.dtypes, **others}.items() if spec.dtype in own),
            NONE,
        )
        for spec in specs
    )
