from __future__ import annotations

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from cutset.cluster.devices import Link
from cutset.errors import EngineError
from cutset.measure.link_speed import MAX_BYTES, LinkResult, exchange, links_of
from talking import Talk


def _measured(*options: str) -> tuple[LinkResult, ...]:
    command = [sys.executable, "-m", "cutset.measure.link_speed", "--listen-host", "127.0.0.1"]
    ends = Talk([*command, "--first", *options]), Talk([*command, *options])
    results = exchange(*ends, limit_s=120)
    for end in ends:
        end.process.communicate(timeout=20)
    assert [end.process.returncode for end in ends] == [0, 0]
    return results


def test_both_directions_are_measured_with_keys_and_without() -> None:
    with ThreadPoolExecutor(2) as threads:  # each takes the same time, however busy the machine
        found = threads.submit(_measured), threads.submit(_measured, "--unsecured")
    for result in itertools.chain.from_iterable(each.result() for each in found):
        assert result.latency_s > 0
        assert result.bandwidth_bytes_per_s > 0
        assert 0 < result.num_bytes <= MAX_BYTES
        assert result.sending_s_per_byte >= 0
        assert result.receiving_s_per_byte >= 0


def test_ends_that_say_nothing_are_not_waited_for_for_ever() -> None:
    class Mute:
        def hear(self) -> list[str]:
            return []

        def tell(self, line: str) -> None:
            raise AssertionError(line)

    with pytest.raises(EngineError, match="did not end within 0 s"):
        exchange(Mute(), Mute(), limit_s=0.01)


def test_a_link_takes_each_cost_from_the_end_that_pays_it() -> None:
    first, second = (
        LinkResult(
            bandwidth_bytes_per_s=number,
            latency_s=number / 10,
            num_bytes=1,
            sending_s_per_byte=number / 100,
            receiving_s_per_byte=number / 1000,
        )
        for number in (1.0, 2.0)
    )
    assert links_of(first, second) == (
        Link(
            bandwidth_bytes_per_s=1.0,
            latency_s=0.1,
            send_s_per_byte=0.01,
            receive_s_per_byte=0.002,
        ),
        Link(
            bandwidth_bytes_per_s=2.0,
            latency_s=0.2,
            send_s_per_byte=0.02,
            receive_s_per_byte=0.001,
        ),
    )
