from __future__ import annotations

import subprocess
import sys

import msgspec

from cutset.runtime.channel import serve_store
from cutset.runtime.linkprobe import MAX_BYTES, LinkResult


def test_both_directions_are_measured() -> None:
    store = serve_store("127.0.0.1")
    ends = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "cutset.runtime.linkprobe"),
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
