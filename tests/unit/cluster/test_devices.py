import pytest

from cutset.cluster.devices import Cluster, Device, Link, LinkOverride, equal_cluster
from cutset.errors import PlanError

FAST = Link(bandwidth_bytes_per_s=125_000_000.0, latency_s=0.001)
CLUSTER = Cluster(
    devices=(Device(name="pi-1", overhead_s=0.5e-3), Device(name="server")),
    overrides=(
        LinkOverride(source="pi-1", target="server", link=FAST),
        LinkOverride(source="server", target="pi-1", link=FAST),
    ),
    caller="server",
    caller_overhead_s=1.5e-3,
)


def test_equal_devices_have_free_links_and_no_limits():
    cluster = equal_cluster(2)
    assert [device.name for device in cluster.devices] == ["device-0", "device-1"]
    assert cluster.link_between("device-0", "device-1").transfer_s(10**12) == 0.0
    with pytest.raises(PlanError, match="at least 1 stage, got 0"):
        equal_cluster(0)


def test_a_caller_on_a_device_takes_from_its_stage_and_from_no_other():
    pi, server = CLUSTER.devices
    assert CLUSTER.overhead_on(pi) == 0.5e-3
    assert CLUSTER.overhead_on(server) == 1.5e-3
    assert CLUSTER.caller_transfer_s(server, 10**9, back=False) == 0.75e-3
    assert CLUSTER.caller_transfer_s(pi, 125_000_000, back=True) == 1.001


def test_without_forgets_devices_and_all_that_names_them():
    left = CLUSTER.without("server")
    assert [device.name for device in left.devices] == ["pi-1"]
    assert left.overrides == ()
    assert left.caller is None
    assert left.caller_overhead_s == 0.0
    with pytest.raises(ValueError, match="at least one device"):
        left.without("pi-1")
