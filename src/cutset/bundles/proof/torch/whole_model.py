"""The whole model, which is the caller's and runs in his process, beside a bundle's reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from cutset.bundles.open import Bundle
from cutset.bundles.proof.torch.running_checks import expected_tensors, model_differences
from cutset.bundles.reference import Reference, read_reference
from cutset.errors import ManifestError

_RUN_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)


def opened_reference(bundle: Bundle) -> Reference:
    """The reference tensors of an opened bundle.

    Raises:
        ManifestError: they are missing, or are not those that the manifest describes.
    """
    relative = bundle.manifest.reference
    file = bundle.path(relative)
    found: Reference = {}
    if file.exists():
        found, faults = read_reference(
            file, expected_tensors(bundle.manifest), bundle.manifest.graph.inputs
        )
    else:
        faults = (f"{relative} is missing; without it no number can be checked",)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ManifestError(f"{bundle.directory}: {faults[0]}{more}", path="$.reference")
    return found


def model_faults(
    bundle: Bundle,
    references: Reference,
    model: torch.nn.Module,
    call: Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], Any],
) -> tuple[str, ...]:
    """What the whole model gives otherwise, and at which numbers of rows, in words."""
    alike: list[int] = []
    fault = ""
    for num_rows, reference in references.items():
        try:
            found = model_differences(bundle, model, reference, call)
        except _RUN_ERRORS as error:
            return (f"the given model does not run on the reference's inputs: {error}",)
        if not found:
            alike.append(num_rows)
        elif not fault:
            fault = (
                f"the given model differs from the reference at output {found[0].tensor!r} with "
                f"{count(num_rows, 'row')} by {found[0].max_abs_error:.6g}"
            )
    if not fault:
        return ()
    if not alike:
        return (f"{fault}: other weights, or another model",)
    advice = "Split it for one number alone: --micro-batch-only N (micro_batch_only=N)"
    alike_at = rows_in_words(alike)
    why = "it computes a row otherwise by how many there are"
    return (f"{fault}, and equals it with {alike_at}: {why}. {advice}",)


def rows_in_words(numbers: Iterable[int]) -> str:
    """``"1, 2 and 5 rows"``."""
    counts = sorted(numbers)
    named = ", ".join(map(str, counts[:-1])) + " and " if len(counts) > 1 else ""
    return f"{named}{count(counts[-1], 'row')}"


def count(number: int, noun: str) -> str:
    """``"1 row"``, ``"2 boundaries"``."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
