"""Whatever is in a file, reading it gives numbers or a ModelError of one line that names it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from cutset.data.array_files import read_arrays
from cutset.data.images import Preprocessing, read_image
from cutset.errors import ModelError
from cutset.models.checkpoint import read_checkpoint
from cutset.tensors import TensorSpec

SPEC = TensorSpec(name="x", shape=("batch", 3), dtype="float32")
PREPROCESSING = Preprocessing(
    resize=8, crop=(8, 8), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
)


def _image(image_format: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, image_format)
    return stream.getvalue()


def _array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((2, 3), np.float32))
    return stream.getvalue()


def _state(*, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"w": torch.ones(2, 3)}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _read_image(path: Path) -> None:
    assert read_image(path, PREPROCESSING).shape == (3, 8, 8)


def _read_arrays(path: Path) -> None:
    assert read_arrays(path, (SPEC,))["x"].shape[1:] == (3,)


def _read_state(path: Path) -> None:
    read_checkpoint(path)


FILES: dict[str, tuple[bytes, Callable[[Path], None]]] = {
    "i.png": (_image("PNG"), _read_image),
    "i.jpg": (_image("JPEG"), _read_image),
    "i.gif": (_image("GIF"), _read_image),
    "i.tiff": (_image("TIFF"), _read_image),
    "i.bmp": (_image("BMP"), _read_image),
    "i.webp": (_image("WEBP"), _read_image),
    "i.ppm": (_image("PPM"), _read_image),
    "a.npy": (_array(), _read_arrays),
    "a.safetensors": (save({"x": torch.ones(2, 3)}), _read_arrays),
    "w.safetensors": (save({"x": torch.ones(2, 3)}), _read_state),
    "w.pth": (_state(zipped=True), _read_state),
    "w.pt": (_state(zipped=False), _read_state),
}


# torch warns, before it refuses, where the damage is in the number of the pickle protocol.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("name", list(FILES))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files(tmp_path: Path, name: str, data: st.DataObject) -> None:
    content, read = FILES[name]
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        # Headers matter most: half of the changes are in the first 64 bytes.
        last = data.draw(st.sampled_from([min(63, len(content) - 1), len(content) - 1]))
        damaged[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    path = tmp_path / name
    path.write_bytes(bytes(damaged[:length]))
    message = ""
    try:
        read(path)
    except ModelError as error:
        message = str(error)
    assert message == "" or name in message
    assert "\n" not in message
