"""Images of ``POST /classify`` where the plan has them travel as pixels: the same answers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from distributed.bundles import SmallNet

from .running import Running, ask, serving, write_image_bundle


def _picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _scores(running: Running) -> list[dict[str, object]]:
    status, _, body = ask(running, path="/classify?top=10", body=_picture())
    assert status == 200, body
    labels: list[dict[str, object]] = json.loads(body)["labels"]
    return labels


def test_images_go_to_the_first_stage_as_pixels_and_the_answer_is_the_same(
    server: Running, model: SmallNet, tmp_path: Path
) -> None:
    folder = write_image_bundle(model, tmp_path / "pixels.cutset", input_codec="uint8-image")
    with serving(folder) as running:
        assert _scores(running) == _scores(server)
        received = running.session.stats().stages[0].stats.received_bytes
        assert received == 16 * 16 * 3
