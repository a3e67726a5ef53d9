from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cutset.bundles.open import load_onnx_model, open_bundle
from cutset.bundles.reading.torch.loading import load_program
from cutset.errors import (
    BundleError,
    ChecksumMismatch,
    ManifestError,
    UnsafeBundle,
    UnsupportedVersion,
)
from distributed.bundles import write_bundle
from hostile import add_to_list, edit_manifest, relist
from models_of_trouble import residual_net


def chained(directory: Path, rows: torch.Tensor) -> torch.Tensor:
    opened = open_bundle(directory)
    tensors = (rows,)
    for index in range(len(opened.manifest.stages)):
        tensors = load_program(opened, index)(tensors)
    return tensors[0]


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7])
def test_stages_equal_the_whole_model_bit_for_bit(good_bundle: Path, num_rows: int) -> None:
    torch.manual_seed(7)
    model = residual_net().eval()
    rows = torch.randn(num_rows, 3, 8, 8)
    with torch.inference_mode():
        expected = model(rows.clone())
    assert torch.equal(chained(good_bundle, rows), expected)


def test_inputs_are_left_as_they_were(good_bundle: Path) -> None:
    rows = torch.randn(2, 3, 8, 8)
    before = rows.clone()
    program = load_program(open_bundle(good_bundle), 0)
    first = program((rows,))
    second = program((rows,))
    assert torch.equal(rows, before)
    assert torch.equal(first[0], second[0])


def test_opens_with_a_string_and_finds_listed_files(good_bundle: Path) -> None:
    opened = open_bundle(str(good_bundle))
    assert opened.stages == (0, 1)
    assert opened.path("reference.safetensors") == good_bundle / "reference.safetensors"
    assert load_onnx_model(opened, 1) == good_bundle / "stage-1/model.onnx"


def test_path_of_a_file_that_is_not_listed(good_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"'\.\./x' is listed"):
        open_bundle(good_bundle).path("../x")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        open_bundle(tmp_path / "nothing")


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"weights\.pt: a file, not a folder; expected a bundle"):
        open_bundle(tmp_path / "weights.pt")


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        open_bundle(tmp_path)


def test_stage_without_onnx_model_says_why(bundle: Path) -> None:
    def change(document: dict) -> None:
        document["stages"][1]["model"] = None
        document["stages"][1]["model_missing"] = "no ONNX operator for aten.foo"
        document["files"] = [f for f in document["files"] if f["path"] != "stage-1/model.onnx"]

    edit_manifest(bundle, change)
    (bundle / "stage-1/model.onnx").unlink()
    with pytest.raises(BundleError, match=r"no ONNX operator for aten\.foo"):
        load_onnx_model(open_bundle(bundle), 1)


class TestOneStageOnly:
    def test_needs_only_its_own_files(self, bundle: Path) -> None:
        for name in ("stage-0/program.pt2", "stage-0/model.onnx", "reference.safetensors"):
            (bundle / name).unlink()
        (bundle / "stage-0").rmdir()
        opened = open_bundle(bundle, stages=(1,))
        assert load_program(opened, 1)((torch.randn(1, 8, 4, 4),))[0].shape == (1, 5)

    def test_does_not_hash_other_stages(self, bundle: Path) -> None:
        (bundle / "stage-0/program.pt2").write_bytes(b"other")
        open_bundle(bundle, stages=(1,))
        with pytest.raises(ChecksumMismatch):
            open_bundle(bundle, stages=(0,))

    def test_does_not_load_other_stages(self, good_bundle: Path) -> None:
        opened = open_bundle(good_bundle, stages=[1])
        with pytest.raises(BundleError, match="belongs to stage 0"):
            load_program(opened, 0)

    @pytest.mark.parametrize("index", [-1, 2])
    def test_no_such_stage(self, good_bundle: Path, index: int) -> None:
        with pytest.raises(BundleError, match=f"no stage {index}"):
            open_bundle(good_bundle, stages=(index,))
        with pytest.raises(BundleError, match=f"no stage {index}"):
            load_program(open_bundle(good_bundle), index)

    def test_reference_is_hashed_where_it_is_there(self, bundle: Path) -> None:
        (bundle / "reference.safetensors").write_bytes(b"other")
        with pytest.raises(ChecksumMismatch) as caught:
            open_bundle(bundle, stages=(1,))
        assert caught.value.path == "reference.safetensors"


class TestFiles:
    @pytest.mark.parametrize("name", ["stage-1/program.pt2", "stage-0/model.onnx"])
    def test_flipped_byte(self, bundle: Path, name: str) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(bytes(data))
        with pytest.raises(ChecksumMismatch) as caught:
            open_bundle(bundle)
        assert caught.value.path == name
        assert len(caught.value.expected) == len(caught.value.actual) == 64
        assert caught.value.exit_code == 4

    def test_file_of_holes(self, bundle: Path) -> None:
        """A terabyte that takes a few kilobytes; to hash it would take an hour."""
        file = bundle / "stage-1/program.pt2"
        os.truncate(file, 1 << 40)

        def change(document: dict[str, Any]) -> None:
            for entry in document["files"]:
                if entry["path"] == "stage-1/program.pt2":
                    entry["num_bytes"] = 1 << 40

        edit_manifest(bundle, change)
        with pytest.raises(UnsafeBundle, match="no bundle has a file of holes") as caught:
            open_bundle(bundle)
        assert caught.value.path == "stage-1/program.pt2"

    def test_truncated_file(self, bundle: Path) -> None:
        file = bundle / "stage-1/program.pt2"
        size = file.stat().st_size
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ChecksumMismatch) as caught:
            open_bundle(bundle)
        assert caught.value.expected == f"{size} bytes"
        assert caught.value.actual == f"{size - 1} bytes"

    def test_missing_shard_is_named(self, bundle: Path) -> None:
        (bundle / "stage-1/program.pt2").unlink()
        with pytest.raises(ChecksumMismatch, match=r"stage-1/program\.pt2 is missing") as caught:
            open_bundle(bundle)
        assert caught.value.actual == "missing"

    @pytest.mark.parametrize("name", ["stage-1/evil.so", "notes.txt", "stage-1/deep/er.txt"])
    def test_file_that_is_not_listed(self, bundle: Path, name: str) -> None:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("x")
        with pytest.raises(UnsafeBundle, match="does not list"):
            open_bundle(bundle)

    def test_folder_that_is_not_listed(self, bundle: Path) -> None:
        (bundle / "empty").mkdir()
        with pytest.raises(UnsafeBundle, match="'empty' is there"):
            open_bundle(bundle)

    def test_link_to_a_file_outside(self, bundle: Path, tmp_path: Path) -> None:
        file = bundle / "stage-1/program.pt2"
        file.rename(tmp_path / "outside.pt2")
        file.symlink_to(tmp_path / "outside.pt2")
        with pytest.raises(UnsafeBundle, match="symbolic link") as caught:
            open_bundle(bundle)
        assert caught.value.path == "stage-1/program.pt2"

    def test_link_to_a_folder_outside(self, bundle: Path, tmp_path: Path) -> None:
        (bundle / "stage-1").rename(tmp_path / "outside")
        (bundle / "stage-1").symlink_to(tmp_path / "outside")
        with pytest.raises(UnsafeBundle, match="symbolic link"):
            open_bundle(bundle)

    def test_manifest_that_is_a_link(self, bundle: Path, tmp_path: Path) -> None:
        (bundle / "manifest.json").rename(tmp_path / "outside.json")
        (bundle / "manifest.json").symlink_to(tmp_path / "outside.json")
        with pytest.raises(ManifestError):
            open_bundle(bundle)

    def test_pipe_in_place_of_a_file(self, bundle: Path) -> None:
        (bundle / "reference.safetensors").unlink()
        os.mkfifo(bundle / "reference.safetensors")
        with pytest.raises(UnsafeBundle, match="no plain file"):
            open_bundle(bundle)

    @pytest.mark.parametrize(
        "path",
        [
            "../outside.pt2",
            "stage-1/../../outside.pt2",
            "/etc/passwd",
            "stage-1//program.pt2",
            "./stage-1/program.pt2",
            "stage-1\\program.pt2",
            "C:program.pt2",
            "stage-1/.hidden",
            "stage-1/pro\x00gram",
            "stage-1/program.pt2\n",
            "",
            "a" * 129,
        ],
    )
    def test_path_that_leads_outside(self, bundle: Path, path: str) -> None:
        def change(document: dict) -> None:
            document["files"][0]["path"] = path

        edit_manifest(bundle, change)
        with pytest.raises(UnsafeBundle, match=r"\$\.files\[0\]\.path"):
            open_bundle(bundle)

    def test_added_file_that_is_listed_is_no_error(self, bundle: Path) -> None:
        (bundle / "NOTES.txt").write_text("made by hand")
        add_to_list(bundle, "NOTES.txt")
        assert open_bundle(bundle).path("NOTES.txt").read_text() == "made by hand"


class TestVersion:
    def test_newer_version_is_named_before_anything_else(self, bundle: Path) -> None:
        (bundle / "manifest.json").write_text('{"format": "cutset-bundle/4", "new": []}')
        with pytest.raises(UnsupportedVersion) as caught:
            open_bundle(bundle)
        assert caught.value.expected == "cutset-bundle/3"
        assert caught.value.actual == "cutset-bundle/4"

    def test_other_format(self, bundle: Path) -> None:
        (bundle / "manifest.json").write_text('{"format": "cutset-plan/1"}')
        with pytest.raises(ManifestError) as caught:
            open_bundle(bundle)
        assert caught.value.path == "$.format"


def test_program_with_another_number_of_inputs_than_the_manifest(bundle: Path) -> None:
    def change(document: dict) -> None:
        for stage in document["stages"]:
            for key in ("inputs", "outputs"):
                stage[key].append({"name": "more", "shape": ["batch"], "dtype": "float32"})
        for key in ("inputs",):
            document["graph"][key].append(document["stages"][0]["inputs"][1])
        document["graph"]["outputs"].append("more")
        document["outputs"].append(document["stages"][1]["outputs"][1])
        document["output_names"].append("more")

    edit_manifest(bundle, change)
    relist(bundle)
    with pytest.raises(ManifestError) as caught:
        load_program(open_bundle(bundle), 0)
    assert caught.value.path == "$.stages[0].inputs"


def test_weights_keep_the_flag_that_chooses_kernels(tmp_path: Path) -> None:
    """torch's matmul folds a strided input or not by the weight's ``requires_grad``."""

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Linear(768, 2304)
            self.frozen = torch.nn.Linear(2304, 3).requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.frozen(torch.relu(self.mix(x.transpose(1, 2)))).flatten(1)

    model = Attention().eval()
    rows = torch.randn(2, 768, 50)
    directory = write_bundle(model, (rows,), (3,), tmp_path / "b.cutset")
    opened = open_bundle(directory)
    flags = [
        [weight.requires_grad for weight in load_program(opened, index).program.weights.values()]
        for index in (0, 1)
    ]
    assert flags == [[True, True], [False, False]]
    module = load_program(opened, 0).module
    assert [weight.requires_grad for weight in module.parameters()] == [True, True]
    with torch.inference_mode():
        assert torch.equal(chained(directory, rows), model(rows))
