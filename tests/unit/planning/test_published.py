"""The planner against optima that others published; the files are not part of the project."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from cutset.planning.anyorder.downsets import DagProblem, Space, Tensor
from cutset.planning.anyorder.search import solve_downsets
from cutset.planning.solvers.solve import solve_period

ROOT = Path(__file__).parents[3]
INPUTS = ROOT.parent / "shared" / "planner-inputs"
needs_inputs = pytest.mark.skipif(
    not INPUTS.is_dir(), reason="../shared/planner-inputs is absent; nothing to compare with"
)


@pytest.fixture(scope="module")
def readers():
    """The adapters, which live beside the benchmark that uses them."""
    path = ROOT / "benchmarks" / "planner_inputs.py"
    spec = importlib.util.spec_from_file_location("planner_inputs", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["planner_inputs"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["planner_inputs"]


@needs_inputs
@pytest.mark.parametrize(
    ("name", "best"), [("8_96", 11.5312042), ("12_96", 7.05548718), ("8_300", 29.2153287)]
)
def test_distinct_devices(readers, name, best):
    problem = readers.read_speed_case(INPUTS / "planner-speed" / f"s_{name}.flat.txt")
    solution = solve_period(problem)
    assert solution.proven_by == "exhaustion"
    assert problem.period_s(solution.stages) == pytest.approx(best, rel=1e-6)


@needs_inputs
@pytest.mark.parametrize(
    ("model", "best", "digits"), [("base", 1.549, 5e-4), ("large", 5.043, 5e-4)]
)
def test_two_kinds_of_devices_beat_the_published_schedule(readers, model, best, digits):
    problem = readers.read_pipeedge_case(
        INPUTS / "pipeedge", f"google/vit-{model}-patch16-224", (4, 4)
    )
    period_s = problem.period_s(solve_period(problem).stages)
    assert period_s == pytest.approx(best, abs=5e-4)  # published to four digits
    if model == "base":
        published = readers.published_pipeedge_period(INPUTS / "pipeedge", problem)
        assert published == pytest.approx(1.726248, rel=1e-6)
        assert period_s < published


@needs_inputs
@pytest.mark.parametrize(
    ("name", "best", "rel"),
    [
        ("layer_resnet50", 33.774666, 1e-6),
        ("layer_bert24", 17.789906, 1e-6),
        ("operator_resnet50", 124.349, 4e-6),  # published to six digits
        ("operator_bert3", 27.9186, 2e-6),
    ],
)
def test_graphs_over_all_downsets(readers, name, best, rel):
    problem = readers.read_placement_case(INPUTS / "dnn-partitioning" / f"{name}.json")
    solution = solve_downsets(problem)
    assert solution.family == "downset"
    assert solution.period_s == pytest.approx(best, rel=rel)


@needs_inputs
@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("layer_resnet50", 39.398),
        ("layer_bert24", 17.790),
        ("operator_resnet50", 129.155),
        ("operator_bert3", 37.456),
    ],
)
def test_graphs_where_one_node_reads_what_crosses_a_cut(readers, name, best):
    problem = readers.read_placement_case(INPUTS / "dnn-partitioning" / f"{name}.json")
    solution = solve_downsets(problem, allowed=readers.cuts_with_one_reader)
    assert solution.period_s == pytest.approx(best, abs=5e-4)  # published to three decimals


def test_a_skip_has_two_readers_and_the_branches_of_an_addition_one(readers):
    # 0 -> 1 -> 2 -> 3, a skip from 0 to 3, and a constant of no cost from 4 to 1 and 3.
    tensors = [(0, (1, 3), 1.0), (1, (2,), 1.0), (2, (3,), 1.0), (4, (1, 3), 0.0)]
    problem = DagProblem(
        seconds=np.ones((1, 5)),
        weight_bytes=np.zeros(5),
        tensors=tuple(Tensor(source=s, targets=t, transfer_s=c) for s, t, c in tensors),
        groups=np.arange(5),
        counts=(5,),
        limit_bytes=np.array([np.inf]),
        through_host=True,
        pays=(True,),
    )
    masks = {0b00000: True, 0b00001: False, 0b10000: True, 0b10001: False}
    masks |= {0b10011: False, 0b10111: True, 0b11111: True}
    space = Space(problem, list(masks), [[k] for k in range(5)])
    found = (1 << np.arange(5)) @ space.member
    allowed = readers.cuts_with_one_reader(space)
    assert dict(zip(found.tolist(), allowed.tolist(), strict=True)) == masks


@needs_inputs
@pytest.mark.parametrize("model", ["alexnet", "resnet18", "resnet50", "squeezenet1_0", "vgg16"])
def test_measured_layer_graphs_are_never_below_their_volume(readers, model):
    problem = readers.read_pipedream_case(INPUTS / "pipedream" / model / "graph.txt", 4)
    solution = solve_downsets(problem)
    assert solution.family == "downset"
    assert sum(len(stage) for stage in solution.stages) == problem.seconds.shape[1]
    assert solution.period_s >= problem.seconds.sum() / 4 * (1 - 1e-12)
    # One device holds everything without a transfer, so no plan is worse.
    assert solution.period_s <= problem.seconds.sum()


def test_inceptions_shape_is_searched_over_all_its_downsets(readers):
    solution = solve_downsets(readers.inception_like(0))
    assert (solution.family, solution.num_downsets) == ("downset", 22_481)
    problem = readers.inception_like(0)
    assert solution.period_s >= problem.seconds[0].sum() / 6.1 * (1 - 1e-12)


def test_too_many_downsets_fall_back_to_prefixes(readers):
    solution = solve_downsets(readers.inception_like(0), limit=1000)
    assert solution.family == "orders"
    assert solution.period_s >= solve_downsets(readers.inception_like(0)).period_s
