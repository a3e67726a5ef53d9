from __future__ import annotations

import platform

import pytest
import torch

from cutset.backends.base import Computation
from cutset.capture.torch_export import capture_model
from cutset.costs.profile import load_profile, profile_to_json
from cutset.dtypes import Arrays
from cutset.errors import EngineError
from cutset.graph.cuts import find_cut_points
from cutset.measure.profiling import piece_backends, profile_costs
from models_of_trouble import long_chain, residual_net


def test_every_piece_is_measured_with_every_backend() -> None:
    captured = capture_model(residual_net(), torch.randn(2, 3, 8, 8))
    cuts = find_cut_points(captured.graph)
    seen: list[tuple[str, int, int]] = []
    profile = profile_costs(
        captured,
        cuts,
        micro_batch=3,
        num_runs=6,
        backends=piece_backends(captured, cuts, num_threads=1),
        progress=lambda *step: seen.append(step),
    )
    assert [piece.last for piece in profile.pieces] == [
        *(point.after for point in cuts.points),
        "output",
    ]
    assert sum(piece.flops for piece in profile.pieces) == captured.graph.flops
    for backend in ("torch", "onnxruntime", "openvino"):
        timings = [piece.timings[backend] for piece in profile.pieces]
        assert all(t.num_runs == 6 and 0 < t.p10_s <= t.median_s <= t.p90_s for t in timings)
        total = sum(timing.median_s for timing in timings)
        assert total == pytest.approx(profile.whole[backend].median_s)
        assert profile.software[backend]
    assert ("onnxruntime", 6, 6) in seen
    assert (profile.micro_batch, profile.num_threads) == (3, 1)
    assert (profile.model, profile.device) == (captured.graph.model_class, platform.node())


def test_threads_are_as_before_afterwards() -> None:
    captured = capture_model(residual_net(), torch.randn(2, 3, 8, 8))
    torch.set_num_threads(1)
    profile_costs(captured, find_cut_points(captured.graph), num_threads=2, num_runs=5)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("wrong", [{"micro_batch": 0}, {"num_threads": 0}])
def test_numbers_out_of_range(wrong: dict[str, int]) -> None:
    captured = capture_model(residual_net(), torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="start at 1"):
        profile_costs(captured, find_cut_points(captured.graph), **wrong)


def test_a_profile_goes_to_a_file_and_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    captured = capture_model(residual_net(), torch.randn(2, 3, 8, 8))
    profile = profile_costs(captured, find_cut_points(captured.graph), num_runs=5)
    path = tmp_path_factory.mktemp("profiles") / "p.json"
    path.write_text(profile_to_json(profile))
    assert load_profile(path) == profile


def test_a_backend_that_cannot_run_a_piece_is_left_out_and_the_reason_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    captured = capture_model(long_chain(3), torch.randn(2, 4))
    cuts = find_cut_points(captured.graph)
    eager = piece_backends(captured, cuts, num_threads=1)["torch"]

    def lacks_a_piece(start: int, stop: int) -> Computation:
        if start > 0:
            raise LookupError("no kernel for this\nand a long dump")
        return eager(start, stop)

    def fails_in_running(start: int, stop: int) -> Computation:
        def run(_inputs: Arrays) -> Arrays:
            raise MemoryError

        return run

    backends = {"torch": eager, "onnxruntime": lacks_a_piece, "openvino": fails_in_running}
    profile = profile_costs(captured, cuts, num_runs=5, backends=backends)
    assert list(profile.whole) == ["torch"]
    assert [list(piece.timings) for piece in profile.pieces] == [["torch"]] * 3
    assert "onnxruntime is not measured, since it cannot run every piece: no kernel" in caplog.text
    assert "openvino is not measured, since it cannot run every piece: MemoryError" in caplog.text
    with pytest.raises(EngineError, match="onnxruntime cannot run every piece of the model: no k"):
        profile_costs(captured, cuts, num_runs=5, backends={"onnxruntime": lacks_a_piece})
