import msgspec
import pytest

from cutset.cluster.devices import Device
from cutset.costs.cost_model import PieceSeconds, SharedWeight, costs_from_flops, costs_from_profile
from cutset.costs.profile import (
    PieceProfile,
    Profile,
    Timing,
    load_profile,
    with_backend,
    with_stages,
)
from cutset.errors import PlanError
from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph, Operation
from planner_graphs import chain, parameter, spec


def profile(device, seconds, *, micro_batch=1, names=("op0", "op1", "output")):
    return Profile(
        format="cutset-profile/1",
        model="chain",
        device=device,
        micro_batch=micro_batch,
        num_threads=1,
        pieces=tuple(
            PieceProfile(
                last=name,
                flops=1,
                timings={
                    backend: Timing(median_s=s, p10_s=s, p90_s=s, num_runs=3)
                    for backend, s in row.items()
                },
            )
            for name, row in zip(names, seconds, strict=True)
        ),
        software={},
    )


def test_flops_become_seconds_of_a_micro_batch():
    graph, cuts = chain([100, 200, 300])
    costs = costs_from_flops(graph, cuts, micro_batch=4, flops_per_s=100.0)
    assert costs.seconds == (PieceSeconds(device="", backend="", seconds=(4.0, 8.0, 12.0)),)
    assert costs.positions == (0, 1, 2, 3)
    assert costs.names == ("input", "op0", "op1", "output")
    assert costs.cut_bytes_per_row == (40, 40, 40, 40)
    assert costs.flops_per_row == (100, 200, 300)


def test_a_shared_weight_counts_once_in_each_stage_that_holds_it():
    graph, cuts = chain([1, 1, 1], weights=[100, 200, 400], shared={"tied": (1000, (0, 2))})
    costs = costs_from_flops(graph, cuts)
    assert costs.own_weight_bytes == (100, 200, 400)
    assert costs.shared_weights == (SharedWeight(num_bytes=1000, pieces=(0, 2)),)
    assert costs.weight_bytes(0, 1) == 1100
    assert costs.weight_bytes(1, 2) == 200
    assert costs.weight_bytes(0, 3) == 1700


def test_memory_is_base_weights_the_peak_of_one_and_what_the_others_in_flight_hold():
    graph, cuts = chain([1, 1, 1], widths=[10, 50, 20], weights=[100, 200, 400])
    costs = costs_from_flops(graph, cuts, micro_batch=2, base_bytes=7)
    # Alive at once: input and result of each operation, 4 bytes an element.
    assert costs.peak_bytes_per_row == (80, 240, 280)
    assert costs.cut_bytes_per_row == (40, 40, 200, 80)
    # Three in flight in one stage, seven in three: that many inputs, and all outputs but one.
    assert costs.memory_bytes(0, 3, num_stages=1) == 7 + 700 + 2 * (280 + 3 * 40 + 2 * 80)
    assert costs.memory_bytes(1, 2, num_stages=3) == 7 + 200 + 2 * (240 + 7 * 40 + 6 * 200)
    fewer = costs_from_flops(graph, cuts, micro_batch=2, base_bytes=7, window=1)
    assert fewer.memory_bytes(1, 2, num_stages=3) == 7 + 200 + 2 * (240 + 1 * 40)
    with pytest.raises(ValueError, match="window from 1"):
        costs_from_flops(graph, cuts, window=0)


def test_a_skip_stays_alive_until_it_is_read():
    def operation(name, inputs):
        return Operation(
            name=name,
            target="aten.add.Tensor",
            inputs=inputs,
            outputs=(spec(name, 1),),
            parameters=(),
            modules=(),
            flops=0,
        )

    graph = Graph(
        model_class="tests.Skip",
        inputs=(spec("x", 1),),
        operations=(
            operation("a", ("x",)),
            operation("b", ("a",)),
            operation("c", ("b",)),
            operation("d", ("a", "c")),
        ),
        outputs=("d",),
        parameters=(parameter("unused", 4),),
    )
    cuts = CutPoints(units=(), points=(), refused=(), max_tensors=1)
    costs = costs_from_flops(graph, cuts)
    assert costs.num_pieces == 1
    assert costs.peak_bytes_per_row == (12,)  # a, b and c while c is computed
    assert costs.weight_bytes(0, 1) == 0


def test_a_device_without_measurements_is_scaled_from_the_reference():
    graph, cuts = chain([1, 1, 1])
    reference = profile("here", [{"torch": 1.0}, {"torch": 2.0}, {"torch": 3.0}])
    pi = profile("pi", [{"torch": 9.0}, {"torch": 9.0}, {"torch": 9.0}])
    costs = costs_from_profile(graph, cuts, {"here": reference, "pi": pi, "file.json": pi})
    assert costs.seconds_on(Device(name="new", speed=0.5))[0].seconds == (2.0, 4.0, 6.0)
    assert costs.seconds_on(Device(name="pi", speed=0.5))[0].seconds == (9.0, 9.0, 9.0)
    assert costs.seconds_on(Device(name="x", profile="file.json"))[0].seconds == (9.0, 9.0, 9.0)
    with pytest.raises(PlanError, match=r"'x' has its costs in 'gone\.json', which was not read"):
        costs.seconds_on(Device(name="x", profile="gone.json"))


def test_every_backend_is_kept_and_gaps_with_it():
    graph, cuts = chain([1, 1, 1])
    reference = profile("here", [{"torch": 1.0, "ort": 0.5}, {"torch": 2.0}, {"torch": 3.0}])
    costs = costs_from_profile(graph, cuts, reference)
    assert [(s.backend, s.seconds) for s in costs.seconds] == [
        ("ort", (0.5, None, None)),
        ("torch", (1.0, 2.0, 3.0)),
    ]


def test_a_profile_of_other_cut_points_is_refused():
    graph, cuts = chain([1, 1, 1])
    other = profile("here", [{"torch": 1.0}] * 3, names=("op0", "opX", "output"))
    with pytest.raises(PlanError, match="piece 1 ends at 'opX', not 'op1'"):
        costs_from_profile(graph, cuts, other)
    short = profile("here", [{"torch": 1.0}] * 2, names=("op0", "op1"))
    with pytest.raises(PlanError, match="has 2 pieces, this model has 3"):
        costs_from_profile(graph, cuts, short)


def test_profiles_of_different_micro_batches_are_refused():
    graph, cuts = chain([1, 1, 1])
    rows = [{"torch": 1.0}] * 3
    with pytest.raises(PlanError, match="micro-batches of 2 rows, another one with 1"):
        costs_from_profile(
            graph, cuts, {"a": profile("a", rows), "b": profile("b", rows, micro_batch=2)}
        )


def test_finer_pieces_share_the_measured_seconds_by_flops():
    graph, cuts = chain([100, 300, 50, 0])
    (point,) = (p for p in cuts.points if p.after == "op1")
    coarse = msgspec.structs.replace(
        cuts,
        points=(point,),
        refused=tuple(
            msgspec.structs.replace(p, reason="inside a unit") for p in cuts.points if p != point
        ),
    )
    measured = profile("here", [{"torch": 8.0}, {"torch": 5.0}], names=("op1", "output"))
    costs = costs_from_profile(graph, coarse, measured, granularity="op")
    assert costs.seconds[0].seconds == (2.0, 6.0, 5.0, 0.0)
    assert costs_from_flops(graph, coarse).num_pieces == 2


def test_a_profile_file_reads_back_and_a_bad_one_is_an_error(tmp_path):
    one = profile("here", [{"torch": 1.0}] * 3)
    (tmp_path / "p.json").write_bytes(msgspec.json.encode(one))
    assert load_profile(tmp_path / "p.json") == one
    newer = msgspec.structs.replace(one, format="cutset-profile/9")
    (tmp_path / "new.json").write_bytes(msgspec.json.encode(newer))
    with pytest.raises(PlanError, match="expected format 'cutset-profile/1', got"):
        load_profile(tmp_path / "new.json")
    (tmp_path / "bad.json").write_text('{"format": 1}')
    with pytest.raises(PlanError, match=r"Expected `str`, got `int` - at `\$.format`"):
        load_profile(tmp_path / "bad.json")


def test_numbers_out_of_range_are_refused():
    graph, cuts = chain([1, 1])
    with pytest.raises(ValueError, match="micro_batch"):
        costs_from_flops(graph, cuts, micro_batch=0)
    with pytest.raises(ValueError, match="granularity is 'unit' or 'op'"):
        costs_from_flops(graph, cuts, granularity="layer")


def medians(profile, backend):
    return [piece.timings[backend].median_s for piece in profile.pieces]


def test_pieces_are_scaled_to_the_stages_that_were_measured():
    before = profile("a", [{"t": 1.0, "o": 4.0}, {"t": 3.0, "o": 4.0}, {"t": 2.0, "o": 4.0}])
    after = with_stages(before, ["op1", "output"], ["t", "o"], [8.0, 1.0])
    assert medians(after, "t") == [2.0, 6.0, 2.0]
    assert medians(after, "o") == [4.0, 4.0, 1.0]
    assert after.pieces[1].timings["t"].p90_s == 6.0
    assert medians(before, "t") == [1.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("lasts", "backends"), [(["nowhere", "output"], ["t", "t"]), (["op1", "output"], ["t", "x"])]
)
def test_stages_that_the_profile_does_not_know_are_refused(lasts, backends):
    with pytest.raises(PlanError, match="the profile has no times with backend"):
        with_stages(profile("a", [{"t": 1.0}] * 3), lasts, backends, [1.0, 1.0])


def test_a_profile_of_one_backend():
    both = profile("a", [{"t": 1.0, "o": 4.0}] * 3)
    assert with_backend(both, "o") == profile("a", [{"o": 4.0}] * 3)
    with pytest.raises(PlanError, match="'x' for the piece that ends with 'op0'; it has t, o"):
        with_backend(both, "x")
