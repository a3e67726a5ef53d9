"""What a cluster file becomes; nothing is built here."""

from __future__ import annotations

import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from testbed.errors import TestbedError
from testbed.layout import Layout, Node, Rate, layout_of

from .clusters import THREE


def layout(text: str, *, name: str = "demo", cores: int = 2) -> Layout:
    return layout_of(cluster_from_toml(text), name=name, machine_cpus=range(cores))


def test_every_device_becomes_a_node() -> None:
    assert layout(THREE).nodes == (
        Node(
            name="server",
            index=0,
            address="10.77.0.1",
            namespace="cutset-demo-0",
            cores=1.0,
            cpus=(0,),
            num_threads=1,
            memory_bytes=None,
        ),
        Node(
            name="pi-1",
            index=1,
            address="10.77.0.2",
            namespace="cutset-demo-1",
            cores=0.5,
            cpus=(1,),
            num_threads=1,
            memory_bytes=(64 + 512) * 2**20,
        ),
        Node(
            name="pi-2",
            index=2,
            address="10.77.0.3",
            namespace="cutset-demo-2",
            cores=0.5,
            cpus=(1,),
            num_threads=1,
            memory_bytes=None,
        ),
    )


@pytest.mark.parametrize(
    ("devices", "cores", "expected"),
    [
        ([(1.0, 1), (0.5, 1), (0.5, 1)], 4, [(0,), (1,), (2,)]),
        ([(0.5, 1), (0.5, 1), (0.5, 1)], 2, [(0,), (1,), (0,)]),
        ([(0.25, 1), (1.0, 3)], 4, [(3,), (0, 1, 2)]),
        ([(0.75, 2), (0.5, 1)], 2, [(0, 1), (0, 1)]),  # the second fits on neither alone
        ([(1.0, 2), (1.0, 1)], 2, [(0, 1), (0, 1)]),  # more than there is
    ],
)
def test_a_node_runs_on_as_few_processors_as_its_share_needs(
    devices: list[tuple[float, int]], cores: int, expected: list[tuple[int, ...]]
) -> None:
    text = "".join(
        f'[[device]]\nname = "d{k}"\nspeed = {speed}\nthreads = {threads}\n'
        for k, (speed, threads) in enumerate(devices)
    )
    assert [node.cpus for node in layout(text, cores=cores).nodes] == expected


def test_every_directed_pair_with_a_limit_has_a_bucket() -> None:
    assert layout(THREE).rates == (
        Rate(source="server", target="pi-1", bytes_per_s=12.5e6),
        Rate(source="pi-1", target="server", bytes_per_s=12.5e6),
        Rate(source="pi-1", target="pi-2", bytes_per_s=2.5e6),
        Rate(source="pi-2", target="server", bytes_per_s=12.5e6),
        Rate(source="pi-2", target="pi-1", bytes_per_s=2.5e6),
    )


def test_the_caller_is_the_head_and_addresses_of_the_file_are_kept() -> None:
    text = """
    caller = "b"
    [[device]]
    name = "a"
    address = "10.77.0.1"
    threads = 2
    speed = 0.25
    [[device]]
    name = "b"
    """
    nodes = layout(text).nodes
    assert [(node.name, node.address, node.cores) for node in nodes] == [
        ("b", "10.77.0.2", 1.0),
        ("a", "10.77.0.1", 0.5),
    ]
    assert nodes[1].num_threads == 2


def test_a_callers_own_machine_is_the_head_has_a_port_and_takes_no_share() -> None:
    text = """
    [caller]
    name = "laptop"
    port = "80 Mbit/s"
    [[device]]
    name = "a"
    [[device]]
    name = "b"
    """
    made = layout(text)
    assert [(node.name, node.address, node.cores, node.cpus) for node in made.nodes] == [
        ("laptop", "10.77.0.1", 2.0, (0, 1)),
        ("a", "10.77.0.2", 1.0, (0,)),
        ("b", "10.77.0.3", 1.0, (1,)),
    ]
    assert [(wire.name, wire.kind, wire.bytes_per_s) for wire in made.shared] == [
        ("port out of laptop", "out", 1e7),
        ("port into laptop", "in", 1e7),
    ]
    assert made.notices == ()
    air = '[[medium]]\nname = "air"\nbandwidth = "8 Mbit/s"\ndevices = ["laptop", "a"]\n'
    on_air = text + air + '[link]\nbandwidth = "8 Mbit/s"'
    assert layout(on_air).shared[-1].nodes == ("laptop", "a")


def test_what_cannot_be_given_is_said() -> None:
    text = """
    [[device]]
    name = "a"
    [[device]]
    name = "b"
    profile = "b.json"
    [[device]]
    name = "c"
    speed = 0.5
    [link]
    latency = "1 ms"
    [[link.between]]
    from = "a"
    to = "b"
    latency = 0
    [[link.between]]
    devices = ["b", "c"]
    latency = 0
    [[link.between]]
    devices = ["a", "c"]
    latency = 0
    """
    assert layout(text).notices == (
        (
            "latency is not emulated: messages take what the bridge takes, about 0.1 ms; the"
            " cluster file asks for b -> a (1 ms)"
        ),
        (
            "the nodes' shares add up to 2.5 cores and the machine has 2: none is kept to"
            " processors of its own, and busy nodes take from one another, so that nothing that is"
            " timed there is what the shares say"
        ),
        (
            "b has a profile of its own, which says nothing of this machine; it gets the share that"
            " its speed says, 1"
        ),
    )
    assert layout(THREE).notices == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[device]]\nname = "a"\nspeed = 1.5', "device a: speed 1.5 on 1 threads"),
        ('[[device]]\nname = "a"\nthreads = 3', "device a: speed 1 on 3 threads"),
        ('[[device]]\nname = "a"\naddress = "pi.local"', "'pi.local' is no IPv4 address"),
        (
            (
                '[[device]]\nname = "a"\naddress = "10.0.0.1"\n'
                '[[device]]\nname = "b"\naddress = "10.0.0.1"'
            ),
            "address 10.0.0.1 of a belongs to two devices",
        ),
    ],
)
def test_what_cannot_be_built_is_an_error(text: str, message: str) -> None:
    with pytest.raises(TestbedError, match=message):
        layout(text)


@pytest.mark.parametrize("name", ["", "Demo", "a-b", "../x", "thirteenchars"])
def test_a_name_must_be_short_and_plain(name: str) -> None:
    with pytest.raises(TestbedError, match="1 to 12 small letters and digits"):
        layout(THREE, name=name)


def test_a_node_is_found_by_its_device() -> None:
    made = layout(THREE)
    assert made.node("pi-2").index == 2
    with pytest.raises(TestbedError, match="no node 'pi-3'; it has server, pi-1, pi-2"):
        made.node("pi-3")


def test_addresses_can_run_out() -> None:
    cluster = cluster_from_toml("\n".join(f'[[device]]\nname = "d{i}"' for i in range(255)))
    with pytest.raises(TestbedError, match=r"device d254: the addresses of 10\.77\.0\.0/24 are"):
        layout_of(cluster, name="demo", machine_cpus=range(255))
