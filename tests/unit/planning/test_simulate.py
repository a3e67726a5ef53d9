import pytest

from cutset.planning import simulate


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
