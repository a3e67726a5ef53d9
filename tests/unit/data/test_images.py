"""Reading images: torchvision's numbers, every kind of pixel, and files that are no images."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from cutset.data.images import Preprocessing, find_images, read_image
from cutset.errors import MissingExtra, ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PLAIN = Preprocessing(
    resize=8, crop=(8, 8), interpolation="nearest", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def _imagenet(resize: int, crop: int, interpolation: str) -> Preprocessing:
    return Preprocessing(
        resize=resize,
        crop=(crop, crop),
        interpolation=interpolation,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [
        ((61, 97), 40, 32),
        ((97, 61), 40, 33),
        ((50, 50), 50, 37),
        ((33, 71), 33, 32),
        ((20, 90), 24, 40),
        ((90, 20), 24, 41),
        ((5, 7), 16, 31),
    ],
)
def test_row_equals_torchvision_preset_bit_for_bit(
    tmp_path: Path, size: tuple[int, int], resize: int, crop: int, interpolation: str
) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    path = _saved(_noise(*size), tmp_path / "noise.png")
    preset = ImageClassification(
        crop_size=crop, resize_size=resize, interpolation=InterpolationMode(interpolation)
    )
    with Image.open(path) as image:
        expected = preset(image.convert("RGB"))
    row = read_image(path, _imagenet(resize, crop, interpolation))
    assert row.shape == (3, crop, crop)
    assert row.dtype == np.float32
    assert np.array_equal(row, expected.numpy())


def test_a_pair_resizes_without_keeping_proportions(tmp_path: Path) -> None:
    path = _saved(_noise(10, 40), tmp_path / "wide.png")
    squashed = Preprocessing(
        resize=(12, 6), crop=(12, 6), interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
    )
    with Image.open(path) as image:
        expected = np.asarray(image.resize((6, 12), Image.Resampling.BICUBIC))
    row = read_image(path, squashed)
    assert row.shape == (3, 12, 6)
    assert np.array_equal((row * 255).round().astype(np.uint8).transpose(1, 2, 0), expected)


def test_exif_orientation_turns_the_photo_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, :4] = 255  # the left half is white
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter: left becomes top
    row = read_image(_saved(image, tmp_path / "turned.png", exif=exif), PLAIN)
    assert np.array_equal(row[:, :4], np.ones((3, 4, 8)))
    assert np.array_equal(row[:, 4:], np.zeros((3, 4, 8)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 51), (0.2, 0.2, 0.2)),
        (Image.new("1", (8, 8), 1), (1.0, 1.0, 1.0)),
        (Image.new("LA", (8, 8), (51, 0)), (0.2, 0.2, 0.2)),
        (Image.new("RGBA", (8, 8), (255, 51, 0, 0)), (1.0, 0.2, 0.0)),
        (Image.fromarray(np.full((8, 8), 51 * 256 + 255, dtype=np.uint16)), (0.2, 0.2, 0.2)),
    ],
    ids=["grey", "black-white", "grey-alpha", "alpha", "16-bit"],
)
def test_every_kind_of_pixel_becomes_rgb(
    tmp_path: Path, image: Image.Image, expected: tuple[float, float, float]
) -> None:
    row = read_image(_saved(image, tmp_path / "image.png"), PLAIN)
    expected_row = np.full((8, 8, 3), expected, np.float32).transpose(2, 0, 1)
    assert np.array_equal(row, expected_row)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 51, 0])
    row = read_image(_saved(image, tmp_path / "p.png", transparency=bytes([0, 128])), PLAIN)
    assert np.array_equal(row[:, 0, 0], np.array([1.0, 0.2, 0.0], np.float32))


def test_cmyk_photo(tmp_path: Path) -> None:
    row = read_image(_saved(Image.new("CMYK", (8, 8)), tmp_path / "c.tiff"), PLAIN)
    assert np.array_equal(row, np.ones((3, 8, 8)))


def test_unknown_range_is_refused(tmp_path: Path) -> None:
    path = _saved(Image.new("F", (8, 8), 0.5), tmp_path / "float.tiff")
    with pytest.raises(ModelError, match=r"float\.tiff has 32-bit pixels \(mode 'F'\)"):
        read_image(path, PLAIN)


def test_open_file_is_read() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(stream, "PNG")
    stream.seek(0)
    assert read_image(stream, PLAIN)[:, 0, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no image"),
        (b"hello", "is no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "image"),
    ],
)
def test_no_image(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        read_image(path, PLAIN)
    assert "notes.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_image(tmp_path: Path) -> None:
    path = _saved(_noise(64, 64), tmp_path / "half.png")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"image .*half\.png cannot be read: "):
        read_image(path, PLAIN)


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.png cannot be read: No such file"):
        read_image(tmp_path / "gone.png", PLAIN)


def test_too_many_pixels(tmp_path: Path) -> None:
    path = _saved(_noise(10, 11), tmp_path / "large.png")
    assert read_image(path, PLAIN, max_pixels=110).shape == (3, 8, 8)
    with pytest.raises(ModelError, match="has 11 x 10 pixels, more than the 109 allowed"):
        read_image(path, PLAIN, max_pixels=109)


def test_too_many_pixels_after_resizing(tmp_path: Path) -> None:
    path = _saved(Image.new("RGB", (1, 2000)), tmp_path / "thin.png")
    with pytest.raises(ModelError, match="has 8 x 16000 pixels after resizing"):
        read_image(path, PLAIN, max_pixels=5000)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resize", 0, "positive lengths"),
        ("resize", [8, -1], "positive lengths"),
        ("crop", [1 << 14, 1 << 14], "at most 67108864 pixels"),
        ("interpolation", "cubic", "'cubic' is none of bilinear, bicubic, nearest"),
        ("std", [1.0, 0.0, 1.0], "std not 0"),
        ("std", [1.0, 1e-50, 1.0], "float32 has, std not 0"),
        ("mean", [1e300, 0.0, 0.0], "numbers that float32 has"),
    ],
)
def test_preprocessing_that_cannot_be_used(key: str, value: object, message: str) -> None:
    written = {**msgspec.to_builtins(PLAIN), key: value}
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(written, Preprocessing)


def test_preprocessing_round_trip() -> None:
    squashed = Preprocessing(
        resize=(9, 8), crop=(8, 8), interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1)
    )
    for preprocessing in (PLAIN, squashed):
        text = msgspec.json.encode(preprocessing)
        assert msgspec.json.decode(text, type=Preprocessing) == preprocessing


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "deep/er/c.webp", "notes.txt", "README"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    single = tmp_path / "odd.dat"
    single.write_bytes(b"")
    found = find_images([single, tmp_path / "in"])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "odd.dat",
        "in/a.jpg",
        "in/b.PNG",
        "in/deep/er/c.webp",
    ]


def test_what_is_no_image_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "b.heic", "c.avif", "notes.txt", "more.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    assert find_images([tmp_path]) == [tmp_path / "a.jpg"]
    skipped = "skipped b.heic, c.avif, more.txt and 1 more, no image is read from them"
    assert caplog.messages == [f"folder {tmp_path}: {skipped}"]
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "notes.txt").unlink()
    words = r"holds no image, only b\.heic, c\.avif, more\.txt; looked for \.bmp"
    with pytest.raises(ModelError, match=words):
        find_images([tmp_path])


def test_find_images_without_any(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no image; looked for \.bmp"):
        find_images([tmp_path])
    with pytest.raises(ModelError, match=r"input .*gone does not exist"):
        find_images([tmp_path / "gone"])


def test_importing_loads_neither_torch_nor_pillow() -> None:
    code = (
        "import sys, cutset.data.images, cutset.data.array_files, cutset.models;"
        "print([m for m in ('torch', 'torchvision', 'timm', 'PIL', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(_noise(9, 12), tmp_path / "noise.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra) as caught:
        read_image(path, PLAIN)
    assert str(caught.value) == (
        "reading an image needs the package 'PIL', which is not installed:"
        " pip install 'cutset[images]'"
    )


def test_a_row_is_made_without_torch(tmp_path: Path) -> None:
    path = _saved(_noise(9, 12), tmp_path / "noise.png")
    code = (
        "import sys, pathlib, msgspec\n"
        "from cutset.data.images import Preprocessing, read_image\n"
        "expected = msgspec.json.decode(sys.argv[2], type=Preprocessing)\n"
        "assert read_image(pathlib.Path(sys.argv[1]), expected).shape == (3, 8, 8)\n"
        "print([m for m in ('torch', 'torchvision', 'timm') if m in sys.modules])"
    )
    text = msgspec.json.encode(PLAIN).decode()
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), text], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
