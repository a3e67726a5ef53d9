"""Bundles that were captured for one number of rows alone."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor, nn

import cutset
from cutset.bundles.manifest import encode_manifest
from cutset.bundles.open import open_bundle
from cutset.capture.torch_export import capture_model
from cutset.errors import ContractViolation, EngineError, ManifestError, PlanError


class IfSeveral(nn.Module):
    """Normalises three rows and more, and doubles a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if x.shape[0] > 2:
            x = self.norm(x)
        x = self.last(torch.relu(x))
        return x * 2 if x.shape[0] == 1 else x


@pytest.mark.parametrize("only", [1, 3])
def test_every_bit_and_no_other_number(tmp_path_factory: pytest.TempPathFactory, only: int) -> None:
    torch.manual_seed(0)
    model = IfSeveral().eval()
    prepared = cutset.prepare_model(model, (torch.randn(2, 8),), micro_batch_only=only)
    plan = cutset.plan_stages(prepared, num_stages=2)
    assert plan.micro_batch == only
    with pytest.raises(PlanError, match=f"exactly {only} row"):
        cutset.plan_stages(prepared, num_stages=2, batch_size=only + 1)
    bundle = cutset.split_model(prepared, plan, tmp_path_factory.mktemp("b") / "b.cutset")
    path, report = bundle.directory, bundle.verification
    assert report.bit_exact
    manifest = open_bundle(path).manifest
    assert manifest.micro_batch_only == only
    assert {d.num_rows for d in report.comparisons} == {only}
    other = msgspec.structs.replace(manifest.plan, micro_batch=only + 1)
    with pytest.raises(ManifestError, match=r"\$\.micro_batch_only"):
        encode_manifest(msgspec.structs.replace(manifest, plan=other))
    with pytest.raises(EngineError, match=f"micro-batches of exactly {only} row"):
        cutset.open_session(path, micro_batch=only + 1)
    rows = torch.randn(6, 8)
    with torch.no_grad():
        expected = torch.cat([model(part) for part in rows.split(only)])
    with cutset.open_session(path, backend="torch") as session:
        assert torch.equal(torch.as_tensor(session.run(rows)), expected)
        if only > 1:
            with pytest.raises(ContractViolation, match=r"4 rows, but .* exactly 3 rows"):
                session.run(rows[:4])
        assert torch.equal(torch.as_tensor(session.run(rows[:only])), expected[:only])


def test_rows_may_lie_anywhere_in_what_is_inside() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.transpose(0, 1)).transpose(0, 1) + 1

    graph = capture_model(Turned(), torch.randn(2, 5, 4), micro_batch_only=2).graph
    assert graph.inputs[0].shape == ("batch", 5, 4)
    assert graph.spec_of("relu").shape == (5, "batch", 4)
    assert graph.spec_of(graph.outputs[0]).shape == ("batch", 5, 4)


def test_a_number_below_one_is_no_number() -> None:
    with pytest.raises(ValueError, match="one row or more"):
        capture_model(nn.Linear(8, 8), torch.randn(2, 8), micro_batch_only=0)
