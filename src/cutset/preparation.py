"""A model that is captured and whose positions are judged: what everything else begins with."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

import torch

from cutset.errors import CaptureError, ModelError
from cutset.graph.capture import capture_model
from cutset.graph.captured import Captured
from cutset.graph.cuts import CutPoints, find_cut_points
from cutset.graph.independence import check_rows
from cutset.graph.onnx_capture import capture_onnx
from cutset.graph.onnx_model import OnnxModule
from cutset.graph.parts import CapturedPart, capture_largest_part
from cutset.models import FoundModel, find_model
from cutset.notebooks import drawn
from cutset.runtime.arrays import to_tensor

if TYPE_CHECKING:
    from cutset.runtime.session import Session

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Takes a few words about the step that begins."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model, captured, with its positions judged.

    Attributes:
        found: the model with its weights, preprocessing and labels.
        captured: its graph, or that of `part`.
        cuts: where it may be cut.
        keep: classes that were made units.
        divide: classes that were allowed to be cut between their children.
        part: what is split of a model that cannot be captured whole; None where all of it is.
        refusal: why the whole cannot be captured, in words, or ``""``.
    """

    found: FoundModel
    captured: Captured
    cuts: CutPoints
    keep: tuple[str, ...]
    divide: tuple[str, ...]
    part: CapturedPart | None = None
    refusal: str = ""

    @property
    def module(self) -> torch.nn.Module:
        """The module that was captured: the model, or its part."""
        return self.found.model.get_submodule(self.part.path if self.part else "")

    @property
    def name(self) -> str:
        """The model's name, and its part's where a part is captured."""
        return f"{self.found.name}, part {self.part.path}" if self.part else self.found.name

    def _repr_html_(self) -> str | None:
        return drawn("model_html", self.name, self.captured.graph, self.cuts)

    @contextlib.contextmanager
    def part_in(
        self, session: Session, *, model: torch.nn.Module | None = None
    ) -> Iterator[torch.nn.Module]:
        """Within the context the model leaves its part's work to a session, and is itself else.

        The results are those of the model alone, bit for bit where the session has the torch
        backend, micro-batches of as many rows as the part is called with, and as many threads.
        The part takes what it was captured with in all but the number of rows: other lengths (a
        detector's images of another size) are a `ContractViolation`.

        Args:
            session: of a bundle of this part.
            model: the caller's own object with the weights that the bundle was made from; the
                model that was found if None.

        Raises:
            ModelError: the model is captured whole, or the session's bundle holds something else.
        """
        if self.part is None:
            raise ModelError(f"{self.name} is split whole: call the session, it is the model")
        manifest = session.bundle.manifest
        ours, theirs = self.captured.graph, manifest.graph
        if (ours.inputs, ours.outputs) != (theirs.inputs, theirs.outputs) or (
            self.captured.output_names != manifest.output_names
        ):
            raise ModelError(
                f"the session's bundle holds {manifest.model!r}, which takes or returns other "
                f"tensors than {self.name!r}; split that, and open a session with its bundle"
            )

        def run(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            answer = session.run(*inputs)
            answers = answer.values() if isinstance(answer, dict) else (answer,)
            return tuple(to_tensor(array) for array in answers)

        with self.part.run_elsewhere(self.found.model if model is None else model, run) as whole:
            yield whole


def prepare_model(
    spec: str,
    *,
    weights: str | None = None,
    keep: Collection[str] = (),
    divide: Collection[str] = (),
    max_tensors: int = 1,
    say: Say | None = None,
) -> PreparedModel:
    """Finds a model, captures it and judges its positions.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``FILE.py:FACTORY``, ``FILE.pt2`` or
            ``FILE.onnx``.
        weights: as `find_model` takes them.
        keep: as `prepare_found` takes it, like the next three.
        divide: likewise.
        max_tensors: likewise.
        say: likewise.

    Raises:
        ModelError: the model or its weights cannot be found, or the model cannot be captured.
        PlanError: `keep` or `divide` names a class that the model does not call.
    """
    say = say or say_nothing
    say(f"building {spec}")
    found = find_model(spec, weights=weights)
    return prepare_found(found, keep=keep, divide=divide, max_tensors=max_tensors, say=say)


def prepare_found(
    found: FoundModel,
    *,
    keep: Collection[str] = (),
    divide: Collection[str] = (),
    max_tensors: int = 1,
    say: Say | None = None,
) -> PreparedModel:
    """Captures a model that is at hand and judges its positions.

    A model that cannot be captured, because it decides on values, may have a part that does not
    and can be cut: the backbone of a detector. Then that part is what is prepared.

    Args:
        found: the model with its example inputs.
        keep: classes to make units.
        divide: classes that may be cut between their children.
        max_tensors: how many tensors may cross a cut.
        say: told of every step.

    Raises:
        CaptureError: neither the model nor a part of it that has a cut point can be captured, or
            a row's result depends on the rows beside it.
        PlanError: `keep` or `divide` names a class that the model does not call.
    """
    say = say or say_nothing
    say(f"capturing {found.name}")
    part: CapturedPart | None = None
    refused = ""
    captured: Captured
    try:
        if isinstance(found.model, OnnxModule):
            onnx = capture_onnx(found.model)
            for note in onnx.notes:
                logger.warning("%s: %s", found.name, note)
            # What is compared from here on is the model with a free number of rows.
            found = dataclasses.replace(
                found, model=onnx.module, example_inputs=onnx.example_inputs
            )
            captured = onnx
        else:
            captured = capture_model(found.model, found.example_inputs)
    except CaptureError as refusal:
        if isinstance(found.model, OnnxModule):
            raise
        say("looking for a part that can be captured")
        part = _part_with_cuts(found, max_tensors, refusal)
        captured, refused = part.captured, str(refusal)
    say("trying whether rows are independent of each other")
    check_rows(captured, found.model.get_submodule(part.path) if part else found.model)
    cuts = find_cut_points(captured.graph, keep=keep, divide=divide, max_tensors=max_tensors)
    return PreparedModel(
        found=found,
        captured=captured,
        cuts=cuts,
        keep=tuple(keep),
        divide=tuple(divide),
        part=part,
        refusal=refused,
    )


def _part_with_cuts(found: FoundModel, max_tensors: int, refusal: CaptureError) -> CapturedPart:
    """The largest part that can be captured and cut.

    Raises:
        CaptureError: there is none; says why the whole cannot be captured.
    """
    try:
        part = capture_largest_part(found.model, found.example_inputs, max_tensors=max_tensors)
    except Exception as error:  # noqa: BLE001 - a model may fail on its example in any way
        logger.debug("no part of %s can be captured: %s", found.name, error)
        raise refusal from None
    if not find_cut_points(part.captured.graph, max_tensors=max_tensors).points:
        raise refusal
    logger.info("%s cannot be captured (%s); its part %s can", found.name, refusal, part.path)
    return part


def say_nothing(_text: str) -> None:
    """Is told of a step and keeps it to itself."""
