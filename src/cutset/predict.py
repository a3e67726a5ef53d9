"""Files in, answers out: what `cutset run` does with a session."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cutset.bundles.manifest import Manifest, PartEntry
from cutset.data.array_files import RankedLabels, are_scores, top_k
from cutset.data.file_rows import FileRows
from cutset.runtime.rows import Answer
from cutset.runtime.session import Session
from cutset.tensors import dim_factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Answers to rows that came from files.

    Attributes:
        names: what each row came from: a file, or ``file[3]`` for row 3 of a file of arrays.
        tops: for each row the most likely labels, best first; empty where the model's output is
            not scores of shape [rows, classes].
        outputs: the raw outputs by name, rows concatenated; None unless they were asked for.
        seconds: from the first row handed in to the last answer.
        failed: inputs that could not be read, each with the reason.
    """

    names: tuple[str, ...]
    tops: tuple[RankedLabels, ...]
    outputs: dict[str, np.ndarray] | None
    seconds: float
    failed: tuple[tuple[str, str], ...]

    def as_json(self, part: PartEntry | None = None) -> dict[str, Any]:
        """``cutset run --json``: a row's input and its most likely labels.

        Args:
            part: what the bundle holds of the model, where it is not the whole.
        """
        return {
            "part": msgspec.to_builtins(part),
            "num_rows": len(self.names),
            "rows": [
                {"input": name, "top": [{"label": label, "score": score} for label, score in top]}
                for name, top in zip(self.names, self.tops, strict=True)
            ],
            "seconds": self.seconds,
            "rows_per_s": len(self.names) / self.seconds if self.seconds else 0.0,
            "failed": [{"input": name, "reason": reason} for name, reason in self.failed],
        }


def predict_files(
    session: Session,
    paths: Sequence[Path],
    *,
    num_labels: int = 5,
    keep_outputs: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Runs files through a session; an image that cannot be read does not stop the others.

    Args:
        session: the running pipeline.
        paths: images, folders of images, ``.npy``, ``.npz`` or ``.safetensors`` files.
        num_labels: how many labels a row.
        keep_outputs: whether to keep the raw outputs of all rows in memory.
        progress: called with the number of rows answered so far.

    Raises:
        ModelError: a path does not exist, an array does not fit the model, or there are images
            and the bundle does not say how they become rows.
        EngineError: the pipeline failed.
    """
    manifest = session.bundle.manifest
    reader = FileRows(
        manifest.graph.inputs, manifest.preprocessing, paths, as_pixels=manifest.takes_pixels
    )
    tops: list[RankedLabels] = []
    kept: list[dict[str, np.ndarray]] = []
    num_rows = 0
    started = time.perf_counter()
    for answer in session.stream(reader.batches(session.micro_batch)):
        outputs = _by_name(answer, manifest.output_names)
        scores = next(iter(outputs.values()))
        if are_scores(scores):
            tops.extend(top_k(scores, manifest.labels, num_labels))
        else:
            tops.extend(() for _ in range(scores.shape[0]))
        if keep_outputs:
            kept.append(outputs)
        num_rows += scores.shape[0]
        if progress is not None:
            progress(num_rows)
    seconds = time.perf_counter() - started
    return Predictions(
        names=tuple(reader.names),
        tops=tuple(tops),
        outputs=_joined(kept, manifest) if keep_outputs else None,
        seconds=seconds,
        failed=tuple(reader.failed),
    )


def _by_name(answer: Answer | Exception, names: Sequence[str]) -> dict[str, np.ndarray]:
    values = answer if isinstance(answer, dict) else {names[0]: answer}
    return {name: np.asarray(value) for name, value in values.items()}


def _joined(answers: Sequence[dict[str, np.ndarray]], manifest: Manifest) -> dict[str, np.ndarray]:
    """The rows of all answers; an output that has none is the same in each of them."""
    if not answers:
        return {}
    specs = zip(manifest.output_names, manifest.outputs, strict=True)
    return {
        name: np.concatenate([answer[name] for answer in answers])
        if spec.shape and dim_factor(spec.shape[0]) is not None
        else answers[0][name]
        for name, spec in specs
    }
