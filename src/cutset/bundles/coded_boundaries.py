"""Codecs at a bundle's boundaries: what a manifest may say of them, and what arrives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cutset.bundles.strict_json import contradiction
from cutset.codecs.coding import round_trip
from cutset.codecs.known_codecs import CODECS, NONE, PIXELS, codec_names, lossy_part
from cutset.data.pixels import takes_images
from cutset.tensors import TensorSpec

if TYPE_CHECKING:
    from cutset.bundles.manifest import Manifest

CODED_FORMAT = "cutset-bundle/3"
"""The format of a bundle that has codecs."""


def check_codecs(manifest: Manifest) -> None:
    """Every codec is known and takes its tensor; version and agreement say that there are some.

    Raises:
        ManifestError: that is not so; `path` is the JSON path of the place.
    """
    last = len(manifest.stages) - 1
    for index, (stage, plan) in enumerate(zip(manifest.stages, manifest.plan.stages, strict=True)):
        known = (NONE, *CODECS) if index < last else (NONE,)
        if plan.codec not in known:
            raise contradiction(
                f"$.plan.stages[{index}].codec",
                f"is {plan.codec[:60]!r}, expected {' or '.join(known)}",
            )
        if stage.output_codecs != chosen_codecs(plan.codec, stage.outputs):
            raise contradiction(
                f"$.stages[{index}].output_codecs",
                f"are not those that {plan.codec!r}, the plan's, gives these outputs",
            )
    input_codec, images = manifest.plan.input_codec, manifest.preprocessing
    if input_codec not in (NONE, PIXELS):
        raise contradiction(
            "$.plan.input_codec", f"is {input_codec[:60]!r}, expected {NONE!r} or {PIXELS!r}"
        )
    if input_codec == PIXELS and (
        images is None or not takes_images(images, manifest.graph.inputs)
    ):
        raise contradiction("$.plan.input_codec", f"is {PIXELS!r}, but no image becomes the input")
    if manifest.plan.has_codecs != (manifest.format == CODED_FORMAT):
        raise contradiction("$.format", f"is {CODED_FORMAT!r} exactly where there are codecs")
    agreement = manifest.agreement
    if manifest.is_coded == (agreement is msgspec.UNSET):
        raise contradiction("$.agreement", "is there exactly where codecs change numbers")
    if agreement is not msgspec.UNSET and (agreement.num_same or 0) > agreement.num_rows:
        raise contradiction(
            "$.agreement.num_same",
            f"is {agreement.num_same}, expected at most num_rows, {agreement.num_rows}",
        )


def chosen_codecs(choice: str, outputs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """`StageEntry.output_codecs` where a plan has chosen a codec: of each, or none at all."""
    names = codec_names(choice, outputs)
    return names if any(name != NONE for name in names) else ()


def change_numbers(codecs: Iterable[str]) -> bool:
    """Whether one of some codecs, by name, lets other numbers arrive than were sent."""
    return any(lossy_part(name) != NONE for name in codecs)


def codecs_in_words(manifest: Manifest) -> str:
    """Which codecs a bundle has, and where: ``"fp16 after stage 0, int8 after stage 1"``."""
    return ", ".join(
        f"{name} after stage {stage.index}"
        for stage in manifest.stages
        for name in dict.fromkeys(stage.output_codecs)
        if name != NONE
    )


def as_received(
    outputs: Sequence[TensorSpec],
    codecs: Sequence[str],
    tensors: Mapping[str, np.ndarray],
    num_rows: int,
) -> dict[str, np.ndarray]:
    """Tensors by name as the stage after a boundary gets them; packing changes none.

    Args:
        outputs: the tensors that cross.
        codecs: of each of them; empty where all travel as they are.
        tensors: by name, dense; more than those that cross.
        num_rows: rows of each.

    Raises:
        CodecError: a codec refuses a number.
    """
    arrived = {
        spec.name: round_trip(CODECS[lossy], tensors[spec.name], spec, num_rows)
        for spec, name in zip(outputs, codecs or (NONE,) * len(outputs), strict=True)
        if (lossy := lossy_part(name)) != NONE
    }
    return {**tensors, **arrived}
