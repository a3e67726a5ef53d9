"""Which weights the archive of a stage program holds: where each lies, and how it is laid out."""

from __future__ import annotations

import math
import re

from cutset.bundles.reading.torch.archive import CONSTANTS_CONFIG, WEIGHTS_CONFIG
from cutset.bundles.reading.torch.program import Weight
from cutset.bundles.reading.torch.program_text import DTYPES, MAX_DIMS, STRIDED, ProgramText
from cutset.bundles.reading.torch.schema import PayloadConfig, TensorMeta

_MAX_WEIGHT_BYTES = 1 << 47
_WEIGHT_NAME = re.compile(r"[A-Za-z_0-9][A-Za-z0-9_.\-]{0,511}")
_MEMBER = re.compile(r"(weight|tensor)_[0-9]{1,7}")


def stored_weights(text: ProgramText) -> dict[str, Weight]:
    """Every weight that the archive holds, by original name."""
    stored: dict[str, Weight] = {}
    for config, folder in (
        (WEIGHTS_CONFIG, "data/weights"),
        (CONSTANTS_CONFIG, "data/constants"),
    ):
        for name, payload in text.decode(config, PayloadConfig).config.items():
            where = f"{config}: weight {name!r}"
            if payload.use_pickle or payload.tensor_meta is None:
                raise text.refusal(where, "is pickled")
            if not _WEIGHT_NAME.fullmatch(name) or name in stored:
                raise text.refusal(where, "is no name, or is there twice")
            if not _MEMBER.fullmatch(payload.path_name):
                raise text.refusal(where, f"lies in {payload.path_name!r}")
            stored[name] = _weight(
                text, name, f"{folder}/{payload.path_name}", payload.tensor_meta, where
            )
    return stored


def _weight(text: ProgramText, name: str, member: str, meta: TensorMeta, where: str) -> Weight:
    dtype = DTYPES.get(meta.dtype)
    if dtype is None or meta.layout != STRIDED:
        raise text.refusal(where, f"has dtype {meta.dtype} and layout {meta.layout}")
    lengths = []
    for union in (*meta.sizes, *meta.strides, meta.storage_offset):
        kind, value = text.one(union, where)
        if kind != "as_int" or type(value) is not int or not 0 <= value < 1 << 48:
            raise text.refusal(where, f"has the length {value!r}")
        lengths.append(value)
    num_dims = len(meta.sizes)
    if len(meta.strides) != num_dims or num_dims > MAX_DIMS:
        raise text.refusal(where, "has other numbers of sizes and strides")
    sizes, strides, offset = lengths[:num_dims], lengths[num_dims:-1], lengths[-1]
    if math.prod(sizes) * dtype.itemsize > _MAX_WEIGHT_BYTES:
        raise text.refusal(where, f"claims the shape {sizes}, larger than any memory")
    # The last element that the view touches must lie within the member.
    end = (
        0
        if 0 in sizes
        else offset + 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    )
    if end * dtype.itemsize > text.archive.num_bytes(member):
        raise text.refusal(
            where,
            f"claims {end * dtype.itemsize} bytes of {member}, which has "
            f"{text.archive.num_bytes(member)}",
        )
    return Weight(
        name=name,
        member=member,
        dtype=dtype,
        sizes=tuple(sizes),
        strides=tuple(strides),
        offset=offset,
        requires_grad=meta.requires_grad and (dtype.is_floating_point or dtype.is_complex),
    )
