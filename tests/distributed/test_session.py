from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from cutset.engines.local import LocalEngine
from cutset.errors import BundleError, ContractViolation, EngineError
from cutset.runtime.session import Session, open_session

from .bundles import SmallNet, whole_model, write_bundle


@pytest.fixture(scope="module")
def session(bundle: Path) -> Iterator[Session]:
    with open_session(bundle, backend="torch") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_process_survives() -> None:
    """This module keeps one session open from test to test; see `test_close_leaves_nothing`."""


@pytest.mark.parametrize("micro_batch", [1, 4, 5])
def test_any_batch_size_is_bit_for_bit_the_whole_model(
    bundle: Path, model: SmallNet, micro_batch: int
) -> None:
    with open_session(bundle, backend="torch", micro_batch=micro_batch) as session:
        for num_rows in range(1, 18):
            rows = torch.randn(num_rows, 3, 16, 16)
            answer = session.run(rows)
            assert answer.shape == (num_rows, 10)
            assert torch.equal(answer, whole_model(model, rows, micro_batch))


def test_three_stages_and_a_window_of_one(bundle_of_three: Path, model: SmallNet) -> None:
    rows = torch.randn(11, 3, 16, 16)
    with open_session(bundle_of_three, backend="torch", window=1) as session:
        assert torch.equal(session.run(rows), whole_model(model, rows, 4))


def test_a_window_of_more_headers_than_a_socket_holds(bundle: Path, model: SmallNet) -> None:
    rows = torch.randn(600, 3, 16, 16)
    with open_session(bundle, backend="torch", micro_batch=1, window=300) as session:
        assert torch.equal(session.run(rows), whole_model(model, rows, 1))


def test_a_single_stage_is_a_pipeline_too(tmp_path: Path, model: SmallNet) -> None:
    bundle = write_bundle(model, (torch.randn(2, 3, 16, 16),), (), tmp_path / "one.cutset")
    rows = torch.randn(6, 3, 16, 16)
    with open_session(bundle, backend="torch") as session:
        assert torch.equal(session.run(rows), whole_model(model, rows, 4))


def test_tensors_cross_as_messages_where_memory_is_not_shared(
    bundle_of_three: Path, model: SmallNet
) -> None:
    engine = LocalEngine(("a", "b", "c"), num_threads=1, shares_memory=False)
    with open_session(bundle_of_three, backend="torch", engine=engine) as session:
        for num_rows in (1, 4, 11):
            rows = torch.randn(num_rows, 3, 16, 16)
            assert torch.equal(session.run(rows), whole_model(model, rows, 4))


def test_threads_may_submit_at_once(session: Session, model: SmallNet) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for num_rows in range(1, 12):
            rows = torch.randn(num_rows, 3, 16, 16, generator=generator)
            if not torch.equal(session.run(rows), whole_model(model, rows, 4)):
                wrong.append(num_rows)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_numpy_in_numpy_out(session: Session, model: SmallNet) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)
    rows.flags.writeable = False
    answer = session.run(rows[::-1])
    assert isinstance(answer, np.ndarray)
    expected = whole_model(model, torch.from_numpy(rows[::-1].copy()), 4)
    assert np.array_equal(answer, expected.numpy())


def test_rows_in_channels_last_stay_bit_for_bit(session: Session, model: SmallNet) -> None:
    rows = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    assert torch.equal(session.run(rows), whole_model(model, rows, 4))


def test_input_that_does_not_fit_fails_its_own_request_only(
    session: Session, model: SmallNet
) -> None:
    good = torch.randn(5, 3, 16, 16)
    before = session.submit(good)
    bad = session.submit(torch.randn(5, 4, 16, 16))
    after = session.submit(good)
    with pytest.raises(ContractViolation) as caught:
        bad.result(30)
    assert caught.value.boundary == "into stage 0, the model's input"
    assert caught.value.expected == "float32[batch, 3, 16, 16]"
    assert caught.value.actual == "float32[5, 4, 16, 16]"
    expected = whole_model(model, good, 4)
    assert torch.equal(before.result(30), expected)
    assert torch.equal(after.result(30), expected)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (torch.zeros(0, 3, 16, 16), EngineError, "has no rows"),
        (
            torch.zeros(2, 3, 16, 16, dtype=torch.float64),
            ContractViolation,
            "convert it to float32",
        ),
        (torch.zeros(3, 16, 16), ContractViolation, "give it 4 dimensions"),
        (torch.tensor(1.0), ContractViolation, "give it 4 dimensions"),
        ([[1.0]], TypeError, "give a torch.Tensor or a numpy.ndarray"),
    ],
)
def test_bad_input_says_what_to_do(
    session: Session, rows: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        session.run(rows)  # type: ignore[arg-type]


def test_the_wrong_number_of_inputs_is_refused(session: Session) -> None:
    with pytest.raises(ContractViolation, match="1 tensors expected"):
        session.run(torch.zeros(1, 3, 16, 16), torch.zeros(1))


def test_stream_keeps_order_and_reads_only_a_little_ahead(
    session: Session, model: SmallNet
) -> None:
    num_read = 0

    def items() -> Iterator[torch.Tensor]:
        nonlocal num_read
        for index in range(100):
            num_read += 1
            yield torch.full((1 + index % 6, 3, 16, 16), index / 100)

    for index, answer in enumerate(session.stream(items())):
        rows = torch.full((1 + index % 6, 3, 16, 16), index / 100)
        assert torch.equal(answer, whole_model(model, rows, 4))
        assert num_read <= index + session.window + 3
    assert index == 99


def test_stream_in_any_order_answers_every_item_once(session: Session) -> None:
    sizes = [1 + index % 7 for index in range(30)]
    answers = session.stream((torch.zeros(n, 3, 16, 16) for n in sizes), ordered=False)
    assert sorted(len(answer) for answer in answers) == sorted(sizes)


def test_stream_may_return_errors_in_their_place(session: Session) -> None:
    items = [torch.zeros(1, 3, 16, 16), torch.zeros(1, 9), torch.zeros(2, 3, 16, 16)]
    first, second, third = session.stream(items, return_errors=True)
    assert len(first) == 1
    assert isinstance(second, ContractViolation)
    assert len(third) == 2


def test_a_stream_given_up_half_way_leaves_the_session_usable(session: Session) -> None:
    stream = session.stream(torch.zeros(9, 3, 16, 16) for _ in range(1000))
    assert len(next(stream)) == 9
    stream.close()
    assert len(session.run(torch.zeros(2, 3, 16, 16))) == 2


def test_a_request_can_be_cancelled_before_it_is_sent(session: Session) -> None:
    busy = [session.submit(torch.zeros(100, 3, 16, 16)) for _ in range(5)]
    late = session.submit(torch.zeros(100, 3, 16, 16))
    assert late.cancel()
    assert [len(future.result(60)) for future in busy] == [100] * 5
    assert session.stats().num_waiting == 0


def test_stats_count_rows_and_micro_batches(bundle: Path) -> None:
    with open_session(bundle, backend="torch") as session:
        session.run(torch.zeros(10, 3, 16, 16))
        status = session.stats()
    assert [stage.stats.num_rows for stage in status.stages] == [10, 10]
    assert [stage.stats.num_micro_batches for stage in status.stages] == [3, 3]
    assert [stage.backend for stage in status.stages] == ["torch", "torch"]
    assert status.stages[0].stats.received_bytes == 10 * 3 * 16 * 16 * 4
    assert status.stages[1].stats.received_bytes == 10 * 8 * 16 * 16 * 4
    assert (status.epoch, status.num_settled, status.num_in_flight) == (1, 3, 0)


def test_close_leaves_nothing_and_ends_what_is_open(bundle: Path) -> None:
    session = open_session(bundle, backend="onnxruntime")
    workers = [psutil.Process(pid) for pid in session.worker_pids]
    futures = [session.submit(torch.zeros(400, 3, 16, 16)) for _ in range(10)]
    session.close()
    session.close()
    assert not any(worker.is_running() for worker in workers)
    with pytest.raises(EngineError, match="was closed"):
        futures[-1].result(0)
    with pytest.raises(EngineError, match="was closed"):
        session.submit(torch.zeros(1, 3, 16, 16))


def test_close_ends_the_workers_though_a_waiter_kept_its_lock(bundle: Path) -> None:
    # As Ctrl-C leaves it that comes between taking a future's lock and beginning to wait.
    session = open_session(bundle, backend="onnxruntime")
    workers = [psutil.Process(pid) for pid in session.worker_pids]
    future = session.submit(torch.zeros(4000, 3, 16, 16))
    with future._condition:
        session.close()
        assert not any(worker.is_running() for worker in workers)
    with pytest.raises(EngineError, match="was closed"):
        future.result(0)


def test_sessions_leave_no_file_handles(bundle: Path) -> None:
    def open_and_close() -> int:
        with open_session(bundle, backend="onnxruntime") as session:
            session.run(torch.zeros(5, 3, 16, 16))
        del session
        gc.collect()  # arenas and circuits refer to each other
        return psutil.Process().num_fds()

    open_and_close()
    second = open_and_close()
    assert open_and_close() <= second


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        a = torch.relu(self.first(x + y))
        b = torch.relu(self.second(a))
        return {"logits": self.third(b), "sum": a + b}


def test_several_inputs_outputs_and_tensors_across_a_cut(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = _TwoHeads().eval()
    example = (torch.randn(2, 6), torch.randn(2, 6))
    bundle = write_bundle(model, example, (3, 5), tmp_path / "two.cutset", max_tensors=2)
    x, y = torch.randn(7, 6), torch.randn(7, 6)
    with open_session(bundle, backend="torch") as session:
        answer = session.run(x, y)
    with torch.inference_mode():
        parts = [model(*pair) for pair in zip(x.split(4), y.split(4), strict=True)]
    assert list(answer) == ["logits", "sum"]
    assert torch.equal(answer["logits"], torch.cat([part["logits"] for part in parts]))
    assert torch.equal(answer["sum"], torch.cat([part["sum"] for part in parts]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"backend": "tensorrt"}, EngineError, "choose one of auto, torch, onnxruntime"),
        ({"engine": "kubernetes"}, EngineError, "this version has: local"),
        ({"micro_batch": 0}, ValueError, "from 1 to 16777216, got 0"),
        ({"window": 0}, ValueError, "from 1 to 4096, got 0"),
        ({"window": 4097}, ValueError, "from 1 to 4096, got 4097"),
        ({"num_threads": 0}, ValueError, "num_threads .* from 1 to"),
    ],
)
def test_unknown_options_are_refused_before_anything_starts(
    bundle: Path, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        open_session(bundle, **options)  # type: ignore[arg-type]


def test_a_damaged_shard_is_refused_at_the_start(tmp_path: Path, model: SmallNet) -> None:
    bundle = write_bundle(model, (torch.randn(2, 3, 16, 16),), (3,), tmp_path / "bad.cutset")
    program = bundle / "stage-1" / "program.pt2"
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 1
    program.write_bytes(data)
    with pytest.raises(BundleError, match=r"stage-1/program\.pt2"):
        open_session(bundle, backend="torch")


def test_a_session_may_be_opened_in_inference_mode(bundle: Path, model: SmallNet) -> None:
    rows = torch.randn(3, 3, 16, 16)
    with torch.inference_mode(), open_session(bundle, backend="torch", micro_batch=3) as session:
        answer = session.run(rows)
    assert torch.equal(torch.as_tensor(answer), whole_model(model, rows, 3))
