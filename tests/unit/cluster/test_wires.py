"""What a message occupies, worked out by hand."""

import msgspec
import pytest

from cutset.cluster.devices import CallerMachine, Cluster, Device, Link, LinkOverride
from cutset.cluster.wires import Medium, Port, Use, Way, Wires

WIFI = Medium(
    name="wifi", devices=("a", "b", "me"), bandwidth_bytes_per_s=100.0, latency_s=0.5, relayed=True
)
CLUSTER = Cluster(
    devices=(
        Device(name="a", port=Port(out_bytes_per_s=40.0, in_bytes_per_s=200.0)),
        Device(name="b", port=Port(out_bytes_per_s=80.0, in_bytes_per_s=20.0, half_duplex=True)),
        Device(name="c"),
    ),
    link=Link(bandwidth_bytes_per_s=50.0, latency_s=1.0, send_s_per_byte=0.25),
    overrides=(
        LinkOverride(source="b", target="a", link=Link(bandwidth_bytes_per_s=10.0), medium="wifi"),
    ),
    caller="me",
    caller_machine=CallerMachine(name="me"),
    media=(WIFI,),
)


def test_a_message_over_a_relayed_medium_is_on_it_twice_and_passes_both_ports():
    way = Wires(CLUSTER).between("a", "b")
    assert way.uses == (
        Use("link a -> b", 1.0, 20.0),  # as fast as b takes it
        Use("medium wifi", 1.0, 50.0),
        Use("port out of a", 0.0, 40.0),
        Use("port of b", 0.0, 20.0),
    )
    assert (way.medium, way.limit, way.send_s_per_byte) == ("wifi", "port of b", 0.25)
    assert way.seconds(100) == 6.0


def test_a_link_over_a_medium_has_it_for_as_long_as_the_link_takes():
    way = Wires(CLUSTER).between("b", "a")
    assert way.uses[:2] == (Use("link b -> a", 0.0, 5.0), Use("medium wifi", 0.0, 5.0))
    assert (way.limit, way.send_s_per_byte) == ("medium wifi", 0.0)


def test_two_that_share_nothing_have_a_link_of_their_own():
    way = Wires(CLUSTER).between("c", "me")
    assert way.uses == (Use("link c -> me", 1.0, 50.0),)
    assert (way.medium, way.limit) == ("", "")
    assert CLUSTER.link_between("c", "me") == CLUSTER.link
    assert Wires(CLUSTER).between("c", "c") == Way()
    assert Way().seconds(7) == 0.0


def test_without_forgets_who_is_gone_from_media_and_a_medium_of_one():
    left = CLUSTER.without("a")
    assert left.media == (msgspec.structs.replace(WIFI, devices=("b", "me")),)
    assert left.caller_machine == CLUSTER.caller_machine
    assert left.without("b").media == ()
    assert CLUSTER.has_shared_wires
    assert not left.without("b").has_shared_wires


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"caller": "a"}, "they are one name, which no device has"),
        ({"caller": None}, "they are one name"),
        ({"caller_machine": None}, "medium 'wifi' names 'me', which is no device"),
        ({"caller_overhead_s": 1.0}, "caller_overhead needs a caller on a device"),
        ({"media": (WIFI, WIFI)}, "two media have the same name"),
        ({"media": ()}, "goes over medium 'wifi', which does not join them"),
        (
            {"media": (WIFI, msgspec.structs.replace(WIFI, name="air"))},
            "'a' and 'b' are both on media 'wifi' and 'air'",
        ),
    ],
)
def test_a_cluster_that_contradicts_itself_is_refused(change, what):
    changed = {name: getattr(CLUSTER, name) for name in CLUSTER.__struct_fields__} | change
    if change.get("caller_machine", CLUSTER) is None:
        changed["caller"] = "a"
    with pytest.raises(ValueError, match=what):
        Cluster(**changed)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Port(out_bytes_per_s=0.0), "above 0, got 0"),
        (lambda: Port(in_bytes_per_s=float("nan")), "above 0, got nan"),
        (lambda: Port(out_bytes_per_s=1.0, half_duplex=True), "half duplex needs"),
        (lambda: Medium(name="", devices=("a", "b"), bandwidth_bytes_per_s=1.0), "a name"),
        (lambda: Medium(name="m", devices=("a", "b"), bandwidth_bytes_per_s=0.0), "above 0"),
        (lambda: Medium(name="m", devices=("a",), bandwidth_bytes_per_s=1.0), "joins nobody"),
        (lambda: Medium(name="m", devices=("a", "a"), bandwidth_bytes_per_s=1.0), "'a' twice"),
        (
            lambda: Medium(name="m", devices=("a", "b"), bandwidth_bytes_per_s=1.0, latency_s=-1.0),
            "latency must be 0 or more",
        ),
        (lambda: CallerMachine(name=""), "needs a name"),
    ],
)
def test_values_out_of_range_are_refused(make, what):
    with pytest.raises(ValueError, match=what):
        make()
