"""Contracts at the boundaries: links of a bundle, checks of tensors, and errors in our words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from cutset.bundles.manifest import Manifest
from cutset.dtypes import NUMPY_DTYPES, dtype_name
from cutset.errors import ContractViolation, EngineError, StageFailed
from cutset.host import data_memory
from cutset.links.parcels import CALLER, LinkContract
from cutset.planning.plan import Plan
from cutset.runtime.routes import Groups, Routes
from cutset.tensors import TensorSpec, dim_factor

# What torch says when a stage's weights do not fit the tensor it got. Bare, none of them says
# where or why; the splitting guide lists them as the signs of a unit that was cut apart.
_MISFITS = (
    (
        re.compile(r"mat1 and mat2 shapes cannot be multiplied"),
        (
            "a residual block or an inception module was cut apart, or the shard belongs to another"
            " model"
        ),
    ),
    (
        re.compile(r"running_mean should contain \d+ elements"),
        (
            "its normalisation expects other channels: the shard belongs to another model, or a"
            " unit was cut apart"
        ),
    ),
    (
        re.compile(r"expected input.* to have \d+ channels"),
        (
            "its convolution expects other channels: the shard belongs to another model, or a unit"
            " was cut apart"
        ),
    ),
)

_NO_MEMORY = re.compile(
    r"(can't|cannot|failed to|unable to) allocate|bad_alloc|(not enough|out of) memory",
    re.IGNORECASE,
)


def groups_of(plan: Plan) -> Groups:
    """The groups of a plan's stages."""
    return Groups(sizes=tuple(len(stage.group) for stage in plan.stages))


def ends_of(
    links: Sequence[LinkContract], member: int, routes: Routes
) -> tuple[tuple[LinkContract, ...], tuple[LinkContract, ...]]:
    """The links of an epoch over which a member, or the caller, receives and sends."""
    there = {CALLER, *routes.members}
    return (
        tuple(link for link in links if link.receiver == member and link.sender in there),
        tuple(link for link in links if link.sender == member and link.receiver in there),
    )


def links_of(manifest: Manifest, micro_batch: int) -> tuple[LinkContract, ...]:
    """The links of the ring: caller, stages, caller; between groups from each member to each.

    Args:
        manifest: of the bundle.
        micro_batch: rows of the largest micro-batch.

    Returns:
        One link more than there are stages, where no stage has a group.

    Raises:
        ContractViolation: a stage does not take what the one before gives.
    """
    stages = manifest.stages
    for before, after in itertools.pairwise(stages):
        if before.outputs != after.inputs:
            raise ContractViolation(
                f"stage {before.index} gives {_listed(before.outputs)}, but stage {after.index}"
                f" takes {_listed(after.inputs)}; the bundle is broken, split the model again",
                boundary=boundary_into(manifest, after.index),
                expected=_listed(after.inputs),
                actual=_listed(before.outputs),
            )
    groups = groups_of(manifest.plan)
    names = {CALLER: "caller", **{m: groups.name(m) for m in range(len(groups.places))}}
    specs = [*(stage.inputs for stage in stages), stages[-1].outputs]
    codecs = [(), *(stage.output_codecs for stage in stages)]
    ends = [(CALLER,), *groups.members, (CALLER,)]
    pairs = [
        (position, sender, receiver)
        for position, (before, after) in enumerate(itertools.pairwise(ends))
        for sender in before
        for receiver in after
    ]
    return tuple(
        LinkContract(
            index=index,
            name=f"{names[sender]} -> {names[receiver]}",
            specs=specs[position],
            max_rows=micro_batch,
            codecs=codecs[position],
            images=manifest.preprocessing if sender == CALLER and manifest.takes_pixels else None,
            sender=sender,
            receiver=receiver,
            receiver_listens=receiver != CALLER,
        )
        for index, (position, sender, receiver) in enumerate(pairs)
    )


def boundary_into(manifest: Manifest, stage: int) -> str:
    """Name of the boundary before a stage, e.g. ``"into stage 1, after layer3.0"``."""
    if stage == 0:
        return "into stage 0, the model's input"
    return f"into stage {stage}, after {manifest.plan.stages[stage - 1].last}"


def boundary_out_of(manifest: Manifest, stage: int) -> str:
    """Name of the boundary behind a stage, e.g. ``"out of stage 0, after layer2.1"``."""
    if stage == len(manifest.stages) - 1:
        return f"out of stage {stage}, the model's output"
    return f"out of stage {stage}, after {manifest.plan.stages[stage].last}"


def check_tensors(
    tensors: Sequence[np.ndarray], specs: Sequence[TensorSpec], num_rows: int, boundary: str
) -> None:
    """Checks number, rank, shape and dtype of the tensors of one micro-batch.

    Args:
        tensors: what came.
        specs: what was promised.
        num_rows: rows of the micro-batch.
        boundary: where, for the message.

    Raises:
        ContractViolation: something differs.
    """
    if len(tensors) != len(specs):
        raise ContractViolation(
            f"{boundary}: {len(specs)} tensors expected ({_listed(specs)}), {len(tensors)} came",
            boundary=boundary,
            expected=_listed(specs),
            actual=f"{len(tensors)} tensors",
        )
    for tensor, spec in zip(tensors, specs, strict=True):
        # Two dtypes of one name are not equal where their byte order differs.
        fits = tensor.dtype == NUMPY_DTYPES[spec.dtype]
        if not fits or tensor.shape != spec.concrete_shape(num_rows):
            actual = _named(tensor)
            raise ContractViolation(
                f"{boundary}: tensor {spec.name!r} is {actual} where the bundle promises {spec}"
                f" with {num_rows} rows; {_advice(spec, tensor, fits=fits)}",
                boundary=boundary,
                expected=str(spec),
                actual=actual,
            )


def check_micro_batch(micro_batch: int, only: int | None) -> None:
    """Checks the size of micro-batches against the only one that a bundle may run.

    Args:
        micro_batch: rows of a micro-batch.
        only: the manifest's ``micro_batch_only``.

    Raises:
        EngineError: it is another.
    """
    if only not in (None, micro_batch):
        raise EngineError(
            f"the bundle was captured for micro-batches of exactly {only} "
            f"{'row' if only == 1 else 'rows'}, not {micro_batch}; leave the size of micro-batches "
            "out (--batch-size, micro_batch), or split the model again for another"
        )


def check_multiple(num_rows: int, only: int | None) -> None:
    """Checks that a request can be cut into the only micro-batches that a bundle may run.

    Args:
        num_rows: rows of the request.
        only: the manifest's ``micro_batch_only``.

    Raises:
        ContractViolation: rows are left over.
    """
    if only is not None and num_rows % only:
        raise ContractViolation(
            f"into stage 0, the model's input: {num_rows} {'row' if num_rows == 1 else 'rows'}, "
            f"but the bundle was captured for micro-batches of exactly {only} rows; give {only}, "
            f"{2 * only}, ... rows at a time",
            boundary="into stage 0, the model's input",
            expected=f"a multiple of {only} rows",
            actual=f"{num_rows} rows",
        )


def count_rows(tensors: Sequence[np.ndarray], specs: Sequence[TensorSpec]) -> int:
    """How many rows a request has, by the first dimension of its first input with a batch.

    Raises:
        ContractViolation: the number of inputs is wrong, or an input has no first dimension.
        EngineError: there is no row.
    """
    boundary = "into stage 0, the model's input"
    if len(tensors) != len(specs):
        check_tensors(tensors, specs, 0, boundary)
    for tensor, spec in zip(tensors, specs, strict=True):
        factor = dim_factor(spec.shape[0]) if spec.shape else None
        if factor is None:
            continue
        if tensor.ndim == 0:
            check_tensors(tensors, specs, 1, boundary)
        num_rows = int(tensor.shape[0]) // factor
        if num_rows == 0:
            raise EngineError(
                f"input {spec.name!r} of shape {tensor.shape} has no rows; give at least one"
            )
        return num_rows
    return 1


def explain_failure(
    manifest: Manifest, stage: int, device: str, error: Exception, inputs: Sequence[np.ndarray]
) -> StageFailed:
    """Says what went wrong in a stage, where, and the likely cause.

    Args:
        manifest: of the bundle.
        stage: index of the stage that raised.
        device: name of its device.
        error: what the backend raised.
        inputs: what the stage was given.
    """
    plan = manifest.plan.stages[stage]
    given = ", ".join(_named(tensor) for tensor in inputs)
    where = (
        f"stage {stage} ({plan.first} to {plan.last}, on {device}) failed on {given}"
        f" {boundary_into(manifest, stage)}"
    )
    text = " ".join(str(error).split()) or type(error).__name__
    want = want_of_memory(error)
    if want is not None:
        return StageFailed(f"{where}: {want}", stage=stage, device=device)
    for pattern, cause in _MISFITS:
        if pattern.search(text):
            return StageFailed(
                f"{where}: its weights do not fit that tensor. Likely cause: {cause};"
                f" `cutset verify` names the culprit. (The backend said: {text[:300]})",
                stage=stage,
                device=device,
            )
    return StageFailed(f"{where}: {type(error).__name__}: {text[:500]}", stage=stage, device=device)


def want_of_memory(error: Exception) -> str | None:
    """How much memory there was, in words, where `error` says that it was too little; else None."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(text):
        return None
    found = data_memory()
    if found is None:
        return f"out of memory ({text[:300]})"
    held_bytes, limit_bytes = found
    return (
        f"out of memory: the process holds {held_bytes:,} bytes of data, and the bundle's stated"
        f" sizes allow {limit_bytes:,}. (The backend said: {text[:300]})"
    )


def _named(tensor: np.ndarray) -> str:
    return f"{dtype_name(tensor.dtype) or tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _advice(spec: TensorSpec, tensor: np.ndarray, *, fits: bool) -> str:
    if not fits:
        return f"convert it to {spec.dtype}"
    if tensor.ndim != len(spec.shape):
        return f"give it {len(spec.shape)} dimensions"
    return "give it the promised lengths"


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec}" for spec in specs)
