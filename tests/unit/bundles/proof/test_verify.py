from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from checked_here import check_here
from cutset.bundles.open import open_bundle
from cutset.bundles.proof.results import CHECKS, VerificationReport
from cutset.bundles.proof.verify import verify_bundle
from cutset.errors import ChecksumMismatch, UnsafeBundle
from distributed.bundles import write_bundle
from hostile import (
    MODEL,
    PROGRAM,
    bomb,
    edit_manifest,
    edit_members,
    edit_model_json,
    edit_onnx,
    relist,
)
from models_of_trouble import (
    ChangesAView,
    ReadsTheBatchSize,
    TiedWeights,
    residual_net,
)


def failed(report: VerificationReport) -> dict[str, str]:
    """Details of the checks that failed, by name."""
    return {check.name: check.detail for check in report.checks if not check.ok}


def whole_model() -> nn.Module:
    torch.manual_seed(7)
    return residual_net()


def test_good_bundle_passes_everything(good_bundle: Path) -> None:
    report = check_here(good_bundle)
    assert failed(report) == {}
    assert report.ok
    assert report.bit_exact
    assert report.max_abs_error == 0.0
    assert report.differences == ()
    assert tuple(check.name for check in report.checks) == CHECKS


def test_as_json_has_the_keys_that_scripts_rely_on(good_bundle: Path) -> None:
    document = json.loads(json.dumps(check_here(good_bundle, backends=["torch"]).as_json()))
    assert list(document) == [
        *("ok", "part", "checks", "max_abs_error", "bit_exact", "boundaries", "not_run"),
        *("agreement", "least_share"),
    ]
    assert [check["name"] for check in document["checks"]] == [
        *("contracts", "completeness", "units", "numerics", "integrity")
    ]
    assert document["checks"][2] == {
        "name": "units",
        "ok": True,
        "detail": "no unit is divided by 1 cut",
    }


def test_takes_an_opened_bundle_and_the_whole_model(good_bundle: Path) -> None:
    report = verify_bundle(open_bundle(good_bundle), model=whole_model())
    assert failed(report) == {}
    assert "the whole model gives the same" in report.check("numerics").detail


def test_whole_model_keeps_its_mode(good_bundle: Path) -> None:
    model = whole_model().train()
    assert check_here(good_bundle, model=model, backends=()).ok
    assert model.training


def test_model_with_other_weights(good_bundle: Path) -> None:
    model = whole_model()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    report = check_here(good_bundle, model=model, backends=())
    assert list(failed(report)) == ["numerics"]
    assert "other weights, or another model" in failed(report)["numerics"]


def test_a_model_that_treats_one_row_otherwise_is_not_taken_for_another(good_bundle: Path) -> None:
    def call(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (rows,) = inputs
        answer: torch.Tensor = model(rows)
        return answer * 2 if len(rows) == 1 else answer

    report = check_here(good_bundle, model=whole_model(), call_model=call, backends=())
    detail = failed(report)["numerics"]
    assert "with 1 row by" in detail
    assert (
        "equals it with 2 and 4 rows: it computes a row otherwise by how many there are" in detail
    )
    assert "--micro-batch-only N" in detail
    assert "other weights" not in detail


def test_model_of_another_kind(good_bundle: Path) -> None:
    report = check_here(good_bundle, model=nn.Linear(3, 5), backends=())
    assert "does not run on the reference's inputs" in failed(report)["numerics"]


def test_model_that_is_called_in_its_own_way(good_bundle: Path) -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = whole_model()

        def forward(self, *, image: Tensor) -> Tensor:
            return self.inner(image)

    assert not check_here(good_bundle, model=ByName(), backends=()).ok
    assert check_here(
        good_bundle,
        model=ByName(),
        call_model=lambda model, inputs: model(image=inputs[0]),
        backends=(),
    ).ok


def test_unknown_backend(good_bundle: Path) -> None:
    with pytest.raises(ValueError, match="'tpu'"):
        verify_bundle(good_bundle, backends=("tpu",))


def test_progress_is_told(good_bundle: Path) -> None:
    told: list[str] = []
    verify_bundle(good_bundle, backends=(), progress=told.append)
    assert told == [
        *("checking files", "loading stage 0", "loading stage 1", "checking contracts"),
        *("checking completeness", "checking units", "comparing numbers"),
    ]


def test_threads_are_restored(good_bundle: Path) -> None:
    torch.set_num_threads(2)
    check_here(good_bundle, backends=())
    assert torch.get_num_threads() == 2


class TestIntegrity:
    def test_flipped_byte(self, bundle: Path) -> None:
        data = bytearray((bundle / PROGRAM).read_bytes())
        data[-100] ^= 1
        (bundle / PROGRAM).write_bytes(bytes(data))
        report = check_here(bundle)
        assert list(failed(report)) == list(CHECKS)
        assert isinstance(report.error, ChecksumMismatch)
        assert "stage-1/program.pt2" in failed(report)["integrity"]
        assert report.max_abs_error is None
        assert not report.bit_exact

    def test_hostile_program(self, bundle: Path, tmp_path: Path) -> None:
        marker = tmp_path / "was-run"
        edit_members(
            bundle,
            lambda members, root: members.update({f"{root}/data/weights/x.pt": bomb(marker)}),
        )
        report = check_here(bundle)
        assert isinstance(report.error, UnsafeBundle)
        assert "x.pt" in failed(report)["integrity"]
        assert "stage 1 was not loaded" in failed(report)["numerics"]
        assert report.check("units").ok
        assert not marker.exists()

    def test_hostile_onnx_model(self, bundle: Path) -> None:
        edit_onnx(bundle, lambda model: model.opset_import.add(domain="my.ops", version=1))
        assert "my.ops" in failed(check_here(bundle))["integrity"]

    def test_reference_of_another_format(self, bundle: Path) -> None:
        (bundle / "reference.safetensors").write_bytes(b"\x80\x04nonsense")
        relist(bundle)
        details = failed(check_here(bundle))
        assert "not in the safetensors format" in details["integrity"]
        assert "no reference tensors" in details["contracts"]

    def test_reference_that_lacks_a_boundary(self, bundle: Path) -> None:
        file = bundle / "reference.safetensors"
        tensors = load_file(file)
        name = next(s.name for s in open_bundle(bundle).manifest.stages[0].outputs)
        del tensors[name]
        save_file(tensors, file)
        relist(bundle)
        assert f"lacks {name!r}" in failed(check_here(bundle))["integrity"]

    def test_reference_of_another_shape(self, bundle: Path) -> None:
        file = bundle / "reference.safetensors"
        tensors = load_file(file)
        save_file({name: t[:, :2].contiguous() for name, t in tensors.items()}, file)
        relist(bundle)
        assert "expected float32[batch" in failed(check_here(bundle))["integrity"]


class TestUnits:
    def test_bundle_cut_inside_a_residual_block(self, tmp_path: Path) -> None:
        torch.manual_seed(7)
        directory = write_bundle(
            residual_net(), (torch.randn(3, 3, 8, 8),), (6,), tmp_path / "cut.cutset"
        )
        report = check_here(directory, backends=())
        assert failed(report) == {
            "units": "the cut between stages 0 and 1, after 4.act, is refused: "
            "inside 4 (ResidualBlock): 2 tensors live"
        }
        assert report.bit_exact

    def test_manifest_that_moves_an_operation(self, bundle: Path) -> None:
        """It claims a legal cut elsewhere; the programs say otherwise."""

        def change(document: dict[str, Any]) -> None:
            first, second = document["stages"]
            moved = second["operations"][:5]
            first["operations"] += moved
            second["operations"] = second["operations"][5:]

        edit_manifest(bundle, change)
        details = failed(check_here(bundle, backends=()))
        assert "stage-0/program.pt2 lacks the operation" in details["completeness"]

    def test_manifest_that_hides_a_skip(self, bundle: Path) -> None:
        """Without the skip the block would be no unit; the program still reads it."""

        def change(document: dict[str, Any]) -> None:
            for operation in document["graph"]["operations"]:
                if operation["target"] == "aten.add.Tensor":
                    operation["inputs"] = operation["inputs"][:1]

        edit_manifest(bundle, change)
        details = failed(check_here(bundle, backends=()))
        assert "stage-1/program.pt2 computes 'add' from" in details["completeness"]

    def test_manifest_that_names_another_operation(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            document["graph"]["operations"][5]["target"] = "aten.tanh.default"

        edit_manifest(bundle, change)
        details = failed(check_here(bundle, backends=()))
        assert "(aten.tanh.default)" in details["completeness"]

    def test_unit_that_is_elsewhere(self, bundle: Path) -> None:
        edit_manifest(bundle, lambda document: document["stages"][0].update(units=["4"]))
        assert "stage 0 lists the unit '4'" in failed(check_here(bundle, backends=()))["units"]

    def test_stage_that_is_no_contiguous_part(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            operations = document["stages"][1]["operations"]
            operations[0], operations[1] = operations[1], operations[0]

        edit_manifest(bundle, change)
        assert "no contiguous part" in failed(check_here(bundle, backends=()))["units"]

    def test_class_that_the_model_lacks(self, bundle: Path) -> None:
        edit_manifest(bundle, lambda document: document.update(keep=["Nonsense"]))
        assert "Nonsense" in failed(check_here(bundle, backends=()))["units"]


class TestCompleteness:
    def test_operation_in_no_stage(self, bundle: Path) -> None:
        edit_manifest(bundle, lambda document: document["stages"][1]["operations"].pop(0))
        details = failed(check_here(bundle, backends=()))
        assert "is in no stage" in details["completeness"]

    def test_operation_in_two_stages(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            first, second = document["stages"]
            second["operations"].insert(0, first["operations"][-1])

        edit_manifest(bundle, change)
        assert "is in stages 0, 1" in failed(check_here(bundle, backends=()))["completeness"]

    def test_parameter_that_is_held_by_no_stage(self, bundle: Path) -> None:
        edit_manifest(
            bundle, lambda document: document["stages"][1]["parameters"].remove("14.bias")
        )
        detail = failed(check_here(bundle, backends=()))["completeness"]
        assert "stage 1 lacks '14.bias'" in detail
        assert "'14.bias' is unused, but not listed as unused" in detail

    def test_parameter_that_is_listed_as_shared(self, bundle: Path) -> None:
        edit_manifest(bundle, lambda document: document.update(shared_parameters=["14.bias"]))
        detail = failed(check_here(bundle, backends=()))["completeness"]
        assert detail == "'14.bias' is listed as shared, but is not"

    def test_parameter_of_another_size(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            for parameter in document["graph"]["parameters"]:
                if parameter["name"] == "14.bias":
                    parameter["num_elements"] = 6

        edit_manifest(bundle, change)
        detail = failed(check_here(bundle, backends=()))["completeness"]
        assert detail == (
            "stage-1/program.pt2: '14.bias' has 5 elements in 20 bytes, the graph says 6 in 20"
        )

    def test_weight_bytes(self, bundle: Path) -> None:
        edit_manifest(bundle, lambda document: document["stages"][0].update(weight_bytes=1))
        detail = failed(check_here(bundle, backends=()))["completeness"]
        assert detail.startswith("stage 0 claims 1 weight bytes")

    def test_bytes_that_no_weight_uses(self, bundle: Path) -> None:
        edit_members(
            bundle,
            lambda members, root: members.update({f"{root}/data/weights/weight_999": bytes(4096)}),
        )
        detail = failed(check_here(bundle, backends=()))["completeness"]
        listed = open_bundle(bundle).manifest.stages[1].weight_bytes
        assert detail == (
            f"stage-1/program.pt2 stores {listed + 4096} bytes of weights, its stage lists {listed}"
        )

    def test_many_faults_are_cut_short(self, bundle: Path) -> None:
        edit_manifest(bundle, lambda document: document["stages"][1].update(parameters=[]))
        detail = failed(check_here(bundle, backends=()))["completeness"]
        assert detail.count(";") == 5
        assert detail.endswith(" more")


class TestContracts:
    def test_shape_that_is_made_otherwise(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            document["stages"][1]["outputs"][0]["dtype"] = "float64"

        edit_manifest(bundle, change)
        detail = failed(check_here(bundle, backends=()))["contracts"]
        assert "stage 1 returns" in detail

    def test_program_that_works_for_one_number_of_rows_only(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            nodes = document["graph_module"]["graph"]["nodes"]
            node = next(n for n in nodes if n["target"] == "torch.ops.aten.flatten.using_ints")
            node["target"] = "torch.ops.aten.reshape.default"
            node["inputs"] = [
                node["inputs"][0],
                {"name": "shape", "arg": {"as_ints": [4, 12]}, "kind": 1},
            ]

        edit_model_json(bundle, change)
        details = failed(check_here(bundle, backends=()))
        assert details["contracts"].startswith("stage 1 with 1 row fails: stage-1/program.pt2:")
        assert (
            "reshape.default' cannot be called like this: shape '[4, 12]'" in (details["contracts"])
        )
        assert "aten.reshape.default" in details["completeness"]
        assert details["numerics"].startswith("the stages do not run with 2 rows: stage-1/program")


class TestNumerics:
    def change_weight(self, bundle: Path, program: str) -> None:
        """Flips the sign of the first weight's first number, with a right zip checksum."""

        def change(members: dict[str, bytes], root: str) -> None:
            name = f"{root}/data/weights/weight_0"
            data = bytearray(members[name])
            data[3] ^= 0x80
            members[name] = bytes(data)

        edit_members(bundle, change, program=program)

    @pytest.mark.parametrize("stage", [0, 1])
    def test_first_stage_and_boundary_that_differ_are_named(self, bundle: Path, stage: int) -> None:
        self.change_weight(bundle, f"stage-{stage}/program.pt2")
        report = check_here(bundle, backends=())
        assert list(failed(report)) == ["numerics"]
        tensor = open_bundle(bundle).manifest.stages[stage].outputs[0].name
        assert (report.differences[0].stage, report.differences[0].tensor) == (stage, tensor)
        place = "the boundary to stage 1" if stage == 0 else "the model's output"
        assert f"stage {stage} is the first that differs" in failed(report)["numerics"]
        assert f"{tensor!r} at {place}" in failed(report)["numerics"]
        assert not report.bit_exact
        assert report.max_abs_error is not None
        assert report.max_abs_error > 0

    def test_onnx_model_that_computes_something_else(self, bundle: Path) -> None:
        def change(model: onnx.ModelProto) -> None:
            for tensor in model.graph.initializer:
                values = numpy_helper.to_array(tensor)
                if values.dtype.kind == "f" and values.ndim > 1:
                    tensor.CopyFrom(numpy_helper.from_array(values + 1, tensor.name))

        edit_onnx(bundle, change)
        report = check_here(bundle)
        assert "with onnxruntime stage 1 is the first" in failed(report)["numerics"]
        assert report.bit_exact
        assert check_here(bundle, backends=("torch",)).ok

    def test_onnx_model_that_cannot_be_run(self, bundle: Path) -> None:
        edit_onnx(bundle, lambda model: setattr(model.graph.node[0], "op_type", "Nonsense"))
        assert "fails in onnxruntime" in failed(check_here(bundle))["numerics"]

    def test_missing_onnx_model_is_said(self, bundle: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            document["stages"][1]["model"] = None
            document["stages"][1]["model_missing"] = "no such operator"
            document["files"] = [f for f in document["files"] if f["path"] != MODEL]

        edit_manifest(bundle, change)
        (bundle / MODEL).unlink()
        report = check_here(bundle)
        assert report.ok
        assert "stage 1 has no ONNX model (no such operator)" in report.check("numerics").detail


class TestOneStageOnly:
    def test_verifies_its_own_shard(self, bundle: Path) -> None:
        for file in (bundle / "stage-0").iterdir():
            file.unlink()
        report = check_here(open_bundle(bundle, stages=(1,)))
        assert failed(report) == {}

    def test_names_its_own_fault(self, bundle: Path) -> None:
        TestNumerics().change_weight(bundle, PROGRAM)
        for file in (bundle / "stage-0").iterdir():
            file.unlink()
        report = check_here(open_bundle(bundle, stages=(1,)), backends=())
        assert report.differences[0].stage == 1

    def test_without_reference(self, bundle: Path) -> None:
        (bundle / "reference.safetensors").unlink()
        report = check_here(open_bundle(bundle, stages=(1,)))
        assert "reference.safetensors is missing" in failed(report)["integrity"]


class Several(nn.Module):
    """Operations that return several tensors, a skip across the cut, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.second = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, _, c = torch.chunk(self.first(x), 3, dim=1)
        hidden = self.second(torch.relu(a) + c)
        values, places = torch.topk(hidden, 2)
        return values + x[:, :2], places


@pytest.mark.parametrize(
    ("make", "shape", "position", "max_tensors"),
    [
        (TiedWeights, (6,), 2, 1),
        (TiedWeights, (6,), 4, 1),
        (ChangesAView, (6,), 5, 2),
        (ReadsTheBatchSize, (8,), 2, 1),
        (Several, (6,), 5, 3),
    ],
)
def test_models_of_trouble(
    tmp_path: Path, make: type[nn.Module], shape: tuple[int, ...], position: int, max_tensors: int
) -> None:
    torch.manual_seed(3)
    directory = write_bundle(
        make(),
        (torch.randn(3, *shape),),
        (position,),
        tmp_path / "b.cutset",
        max_tensors=max_tensors,
    )
    report = check_here(directory)
    assert {k: v for k, v in failed(report).items() if k != "units"} == {}
    assert report.bit_exact
