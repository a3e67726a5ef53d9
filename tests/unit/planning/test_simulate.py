import pytest

from cutset.planning.simulate import simulate


def rows(timeline):
    return [(s.resource, s.microbatch_index, s.start_s, s.stop_s) for s in timeline.slots]


def test_stages_and_links_overlap():
    timeline = simulate([2.0, 3.0], [0.0, 1.0, 0.0], num_microbatches=2)
    assert rows(timeline) == [
        ("stage 0", 0, 0.0, 2.0),
        ("link 0 -> 1", 0, 2.0, 3.0),
        ("stage 0", 1, 2.0, 4.0),
        ("stage 1", 0, 3.0, 6.0),
        ("link 0 -> 1", 1, 4.0, 5.0),
        ("stage 1", 1, 6.0, 9.0),
    ]
    assert timeline.first_latency_s == 6.0
    assert timeline.steady_period_s == 3.0
    assert timeline.total_s == 9.0
    assert timeline.busy_fraction == (pytest.approx(4 / 9), pytest.approx(6 / 9))


def test_a_serial_transfer_holds_both_of_its_ends():
    timeline = simulate([2.0, 3.0], [0.0, 1.0, 0.0], num_microbatches=2, serial=True)
    assert rows(timeline) == [
        ("stage 0", 0, 0.0, 2.0),
        ("link 0 -> 1", 0, 2.0, 3.0),
        ("stage 1", 0, 3.0, 6.0),
        ("stage 0", 1, 3.0, 5.0),
        ("link 0 -> 1", 1, 6.0, 7.0),
        ("stage 1", 1, 7.0, 10.0),
    ]


def test_overhead_keeps_a_stage_and_not_its_result():
    timeline = simulate([2.0, 3.0], [0.0, 1.0, 0.0], overhead_s=[1.0, 0.5], num_microbatches=2)
    assert rows(timeline) == [
        ("stage 0", 0, 0.0, 2.0),
        ("link 0 -> 1", 0, 2.0, 3.0),
        ("stage 1", 0, 3.0, 6.0),
        ("stage 0", 1, 3.0, 5.0),
        ("link 0 -> 1", 1, 5.0, 6.0),
        ("stage 1", 1, 6.5, 9.5),
    ]


def test_a_window_of_one_runs_one_at_a_time():
    timeline = simulate([2.0, 3.0], [1.0, 1.0, 1.0], num_microbatches=3, window=1)
    assert timeline.steady_period_s == 8.0
    assert timeline.total_s == 24.0


@pytest.mark.parametrize(
    ("compute", "moves", "count", "window"),
    [([], [0.0], 1, None), ([1.0], [0.0], 1, None), ([-1.0], [0.0, 0.0], 1, None),
     ([1.0], [0.0, 0.0], 0, None), ([1.0], [0.0, 0.0], 1, 0)],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(compute, moves, count, window):
    with pytest.raises(ValueError, match=r"."):
        simulate(compute, moves, num_microbatches=count, window=window)


def test_messages_that_share_a_medium_take_turns():
    air = [{}, {"medium air": 2.0}, {"medium air": 3.0}, {}]
    timeline = simulate(
        [1.0, 1.0, 1.0], [0.0, 2.0, 3.0, 0.0], num_microbatches=40, window=7, shared_s=air
    )
    alone = simulate([1.0, 1.0, 1.0], [0.0, 2.0, 3.0, 0.0], num_microbatches=1, shared_s=air)
    assert alone.first_latency_s == pytest.approx(8.0)
    # 5 s of air each; and none begins before the 1 s in which stage 0 computes.
    assert 1.0 + 40 * 5.0 <= timeline.total_s <= (40 + 7) * 5.0
    apart = simulate([1.0, 1.0, 1.0], [0.0, 2.0, 3.0, 0.0], num_microbatches=40, window=7)
    assert apart.steady_period_s == 3.0


def test_what_one_message_uses_alone_changes_nothing():
    moves = [0.0, 2.0, 1.0, 0.0]
    alone = [{}, {"port out of a": 1.0}, {"port into c": 1.0}, {}]
    shared = simulate([1.0, 3.0, 1.0], moves, num_microbatches=9, shared_s=alone)
    assert shared == simulate([1.0, 3.0, 1.0], moves, num_microbatches=9)


def test_a_serial_stage_does_nothing_else_while_a_shared_wire_is_slow():
    air = [{}, {"medium air": 2.0}, {"medium air": 2.0}]
    timeline = simulate([1.0, 1.0], [0.0, 2.0, 2.0], num_microbatches=5, serial=True, shared_s=air)
    for slot in timeline.slots:
        if slot.kind == "transfer":
            ends = {f"stage {slot.stage}", f"stage {slot.stage + 1}"}
            for other in timeline.slots:
                if other.resource in ends:
                    assert other.stop_s <= slot.start_s or other.start_s >= slot.stop_s
    assert timeline.steady_period_s >= 5.0 - 1e-9


@pytest.mark.parametrize(
    ("shared", "what"),
    [
        ([{}], "3 transfers and 1 of what they share"),
        ([{}, {"x": 3.0}, {}], "keeps something busy for longer"),
        ([{}, {"x": -1.0}, {}], "keeps something busy for longer"),
    ],
)
def test_what_is_shared_has_to_fit_the_transfers(shared, what):
    with pytest.raises(ValueError, match=what):
        simulate([1.0, 1.0], [0.0, 2.0, 2.0], num_microbatches=2, shared_s=shared)
