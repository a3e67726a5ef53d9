"""Streams a folder of images through a bundle: one line of JSON an image, as the answers come.

Run it with ``python examples/stream_folder.py BUNDLE FOLDER``. Without arguments it splits a small
model with random weights and paints a few pictures first, so that it runs anywhere; its answers
then mean nothing.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import cutset

NUM_PICTURES = 8


def stream(bundle: Path | cutset.Bundle, folder: Path) -> int:
    """Prints the labels of every image in a folder; returns how many there were.

    Images are read as the pipeline takes them, so that a folder of any size needs the same memory.
    """
    num_answers = 0
    with cutset.open_session(bundle) as session:
        manifest = session.bundle.manifest
        if manifest.preprocessing is None:
            raise SystemExit(f"{bundle} does not say how an image becomes a row")
        preprocessing = manifest.preprocessing
        paths = cutset.find_images([folder])

        def rows() -> Iterator[np.ndarray]:
            for path in paths:
                yield cutset.read_image(path, preprocessing)[None]

        for path, answer in zip(paths, session.stream(rows()), strict=True):
            (labels,) = cutset.top_k(answer, manifest.labels, 3)
            print(json.dumps({"image": path.name, "labels": dict(labels)}), flush=True)
            num_answers += 1
    return num_answers


def main() -> int:
    """Runs the example."""
    if len(sys.argv) == 3:
        return 0 if stream(Path(sys.argv[1]), Path(sys.argv[2])) else 1
    with tempfile.TemporaryDirectory() as scratch:
        prepared = cutset.prepare_model("torchvision:squeezenet1_1", weights="random:0")
        request = cutset.PlanRequest(num_stages=2)
        plan = cutset.plan_model(prepared, request, costs="flops")
        bundle = cutset.split_model(prepared, plan, Path(scratch) / "squeezenet.cutset")
        for index in range(NUM_PICTURES):
            colour = (30 * index, 255 - 30 * index, 128)
            Image.new("RGB", (320, 240), colour).save(Path(scratch) / f"picture-{index}.png")
        return 0 if stream(bundle, Path(scratch)) == NUM_PICTURES else 1


# Worker processes import the main module anew on some platforms; only the first one runs this.
if __name__ == "__main__":
    sys.exit(main())
