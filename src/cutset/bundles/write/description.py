"""What a bundle says of itself and that may be written anew: its stages stay what they are."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cutset.bundles.consistency import num_classes_of
from cutset.bundles.manifest import Manifest, encode_manifest
from cutset.bundles.open import Bundle, read_manifest
from cutset.bundles.strict_json import MANIFEST_NAME
from cutset.data.images import Preprocessing
from cutset.data.pixels import takes_images
from cutset.errors import BundleError, ModelError
from cutset.planning.plan import Plan
from cutset.tensors import TensorSpec


def replace_plan(bundle: Bundle, plan: Plan) -> None:
    """Writes a bundle's manifest anew, with a plan that says more of the same stages.

    Raises:
        BundleError: it cannot be written; the old one is still there.
    """
    _replace_manifest(bundle.directory, msgspec.structs.replace(bundle.manifest, plan=plan))


def describe_bundle(
    directory: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Tells a bundle how images become its rows, what its classes are called, or both.

    What is not given stays as it was, and so do the stages and all other files.

    Args:
        directory: the bundle's folder.
        preprocessing: of images.
        labels: names of the classes, by index of the first output's last dimension.

    Raises:
        BundleError: it is no bundle, or cannot be written; the old manifest is still there.
        ModelError: it takes other rows than images would become, or has another number of classes.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if preprocessing is not None:
        check_images(preprocessing, manifest.graph.inputs)
        manifest = msgspec.structs.replace(manifest, preprocessing=preprocessing)
    if labels is not None:
        check_labels(labels, manifest.outputs[0])
        manifest = msgspec.structs.replace(manifest, labels=tuple(labels))
    _replace_manifest(directory, manifest)


def check_images(preprocessing: Preprocessing, inputs: Sequence[TensorSpec]) -> None:
    """Refuses preprocessing that gives other rows than a model takes.

    Raises:
        ModelError: the model has several inputs, or its input has other lengths or another dtype.
    """
    height, width = preprocessing.crop
    if not takes_images(preprocessing, inputs):
        raise ModelError(
            f"images would become rows of float32[3, {height}, {width}], but the model takes "
            f"{', '.join(map(str, inputs))}"
        )


def check_labels(labels: Sequence[str], output: TensorSpec) -> None:
    """Refuses labels that are not one for each class.

    Raises:
        ModelError: they are more or fewer than the output's last dimension is long.
    """
    if len(labels) != num_classes_of(output):
        raise ModelError(
            f"{len(labels)} labels for the output {output}: expected one for each entry of its "
            "last dimension"
        )


def _replace_manifest(directory: Path, manifest: Manifest) -> None:
    target = directory / MANIFEST_NAME
    # Beside the bundle: a file within that is not listed would spoil it, were this interrupted.
    folder = directory.absolute()
    fresh = folder.parent / f".{folder.name}-{secrets.token_hex(4)}.json"
    try:
        fresh.write_bytes(encode_manifest(manifest))
        fresh.replace(target)
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
