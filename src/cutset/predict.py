"""Files in, answers out: what `cutset run` does with a session."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cutset.bundles.manifest import Manifest, PartEntry
from cutset.data.array_files import ARRAY_SUFFIXES, RankedLabels, are_scores, read_arrays, top_k
from cutset.data.images import find_images, read_image
from cutset.errors import ModelError
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
        paths: images, folders of images, ``.npy`` or ``.safetensors`` files.
        num_labels: how many labels a row.
        keep_outputs: whether to keep the raw outputs of all rows in memory.
        progress: called with the number of rows answered so far.

    Raises:
        ModelError: a path does not exist, an array does not fit the model, or there are images
            and the bundle does not say how they become rows.
        EngineError: the pipeline failed.
    """
    reader = _Reader(session, paths)
    manifest = session.bundle.manifest
    tops: list[RankedLabels] = []
    kept: list[dict[str, np.ndarray]] = []
    num_rows = 0
    started = time.perf_counter()
    for answer in session.stream(reader.batches()):
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


class _Reader:
    """Reads files a micro-batch at a time, and notes what could not be read."""

    def __init__(self, session: Session, paths: Sequence[Path]) -> None:
        self._inputs = session.bundle.manifest.graph.inputs
        self._preprocessing = session.bundle.manifest.preprocessing
        self._micro_batch = session.micro_batch
        self._paths = paths
        self.names: list[str] = []
        self.failed: list[tuple[str, str]] = []

    def batches(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Tuples of the model's inputs."""
        images: list[Path] = []
        for path in self._paths:
            if path.suffix in ARRAY_SUFFIXES:
                yield from self._image_batches(images)
                images = []
                yield self._arrays(path)
            else:
                images.extend(find_images([path]))
        yield from self._image_batches(images)

    def _arrays(self, path: Path) -> tuple[np.ndarray, ...]:
        arrays = tuple(read_arrays(path, self._inputs).values())
        self.names.extend(f"{path}[{row}]" for row in range(arrays[0].shape[0]))
        return arrays

    def _image_batches(self, paths: Sequence[Path]) -> Iterator[tuple[np.ndarray, ...]]:
        preprocessing = self._preprocessing
        if paths and (preprocessing is None or len(self._inputs) != 1):
            raise ModelError(
                f"{paths[0]}: the bundle does not say how an image becomes a row; give a .npy "
                "or .safetensors file, or split the model again with weights that know"
            )
        rows: list[np.ndarray] = []
        for path in paths:
            assert preprocessing is not None
            try:
                rows.append(read_image(path, preprocessing))
            except ModelError as error:
                self.failed.append((str(path), str(error)))
                continue
            self.names.append(str(path))
            if len(rows) == self._micro_batch:
                yield (np.stack(rows),)
                rows = []
        if rows:
            yield (np.stack(rows),)
