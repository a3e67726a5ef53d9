"""Makes what `test_core.py` runs where torch is not installed: bundles, pictures, right answers.

``python tests/core/make_bundles.py FOLDER`` needs torch and torchvision. The right answers are
those of torch and torchvision themselves, not of Cutset.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small_model import LABELS, make
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

COMMAND = str(Path(sys.executable).with_name("cutset"))
LIMIT_S = 300


def cutset(folder: Path, *arguments: object) -> None:
    """Runs the command in a folder, or ends with what it said."""
    subprocess.run([COMMAND, *map(str, arguments)], cwd=folder, check=True, timeout=LIMIT_S)


def write_onnx(path: Path) -> None:
    """A small network with one residual block, 3 x 12 x 12 to 5 scores, rows free."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)

    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], **pads),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], **pads),
        helper.make_node("Add", ["c1", "r0"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], **pads),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [
            weight("w0", 8, 3, 3, 3),
            weight("w1", 8, 8, 3, 3),
            weight("w2", 8, 8, 3, 3),
            weight("w3", 8, 5),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def main() -> None:
    """Writes everything into the folder that is named."""
    here, folder = Path(__file__).parent, Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    found = make()
    assert found.preprocessing is not None
    preset = ImageClassification(
        crop_size=found.preprocessing.crop[0],
        resize_size=found.preprocessing.resize,
        mean=found.preprocessing.mean,
        std=found.preprocessing.std,
        interpolation=InterpolationMode(found.preprocessing.interpolation),
    )
    (folder / "pictures").mkdir()
    rows = []
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (37, 53, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image.save(folder / "pictures" / f"{index}.png")
        rows.append(preset(image))
    with torch.inference_mode():
        scores = torch.cat([found.model(row[None]) for row in rows])
    np.save(folder / "rows.npy", torch.stack(rows).numpy())
    np.save(folder / "scores.npy", scores.numpy())
    (folder / "labels.txt").write_text("\n".join(LABELS[index] for index in scores.argmax(dim=1)))

    write_onnx(folder / "small.onnx")
    model = f"{here / 'small_model.py'}:make"
    stages = ("--stages", 2, "--cost", "flops")
    cutset(folder, "split", model, *stages, "-o", "torch.cutset")
    cutset(folder, "split", "small.onnx", *stages, "-o", "onnx.cutset")


if __name__ == "__main__":
    main()
