"""Models of other packages: a source is a function that an entry point of theirs names."""

from __future__ import annotations

import dataclasses

from cutset.errors import CutsetError, ModelError
from cutset.extensions import extension_names, find_extension
from cutset.models.found import FoundModel
from cutset.models.from_file import found_of, with_weights
from cutset.models.weights_request import NamedWeights, WeightsRequest

GROUP = "cutset.models"
"""The entry points by which other packages add sources of models."""


def source_names() -> tuple[str, ...]:
    """The sources that installed packages add, for messages."""
    return extension_names(GROUP)


def find_in_package(spec: str, request: WeightsRequest | None) -> FoundModel | None:
    """Asks the source that ``SOURCE:NAME`` names for a model; None where there is no such source.

    A source is called as ``source(name, weights)``, where `weights` is the name that the user gave
    for the weights, or None; files of weights and random ones are put into the model afterwards.
    It gives what a factory of a ``FILE.py`` may give; where it was asked for weights by name, a
    `FoundModel`, which says what they are.

    Args:
        spec: all that the user wrote.
        request: the weights that were asked for.

    Raises:
        ModelError: the source cannot be imported or is no function, it raises or gives something
            else, or it knows no such weights.
        WeightsMismatch: a file of weights is for another model.
    """
    source_name, _colon, name = spec.partition(":")
    source = find_extension(GROUP, source_name, ModelError)
    if source is None:
        return None
    if not callable(source):
        raise ModelError(
            f"{source_name!r} (entry points {GROUP!r}) is {source!r}; expected a function of a name"
            " and weights"
        )
    weights = request.name if isinstance(request, NamedWeights) else None
    try:
        made = source(name, weights)
    except CutsetError:
        raise
    except Exception as error:
        raise ModelError(f"{spec} raised {type(error).__name__}: {error}") from error
    found = found_of(made, spec)
    has_them = weights is not None and isinstance(made, FoundModel)
    return dataclasses.replace(with_weights(found, None if has_them else request), name=spec)
