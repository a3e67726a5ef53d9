"""``manifest.json``, the contract of a bundle: this docstring is the format's specification.

A bundle is a folder::

    NAME.cutset/
      manifest.json            this file; UTF-8 JSON, at most 16 MiB and 2^20 values
      stage-0/program.pt2      the stage for torch (missing where the model was an ONNX file)
      stage-0/model.onnx       the stage for onnxruntime and openvino (may be missing)
      stage-0/model.onnx.data  its weights, where they are larger than 32 MiB
      stage-1/...
      reference.safetensors    a small input and the true tensor at every boundary

The words *must* and *may* below are meant strictly. A reader refuses a bundle that breaks a rule
marked [M] with `ManifestError`, [U] with `UnsafeBundle`, [C] with `ChecksumMismatch`,
[V] with `UnsupportedVersion`; `cutset verify` reports the rules marked [R].

**Version.** ``format`` is ``"cutset-bundle/N"``. It is read before anything else. A reader of
version N refuses a greater one [V] and reads all before it. Every change of this specification gets
a new N. Format 2 adds the keys ``part``, ``micro_batch_only`` and ``torch_settings``; in a document
of format 1 they are unknown keys [M]. Format 3 adds ``output_codecs`` of stages and ``agreement``:
a document without them is of format 2, one of format 2 with them an error [M].

**Keys.** The document is one JSON object with exactly the keys of `Manifest`; objects within it
have exactly the keys of their types. An unknown, missing or wrongly typed key is an error [M] that
names its JSON path (``$.stages[1].flops``); only a key that a later format added may be missing,
and then is null. A key that an object has twice is an error too [M]. A tuple is a JSON array. Key
order means nothing.
Writers write UTF-8 without a byte order mark, sorted by nothing, and end with a newline.

**Part.** Where only a part of the user's model was split, ``part`` names it: the path of the module
(``"backbone"``) and ``work_share``, above 0 and at most 1, the share of the whole model's
multiply-adds that it does [M]. Everything else in the document is of that part. Where ``part`` is
null, the bundle is the whole model.

**One number of rows.** Where ``micro_batch_only`` is a number, at least 1, the model was captured
for that many rows alone: every micro-batch must have exactly as many, those of ``plan`` too [M].
Where it is null, a micro-batch may have any number of rows.

**Settings.** ``torch_settings`` are the process-wide settings of torch under which the model was
captured and the reference computed; a reader that runs a program sets them first. Their names and
values are those of `cutset.capture.setting_values.TORCH_SETTINGS` [M].

**Numbers.** Every number has its range [M]: counts, sizes and multiply-adds 0 to 2^60, seconds and
ratios 0 to 1e300, rows of a micro-batch 1 to 2^24, threads 1 to 1024. A length in a shape is at
most 2^31 - 1, a tensor has at most 64 of them, and its row at most 2^31 bytes where it crosses a
boundary (2^36 with all rows of a micro-batch), 2^40 within a stage.

**Paths.** Every path is relative to the folder, with ``/`` between its parts; a part consists of
ASCII letters, digits, ``.``, ``_``, ``-``, begins with a letter, digit or ``_``, and so is never
``.`` or ``..`` [U]. No file or folder in a bundle may be a symbolic link or anything but a plain
file or folder [U]. The files of stage k lie in ``stage-k/`` and no other stage's do [M].

**Files.** ``files`` lists every file but ``manifest.json``, each once, with its size in bytes and
its sha256 in lower-case hex. A listed file that is missing, or differs in size or hash, is an error
[C]; so is a file or folder that is not listed [U]. A node that runs some stages only may hold
their folders only: the files of other stages may be missing there, and so may the reference.

**Tensors.** ``{"name", "shape", "dtype"}``; a shape holds lengths, ``"batch"`` for the number of
rows, ``"batch*K"`` for K entries a row. The name is that of the operation or model input that makes
the tensor and is unique within the bundle. What crosses a boundary is a model input or the result
of an operation that has one result [M]. At most 65535 tensors cross a boundary [M].

**Graph.** ``graph`` is the whole captured model (see `cutset.graph.ir`): inputs and operations
have distinct names, an operation reads only inputs and earlier operations, ``graph.outputs`` are
names of inputs or of operations with one result, an operation's parameters are listed in
``graph.parameters`` [M].

**Stages.** At least one; ``index`` counts from 0; ``plan.stages`` has as many [M]. Their
``operations``, ``units`` and ``parameters`` are names from the graph [M]. Stage 0 takes the graph's
inputs, stage k+1 takes what stage k returns, and the last stage returns the graph's outputs, by
names [M], shapes and dtypes [R]. A tensor that a later stage needs is passed on by the stages
between. Every operation is in exactly one stage [R]; every parameter is in one, or in several and
then in ``shared_parameters``, or in none and then in ``unused_parameters`` [R]. Every boundary is a
legal cut point of the graph under ``keep``, ``divide`` and ``max_tensors`` [R].

**Programs.** ``program.pt2`` is what `torch.export.save` writes, restricted as ``archive`` and
``decode`` in `cutset.bundles.reading.torch` say [U]: raw tensors, listed operations, no pickle at
all. It takes the stage's ``inputs`` and returns its ``outputs``, in order; holds the
stage's ``parameters`` under their original names and no others [R]; and its calls are the stage's
operations [R]. ``model.onnx`` computes the same, restricted as
`cutset.bundles.reading.onnx_safety` says [U]; where it is null, ``model_missing`` says why [M].

**ONNX alone.** A model that was an ONNX file has no torch program: ``program`` is null in every
stage or in none, and a stage without one has a ``model`` [M]. Such a model holds the stage's
``parameters`` under their original names and no others, and its nodes are the stage's operations,
as `cutset.capture.onnx.operations` reads them [R].

**Reference.** ``reference`` is a safetensors file whose keys are tensor names: the model's inputs,
the tensors of every boundary, the model's outputs, computed by the whole model with
``num_threads`` threads (1 to 1024 [M]), in torch, or in ONNX Runtime where there are no programs.
All have the same number of rows. A key ``rows-N/NAME`` is the same tensor for N rows, the inputs'
rows repeated or cut off to so many; a writer has them for every boundary tensor and output or for
none [R]. Tensors are stored contiguous; where one lies otherwise in the whole model, the file's
metadata have its strides in elements, as JSON by key under ``strides``. Chained stages, each given
its tensors as they lie, must reproduce all of them bit for bit with torch, and within the tolerance
of their dtype with ONNX Runtime [R].

**Codecs.** Where ``output_codecs`` of a stage is there, it names for each of its outputs how that
travels to the next stage: the codec of `cutset.codecs.known_codecs` that ``codec`` of the stage in
``plan`` names, or where that does not take its dtype ``"none"``, or ``"zstd"`` if the codec's name
ends in ``+zstd`` and that takes it [M]; where it takes none of them, the key is missing [M]. The
last stage has no codec [M]. ``"zstd"`` changes no number, and a codec whose name ends in ``+zstd``
those that the codec before the ``+`` does: where no codec changes numbers, reference and answers
are the model's, and ``agreement`` is missing [M]. Else the next stage computes with what arrives,
so the reference of such a bundle is the whole model with the same codecs at the same places: its
boundary tensors are those before they are written, its outputs those that come of it [R]. A key
``exact output/NAME`` is that output of the model without codecs. ``agreement`` says how far the two
were apart on the rows that ``split`` was given: of ``num_rows`` rows ``num_same`` had the same top
label (null where the first output has no classes), and no output differed by more than
``max_abs_error``; ``num_rows`` is 1 to 2^24, ``num_same`` at most that [M].

**Pixels.** Where ``input_codec`` of ``plan`` is ``"uint8-image"`` and not ``"none"``, rows that
come from images travel to the first stage as uint8 [rows, height, width, 3], resized and cropped,
and become its input there as ``preprocessing`` says, which must be of that input [M]. Such a bundle
is of format 3 too.

**Words.** ``output_names`` has as many entries as ``outputs``; ``labels`` are in the order of the
first output's last dimension, whose length is their number [M].
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec

from cutset.bundles.agreement import AgreementEntry
from cutset.bundles.coded_boundaries import CODED_FORMAT, change_numbers
from cutset.bundles.consistency import check_manifest
from cutset.bundles.file_entries import FileEntry, sha256_of
from cutset.bundles.strict_json import MANIFEST_NAME, contradiction, repeated_key
from cutset.codecs.known_codecs import PIXELS
from cutset.data.images import Preprocessing
from cutset.errors import ManifestError, UnsupportedVersion
from cutset.graph.ir import Graph
from cutset.planning.plan import Plan
from cutset.ranges import Count, PositiveCount, Rows, Threads
from cutset.tensors import TensorSpec

BUNDLE_FORMAT = "cutset-bundle/2"
READABLE_FORMATS = ("cutset-bundle/1", BUNDLE_FORMAT, CODED_FORMAT)
MAX_MANIFEST_BYTES = 16 << 20
MAX_MANIFEST_VALUES = 1 << 20

_FORMAT = re.compile(r"cutset-bundle/([1-9][0-9]{0,8})")
_JSON_PATH = re.compile(r" - at `(.+)`$")


class PartEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which part of the user's model a bundle holds.

    Attributes:
        path: the module's path in the model, e.g. ``"backbone"``.
        work_share: the share of the whole model's multiply-adds that it does, above 0, at most 1.
    """

    path: str
    work_share: float


class StageEntry(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One stage of the bundle.

    Attributes:
        index: its place in the pipeline, from 0.
        operations: names of its operations in the graph, in execution order.
        units: paths of the units that it holds.
        parameters: original names of the parameters, buffers and constants that it holds.
        inputs: the tensors that it takes, in the order of its program's arguments.
        outputs: the tensors that it returns, in the order of its program's results.
        program: path of the torch program (``stage-0/program.pt2``), or None where the model was
            an ONNX file.
        model: path of the ONNX model (``stage-0/model.onnx``), or None where ONNX cannot
            express the stage; then `model_missing` says why.
        model_missing: why there is no ONNX model, or "".
        weight_bytes: bytes of what `parameters` names.
        peak_activation_bytes: most bytes of activations alive at once, for one row.
        flops: multiply-adds for one row.
        output_codecs: of each output, the codec with which it travels to the next stage; empty
            where all travel as they are.
    """

    index: Count
    operations: tuple[str, ...]
    units: tuple[str, ...]
    parameters: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    program: str | None
    model: str | None
    model_missing: str
    weight_bytes: Count
    peak_activation_bytes: Count
    flops: Count
    output_codecs: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole contract.

    Attributes:
        format: one of `READABLE_FORMATS`.
        created_by: versions of what wrote the bundle, e.g. ``{"cutset": "0.1.0", "torch": ...}``.
        model: the model's name as it was given, e.g. ``"torchvision:resnet50"``.
        weights: where the weights came from, in words.
        keep: classes that the caller made units.
        divide: classes that the caller allowed to be cut between their children.
        max_tensors: how many tensors were allowed to cross a cut.
        graph: the whole captured model; `verify` judges the cuts by it.
        stages: in pipeline order.
        outputs: the model's outputs, in order, by their tensors' names.
        output_names: how the caller knows the outputs: keys of a dict, or ``"0"``, ``"1"``, ...
        shared_parameters: parameters that several stages hold.
        unused_parameters: parameters that no stage uses (auxiliary heads that only train).
        plan: the plan that made the stages.
        preprocessing: how images become rows, or None.
        labels: names of the classes, by index of the first output's last dimension, or None.
        reference: path of the reference tensors.
        num_threads: threads with which the reference tensors were computed.
        files: every other file of the bundle; nothing else may be in the folder.
        part: the part of the user's model that the bundle holds, or None where it is the whole.
        micro_batch_only: the only number of rows that a micro-batch may have, or None for any.
        torch_settings: process-wide settings of torch at capture, or None where they are unknown or
            torch had no part in it.
        agreement: with the exact model, where stages have codecs.
    """

    format: str
    created_by: dict[str, str]
    model: str
    weights: str
    keep: tuple[str, ...]
    divide: tuple[str, ...]
    max_tensors: PositiveCount
    graph: Graph
    stages: tuple[StageEntry, ...]
    outputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]
    shared_parameters: tuple[str, ...]
    unused_parameters: tuple[str, ...]
    plan: Plan
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    reference: str
    num_threads: Threads
    files: tuple[FileEntry, ...]
    part: PartEntry | None = None
    micro_batch_only: Rows | None = None
    torch_settings: dict[str, str] | None = None
    agreement: AgreementEntry | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_coded(self) -> bool:
        """Whether its stages compute with other numbers than those that were sent to them."""
        return any(change_numbers(stage.output_codecs) for stage in self.stages)

    @property
    def takes_pixels(self) -> bool:
        """Whether images travel to the first stage as pixels, where rows come from images."""
        return self.plan.input_codec == PIXELS

    @property
    def has_programs(self) -> bool:
        """Whether the stages have torch programs, and torch made the reference."""
        return all(stage.program is not None for stage in self.stages)


def manifest_file(folder: Path) -> FileEntry:
    """The manifest of the bundle in `folder` as a file, which `Manifest.files` does not list."""
    path = folder / MANIFEST_NAME
    return FileEntry(path=MANIFEST_NAME, num_bytes=path.stat().st_size, sha256=sha256_of(path))


class _Version(msgspec.Struct, frozen=True):
    """What is read before all else: the version, and whether keys of later ones are there."""

    format: str
    part: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    micro_batch_only: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    torch_settings: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def format_of(plan: Plan) -> str:
    """The version of a bundle of a plan: one without codecs keeps what older readers know."""
    return CODED_FORMAT if plan.has_codecs else BUNDLE_FORMAT


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as it is written to disk, after checking that it can be read again.

    Raises:
        ManifestError: it contradicts itself, or holds what JSON cannot express (an infinite
            number).
        UnsafeBundle: a path in it is not permitted.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    decode_manifest(data)
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Reads and checks the content of a manifest.json.

    Raises:
        UnsupportedVersion: it is of a newer format.
        ManifestError: it is no JSON, has an unknown or wrong key, or contradicts itself; `path`
            is the JSON path of the place.
        UnsafeBundle: a path in it is not permitted.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{MANIFEST_NAME}: {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are read", path="$"
        )
    # Each value but the first of its array or object has a comma before it.
    if (num_values := data.count(b",")) > MAX_MANIFEST_VALUES:
        raise ManifestError(
            f"{MANIFEST_NAME}: about {num_values} values, at most {MAX_MANIFEST_VALUES} are read",
            path="$",
        )
    head = _decode(data, _Version)
    version = head.format
    match = _FORMAT.fullmatch(version)
    if match is not None and version not in READABLE_FORMATS:
        raise UnsupportedVersion(
            f"{MANIFEST_NAME}: format {version[:60]!r}, this Cutset reads {CODED_FORMAT!r}; "
            f"update Cutset, or split the model again with this version",
            path=MANIFEST_NAME,
            expected=CODED_FORMAT,
            actual=version,
        )
    if match is None:
        raise contradiction("$.format", f"is {version[:60]!r}, expected {CODED_FORMAT!r}")
    if version == READABLE_FORMATS[0]:
        for key in ("part", "micro_batch_only", "torch_settings"):
            if getattr(head, key) is not msgspec.UNSET:
                raise contradiction(f"$.{key}", f"is a key that {version!r} does not have")
    manifest = _decode(data, Manifest)
    _check_keys(data)
    check_manifest(manifest)
    return manifest


def _check_keys(data: bytes) -> None:
    try:
        path = repeated_key(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST_NAME}: not JSON: {error}", path="$") from error
    if path is not None:
        raise contradiction(path, "is there twice")


_T = TypeVar("_T")


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _JSON_PATH.search(text)
        raise ManifestError(f"{MANIFEST_NAME}: {text}", path=found[1] if found else "$") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST_NAME}: not JSON: {error}", path="$") from error
