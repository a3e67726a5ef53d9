"""A model that is captured and whose positions are judged: what everything else begins with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from cutset.bundles.manifest import PartEntry
from cutset.capture.arguments import ExampleInputs
from cutset.capture.captured import Captured
from cutset.capture.capturing import capture
from cutset.errors import ModelError
from cutset.graph.cuts import CutPoints, CutRule, find_cut_points
from cutset.models import FoundModel, find_model
from cutset.notebooks import drawn
from cutset.progress import Progress, no_progress
from cutset.workflow.cut_rules import installed_cut_rules

if TYPE_CHECKING:
    import torch

    from cutset.capture.parts import CapturedPart
    from cutset.runtime.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model, captured, with its positions judged.

    Attributes:
        found: the model with its weights, preprocessing and labels.
        captured: its graph, or that of `part`.
        cuts: where it may be cut.
        keep: classes that were made units.
        divide: classes that were allowed to be cut between their children.
        cut_rules: those of other packages, which refused positions besides.
        part: what is split of the model, since the caller named it; None where all of it is.
    """

    found: FoundModel
    captured: Captured
    cuts: CutPoints
    keep: tuple[str, ...]
    divide: tuple[str, ...]
    cut_rules: tuple[CutRule, ...] = ()
    part: CapturedPart | None = None

    @property
    def module(self) -> Any:
        """The module that was captured: the model, or its part."""
        return self.captured.module

    @property
    def name(self) -> str:
        """The model's name, and where a part is captured also that and its share of the work."""
        return f"{self.found.name}, part {self.part}" if self.part else self.found.name

    @property
    def part_entry(self) -> PartEntry | None:
        """The part as bundles and documents name it; None where the whole model is captured."""
        if self.part is None:
            return None
        return PartEntry(path=self.part.path, work_share=self.part.work_share)

    def _repr_html_(self) -> str | None:
        return drawn("model_html", self.name, self.captured.graph, self.cuts)

    @contextlib.contextmanager
    def part_in(
        self, session: Session, *, model: torch.nn.Module | None = None
    ) -> Iterator[torch.nn.Module]:
        """Within the context a session computes the model's part; the rest stays as it is.

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
            return tuple(session.run_named(*inputs).values())

        with self.part.run_elsewhere(self.found.model if model is None else model, run) as whole:
            yield whole


def prepare_model(  # noqa: PLR0913  # what one may say of a model; each has a default
    model: str | torch.nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    weights: str | None = None,
    keep: Collection[str] = (),
    divide: Collection[str] = (),
    max_tensors: int = 1,
    part: str | None = None,
    micro_batch_only: int | None = None,
    progress: Progress | None = None,
) -> PreparedModel:
    """Finds a model, captures it and judges its positions.

    Args:
        model: ``torchvision:NAME``, ``timm:NAME``, ``FILE.py:FACTORY``, ``FILE.pt2``,
            ``FILE.onnx``, or a module, which is put into evaluation mode.
        example_inputs: what a module is called with, two rows or more: a tensor, a tuple of
            positional or a dict of keyword arguments, or `cutset.models.Arguments`.
        weights: as `find_model` takes them.
        keep: as `prepare_found` takes it, like the next five.
        divide: likewise.
        max_tensors: likewise.
        part: likewise.
        micro_batch_only: likewise.
        progress: likewise.

    Raises:
        ModelError: the model, its weights or the part cannot be found.
        CaptureError: as for `prepare_found`.
        PlanError: `keep` or `divide` names a class that the model does not call.
    """
    progress = progress or no_progress
    progress(f"building {model}" if isinstance(model, str) else "looking at the module")
    found = find_model(model, example_inputs, weights=weights)
    return prepare_found(
        found,
        keep=keep,
        divide=divide,
        max_tensors=max_tensors,
        part=part,
        micro_batch_only=micro_batch_only,
        progress=progress,
    )


def prepare_found(
    found: FoundModel,
    *,
    keep: Collection[str] = (),
    divide: Collection[str] = (),
    max_tensors: int = 1,
    part: str | None = None,
    micro_batch_only: int | None = None,
    progress: Progress | None = None,
) -> PreparedModel:
    """Captures a model that is at hand and judges its positions.

    A model that cannot be captured, because it decides on values, may have a part that does not
    and can be cut: the backbone of a detector. Such a part gives other results than the model, so
    it is prepared only where `part` names it.

    Args:
        found: the model with its example inputs.
        keep: classes to make units.
        divide: classes that may be cut between their children.
        max_tensors: how many tensors may cross a cut.
        part: dotted path of the module to prepare instead of the whole model.
        micro_batch_only: the only number of rows that micro-batches will have, for a model that
            computes a row otherwise by how many there are; None for any number.
        progress: told of every step.

    Raises:
        ModelError: the model has no such part.
        CaptureError: the model cannot be captured (its `parts` could be, if they were named), or
            a row's result depends on the rows beside it.
        PlanError: `keep` or `divide` names a class that the model does not call, or a cut rule of
            another package fails.
    """
    progress = progress or no_progress
    progress(f"capturing {found.name}")
    captured, chosen = capture(
        found.model,
        found.example_inputs,
        part=part,
        max_tensors=max_tensors,
        micro_batch_only=micro_batch_only,
        progress=progress,
    )
    rules = installed_cut_rules()
    cuts = find_cut_points(
        captured.graph, keep=keep, divide=divide, max_tensors=max_tensors, rules=rules
    )
    return PreparedModel(
        found=found,
        captured=captured,
        cuts=cuts,
        keep=tuple(keep),
        divide=tuple(divide),
        cut_rules=rules,
        part=chosen,
    )
