"""What is found out of wires that are made up: each is shared evenly by who passes it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from cutset.cluster.devices import Cluster
from cutset.cluster.wires import Medium, Port, Wires
from cutset.measure.find_wires import AtOnce, FoundWires, HostPair, find_shared_wires, tried_pairs


class _MadeUp:
    """Measures a cluster by what its file says."""

    def __init__(self, cluster: Cluster, busy: float = 0.1) -> None:
        self._wires = Wires(cluster)
        self._busy = busy
        self.asked: list[Sequence[HostPair]] = []

    def together(self, pairs: Sequence[HostPair]) -> AtOnce:
        """Rates rise together until a wire is full; who passes it keeps what it has."""
        self.asked.append(pairs)
        uses = {pair: self._wires.between(*pair).uses for pair in pairs}
        rates: dict[HostPair, float] = dict.fromkeys(pairs, 0.0)
        open_ = set(pairs)
        while open_:
            room = {}
            limits = {use.wire: use.bytes_per_s for each in uses.values() for use in each}
            for wire, limit in limits.items():
                on = [pair for pair in pairs if any(use.wire == wire for use in uses[pair])]
                free = [pair for pair in on if pair in open_]
                if free:
                    room[wire] = (limit - sum(rates[pair] for pair in on)) / len(free)
            step = min(room.values())
            for pair in open_:
                rates[pair] += step
            full = {wire for wire, left in room.items() if left <= step}
            open_ -= {pair for pair in open_ if any(use.wire in full for use in uses[pair])}
        return AtOnce(rates, sum(rates.values()), self._busy)


def cluster(names: str, device: str = "", rest: str = '[link]\nbandwidth = "1 GB/s"\n') -> Cluster:
    devices = (f'[[device]]\nname = "{name}"\n{device}\n' for name in names)
    return cluster_from_toml("".join(devices) + rest)


def medium(names: str) -> str:
    return f'[[medium]]\nname = "air"\nbandwidth = "9 MB/s"\ndevices = {list(names)}\n'


def found(made_up: Cluster, busy: float = 0.1) -> FoundWires:
    names = [device.name for device in made_up.devices]
    return find_shared_wires(names, _MadeUp(made_up, busy).together)


@pytest.mark.parametrize("names", ["ab", "abc", "abcd", "abcde", "abcdef"])
def test_a_medium_is_found(names: str) -> None:
    assert found(cluster(names, rest=medium(names))) == FoundWires(
        medium=Medium(name="shared", devices=tuple(names), bandwidth_bytes_per_s=9e6)
    )


@pytest.mark.parametrize("names", ["ab", "abc", "abcd", "abcde", "abcdef"])
def test_links_of_their_own_are_claimed_to_share_nothing(names: str) -> None:
    assert found(cluster(names)) == FoundWires()


@pytest.mark.parametrize("names", ["abc", "abcd", "abcde"])
def test_ports_are_found(names: str) -> None:
    made_up = cluster(names, 'port_out = "4 MB/s"\nport_in = "8 MB/s"')
    # Two that send 4 MB/s each fill a port in of 8, and none of them is slower for it.
    out = Port(out_bytes_per_s=4e6)
    assert found(made_up) == FoundWires(ports=dict.fromkeys(names, out))
    made_up = cluster(names, 'port = "4 MB/s"')
    both = Port(out_bytes_per_s=4e6, in_bytes_per_s=4e6)
    assert found(made_up) == FoundWires(ports=dict.fromkeys(names, both))


@pytest.mark.parametrize("names", ["abc", "abcd", "abcde"])
def test_half_duplex_is_found_and_not_taken_for_a_medium(names: str) -> None:
    half = Port(out_bytes_per_s=4e6, in_bytes_per_s=4e6, half_duplex=True)
    made_up = cluster(names, 'port = "4 MB/s"\nduplex = "half"')
    assert found(made_up) == FoundWires(ports=dict.fromkeys(names, half))


def test_one_slow_port_is_the_only_one_that_is_found() -> None:
    text = '[[device]]\nname = "a"\nport = "4 MB/s"\n[[device]]\nname = "b"\n[[device]]\nname = "c"'
    made_up = cluster_from_toml(text + '\n[link]\nbandwidth = "1 GB/s"\n')
    both = Port(out_bytes_per_s=4e6, in_bytes_per_s=4e6)
    assert found(made_up) == FoundWires(ports={"a": both})


def test_two_media_are_not_taken_for_one() -> None:
    halves = medium("ab") + medium("cd").replace("air", "other")
    made_up = cluster("abcd", rest=halves + '[link]\nbandwidth = "1 GB/s"\n')
    assert found(made_up).medium is None


def test_links_that_share_nothing_are_seen_at_once_to_do_so() -> None:
    made_up = _MadeUp(cluster("abcd"))
    find_shared_wires("abcd", made_up.together)
    assert [len(pairs) for pairs in made_up.asked] == [1, 1, 2, *[1] * 6, 8]


def test_what_processors_cannot_fill_is_no_wire() -> None:
    assert found(cluster("abc", rest=medium("abc")), busy=0.9) == FoundWires()


def test_links_go_to_the_next_two() -> None:
    assert tried_pairs("a") == ()
    assert tried_pairs("ab") == (("a", "b"), ("b", "a"))
    assert tried_pairs("abc") == (
        ("a", "b"), ("b", "c"), ("c", "a"), ("a", "c"), ("b", "a"), ("c", "b"),
    )  # fmt: skip
