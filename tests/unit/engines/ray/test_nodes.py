from __future__ import annotations

import socket
import sys

import pytest

from cutset.engines.ray.nodes import (
    RayNode,
    find_node,
    import_ray,
    join_cluster,
    require_nodes,
)
from cutset.errors import EngineError


def _node(number: int, name: str, *devices: str) -> RayNode:
    return RayNode(node_id=f"id-{number}", name=name, address=f"10.0.0.{number}", devices=devices)


_NODES = (_node(1, "head"), _node(2, "left", "pi-1"), _node(3, "10.0.0.3", "pi-2", "pi-3"))


@pytest.mark.parametrize(
    ("device", "address", "number"),
    [
        ("head", None, 1),
        ("pi-1", None, 2),
        ("pi-3", None, 3),
        ("10.0.0.2", None, 2),
        ("kitchen", "10.0.0.3", 3),
    ],
)
def test_by_name_address_or_resource(device: str, address: str | None, number: int) -> None:
    found = find_node(_NODES, device, address)
    assert found is not None
    assert found.node_id == f"id-{number}"


def test_nobody_is_it() -> None:
    assert find_node(_NODES, "device-0", None) is None
    with pytest.raises(EngineError) as caught:
        require_nodes(_NODES, {"head": None, "device-0": None})
    message = str(caught.value)
    assert "'device-0'; there is head at 10.0.0.1, left at 10.0.0.2" in message
    assert "--node-name=device-0" in message


def test_a_node_that_came_back_is_taken_rather_than_what_it_was() -> None:
    again = RayNode(node_id="id-9", name="left", address="10.0.0.2", devices=("pi-1",))
    nodes = (again, *_NODES)
    found = find_node(nodes, "pi-1", None, {"id-2"})
    assert found is again
    # Where all were silent before, the last is tried once more.
    assert find_node(_NODES, "pi-1", None, {"id-2"}) is _NODES[1]


def test_two_machines_of_one_name_are_a_mistake() -> None:
    with pytest.raises(EngineError, match=r"could be any of several nodes: left .* left"):
        find_node((*_NODES, _node(4, "left")), "left", None)


def test_without_ray_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError) as caught:
        import_ray()
    assert str(caught.value).endswith("which is not installed: pip install 'cutset[ray]'")
    assert "\n" not in str(caught.value)


class _Ray:
    """Ray as far as joining asks it."""

    @staticmethod
    def is_initialized() -> bool:
        return False

    @staticmethod
    def init(address: str, **_options: object) -> None:
        raise ConnectionError(f"asked for {address}")


def test_a_head_that_is_not_there_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "127.0.0.1:99999", "..:1"):
        with pytest.raises(EngineError, match=f"nothing listens at {address} "):
            join_cluster(_Ray(), address)


@pytest.mark.parametrize("address", ["auto", "local", "ray://127.0.0.1:1"])
def test_what_is_no_host_and_port_is_left_to_ray(address: str) -> None:
    with pytest.raises(EngineError, match=f"asked for {address}"):
        join_cluster(_Ray(), address)
