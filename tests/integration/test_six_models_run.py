"""The six models, split, proven and run: every bit, every row, any number of rows.

At a smaller image than the models' own, and with thinner layers before two of the classifiers (see
`six_small`), so that the whole takes minutes: what is tested is where tensors go, not how long they
take. ``-m matrix`` runs every micro-batch size at full size.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

import six_small
from cutset.capture.whole_onnx import whole_onnx
from cutset.graph.ir import boundary_specs
from cutset.runtime.session import open_session
from cutset.workflow import PreparedModel, plan_stages, prepare_model, split_model
from six_models import SIX, prepared

MOST_ROWS = 17
MICRO_BATCHES = (1, 4, 5)
NUM_STAGES = (2, 3, 4)
CASES = [
    pytest.param(name, stages, MICRO_BATCHES[(i + j) % 3], id=f"{name}-{stages}")
    for i, name in enumerate(SIX)
    for j, stages in enumerate(NUM_STAGES)
]


@functools.cache
def _small(name: str) -> PreparedModel:
    small = prepare_model(f"{six_small.__file__}:{name}")
    captured = small.captured
    # One ONNX form, out of which the stages of all three plans are cut, instead of one for each.
    plans = [plan_stages(small, num_stages=num_stages) for num_stages in NUM_STAGES]
    stops = {stage.stop for plan in plans for stage in plan.stages[:-1]}
    whole_onnx(
        captured, [s for stop in sorted(stops) for s in boundary_specs(captured.graph, stop)]
    )
    return small


def _split_verify_and_run(
    model: PreparedModel, num_stages: int, micro_batches: tuple[int, ...], folder: Path
) -> None:
    plan = plan_stages(model, num_stages=num_stages)
    assert len(plan.stages) == num_stages
    bundle = split_model(model, plan, folder / "b.cutset")
    assert bundle.verification.ok
    assert bundle.verification.bit_exact
    rows = torch.randn(MOST_ROWS, *model.captured.example_inputs[0].shape[1:])

    @functools.cache
    def whole(start: int, stop: int) -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = model.found.model(rows[start:stop])
        return result

    for micro_batch in micro_batches:
        with open_session(bundle, backend="torch", micro_batch=micro_batch) as session:
            futures = [session.submit(rows[:n]) for n in range(1, MOST_ROWS + 1)]
            for num_rows, future in enumerate(futures, start=1):
                expected = torch.cat(
                    [
                        whole(start, min(start + micro_batch, num_rows))
                        for start in range(0, num_rows, micro_batch)
                    ]
                )
                answer = future.result(timeout=240)
                assert torch.equal(torch.as_tensor(answer), expected), (micro_batch, num_rows)


@pytest.mark.parametrize(("name", "num_stages", "micro_batch"), CASES)
def test_every_bit_of_any_number_of_rows(
    name: str, num_stages: int, micro_batch: int, tmp_path: Path
) -> None:
    _split_verify_and_run(_small(name), num_stages, (micro_batch,), tmp_path)


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_stages", NUM_STAGES)
@pytest.mark.parametrize("name", SIX)
def test_the_whole_matrix_at_full_size(name: str, num_stages: int, tmp_path: Path) -> None:
    _split_verify_and_run(prepared(name), num_stages, MICRO_BATCHES, tmp_path)
