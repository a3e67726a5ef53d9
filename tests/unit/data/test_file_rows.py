"""Files in, rows out: in order, whatever was read first, and only a little ahead."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutset.data import file_rows
from cutset.data.file_rows import FileRows
from cutset.data.images import Preprocessing, read_image
from cutset.errors import ModelError
from cutset.tensors import TensorSpec

SPEC = TensorSpec(name="x", shape=("batch", 3, 8, 8), dtype="float32")
PLAIN = Preprocessing(resize=8, crop=(8, 8), interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(20):
        Image.new("RGB", (12, 9), (index, 2 * index, 200)).save(tmp_path / f"{index:02}.png")
    (tmp_path / "07.png").write_bytes(b"no image")
    return tmp_path


@pytest.mark.parametrize("num_cores", [1, 2, 6])
@pytest.mark.parametrize("num_images", [1, 4, 30])
def test_images_come_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_cores: int, num_images: int
) -> None:
    monkeypatch.setattr(file_rows, "num_usable_cores", lambda: num_cores)
    np.save(folder / "rows.npy", np.ones((3, 3, 8, 8), np.float32))
    reader = FileRows((SPEC,), PLAIN, [folder, folder / "rows.npy", folder / "03.png"])
    batches = list(reader.batches(num_images))
    good = [folder / f"{index:02}.png" for index in range(20) if index != 7]
    sizes = [min(num_images, 19 - start) for start in range(0, 19, num_images)]
    assert [len(batch[0]) for batch in batches] == [*sizes, 3, 1]
    images = [read_image(path, PLAIN) for path in good]
    expected = [*images, *np.ones((3, 3, 8, 8), np.float32), read_image(folder / "03.png", PLAIN)]
    assert np.array_equal(np.concatenate([batch[0] for batch in batches]), np.stack(expected))
    names = [*map(str, good), *(f"{folder / 'rows.npy'}[{row}]" for row in range(3))]
    assert reader.names == [*names, str(folder / "03.png")]
    assert [path for path, _ in reader.failed] == [str(folder / "07.png")]


def test_a_slow_pipeline_has_a_few_images_wait_and_no_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_rows, "num_usable_cores", lambda: 3)
    (folder / "07.png").unlink()
    begun: list[Path] = []
    monkeypatch.setattr(
        file_rows,
        "read_image",
        lambda path, preprocessing: begun.append(path) or read_image(path, preprocessing),
    )
    before = set(threading.enumerate())
    batches = FileRows((SPEC,), PLAIN, [folder]).batches(1)
    for num_taken in range(1, 6):
        next(batches)
        assert len(begun) <= num_taken + 2 * 2
    assert any(each.name.startswith("cutset-image") for each in set(threading.enumerate()) - before)
    batches.close()  # type: ignore[attr-defined]  # it is a generator
    assert set(threading.enumerate()) - before == set()
    assert len(begun) < 19


def test_images_of_which_nothing_is_known(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"00\.png: it is not known how an image becomes a row; "):
        next(FileRows((SPEC,), None, [folder]).batches(1))
    with pytest.raises(ModelError, match="it is not known how an image becomes a row"):
        next(FileRows((SPEC, SPEC), PLAIN, [folder]).batches(1))
