from __future__ import annotations

import subprocess
import sys

import msgspec

from cutset.cluster.devices import Link
from cutset.links.network import serve_store
from cutset.measure.link_speed import MAX_BYTES, LinkResult, links_of


def test_both_directions_are_measured() -> None:
    store = serve_store("127.0.0.1")
    ends = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "cutset.measure.link_speed"),
                *("--store-host", "127.0.0.1", "--store-port", str(store.port)),
                *("--prefix", "test", "--listen-host", "127.0.0.1"),
                *more,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for more in (("--first",), ())
    ]
    for end in ends:
        out, _ = end.communicate(timeout=120)
        assert end.returncode == 0
        result = msgspec.json.decode(out, type=LinkResult)
        assert result.latency_s > 0
        assert result.bandwidth_bytes_per_s > 0
        assert 0 < result.num_bytes <= MAX_BYTES
        assert result.sending_s_per_byte >= 0
        assert result.receiving_s_per_byte >= 0


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
