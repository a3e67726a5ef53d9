"""All codecs by name, and which of them writes a tensor.

A codec is one file of this package and a line here. Both ends of a link must know it, so none is
added from outside.
"""

from __future__ import annotations

from cutset.codecs.coding import Codec
from cutset.codecs.fp16 import Fp16
from cutset.codecs.int8 import Int8
from cutset.tensors import TensorSpec

NONE = "none"
"""The name under which tensors travel as they are."""

PIXELS = "uint8-image"
"""The name under which a model's inputs travel as pixels; `cutset.data.images` reads them."""

CODECS: dict[str, Codec] = {codec.name: codec for codec in (Fp16(), Int8())}
"""By name."""


def codec_names(choice: str, specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """The codec of each tensor of a boundary where `choice` was chosen for it.

    What a codec does not take, whole numbers above all, travels as it is.

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
    dtypes = CODECS[choice].dtypes
    return tuple(choice if spec.dtype in dtypes else NONE for spec in specs)
