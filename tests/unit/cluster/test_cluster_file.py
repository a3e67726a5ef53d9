import math
from pathlib import Path

import pytest

from cutset.cluster.cluster_file import cluster_from_toml, load_cluster
from cutset.cluster.devices import (
    CallerMachine,
    Cluster,
    Device,
    Link,
    LinkOverride,
    equal_cluster,
)
from cutset.cluster.file_writer import cluster_to_toml
from cutset.cluster.wires import Medium, Port
from cutset.errors import PlanError

FULL = """
caller = "server"
caller_overhead = "1.5 ms"

[[device]]
name = "pi-1"
speed = 0.5
memory_bytes = "1 GiB"
threads = 4
address = "10.0.0.11"
overhead = "0.5 ms"

[[device]]
name = "server"
profile = "server.json"

[link]
bandwidth = "100 Mbit/s"
latency = "1 ms"
send_cost = "5 ns/B"
receive_cost = "8 ms/MB"

[[link.between]]
devices = ["pi-1", "server"]
bandwidth = "1 Gbit/s"
"""


def test_reads_every_key_and_unit():
    cluster = cluster_from_toml(FULL)
    costs = {"send_s_per_byte": 5e-9, "receive_s_per_byte": 8e-9}
    fast = Link(bandwidth_bytes_per_s=125_000_000.0, latency_s=0.001, **costs)
    assert cluster == Cluster(
        devices=(
            Device(
                name="pi-1",
                speed=0.5,
                memory_bytes=1_073_741_824,
                threads=4,
                address="10.0.0.11",
                overhead_s=0.5e-3,
            ),
            Device(name="server", profile="server.json"),
        ),
        link=Link(bandwidth_bytes_per_s=12_500_000.0, latency_s=0.001, **costs),
        overrides=(
            LinkOverride(source="pi-1", target="server", link=fast),
            LinkOverride(source="server", target="pi-1", link=fast),
        ),
        caller="server",
        caller_overhead_s=1.5e-3,
    )


def test_one_direction_takes_what_it_leaves_out_from_the_default():
    text = FULL.replace('devices = ["pi-1", "server"]', 'from = "pi-1"\nto = "server"')
    cluster = cluster_from_toml(text)
    assert cluster.link_between("pi-1", "server").bandwidth_bytes_per_s == 125_000_000.0
    assert cluster.link_between("pi-1", "server").latency_s == 0.001
    assert cluster.link_between("server", "pi-1").bandwidth_bytes_per_s == 12_500_000.0
    assert cluster.link_between("pi-1", "pi-1") == Link()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 GiB", 1_073_741_824),
        ("1.5 kB", 1500),
        ("512MiB", 536_870_912),
        ("3 TB", 3_000_000_000_000),
        ("7 B", 7),
    ],
)
def test_sizes(text, value):
    cluster = cluster_from_toml(f'[[device]]\nname = "a"\nmemory_bytes = "{text}"')
    assert cluster.devices[0].memory_bytes == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"8 bit/s"', 1.0),
        ('"100 kbit/s"', 12_500.0),
        ('"12 MB/s"', 12_000_000.0),
        ('"1 MiB/s"', 1_048_576.0),
        ("5000", 5000.0),
        ("inf", math.inf),
        ('"inf"', math.inf),
    ],
)
def test_rates(text, value):
    cluster = cluster_from_toml(f'[[device]]\nname = "a"\n[link]\nbandwidth = {text}')
    assert cluster.link.bandwidth_bytes_per_s == value


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ("speed = 0.5", "sped = 0.5", "c.toml:7: device[0].sped", "did you mean 'speed'"),
        ("speed = 0.5", "speed = -1", "c.toml:7: device[0].speed", "must be above 0"),
        ("speed = 0.5", "speed = true", "c.toml:7: device[0].speed", "expected a number"),
        ("speed = 0.5", "speed = nan", "c.toml:7: device[0].speed", "must be above 0"),
        ("1 GiB", "1 GoB", "c.toml:8: device[0].memory_bytes", "unknown unit 'GoB'"),
        ("1 GiB", "-1 GiB", "c.toml:8: device[0].memory_bytes", "must be 0 or more"),
        ("1 GiB", "inf", "c.toml:8: device[0].memory_bytes", "leave it out"),
        ("threads = 4", "threads = 0", "c.toml:9: device[0].threads", "whole number from 1"),
        ('name = "server"', 'name = "pi-1"', "c.toml:14: device[1].name", "another device"),
        ('name = "server"', "", "c.toml:13: device[1]", "no name"),
        ("100 Mbit/s", "0 Mbit/s", "c.toml:18: link.bandwidth", "at least 0.001 B/s"),
        ("100 Mbit/s", "100 ms", "c.toml:18: link.bandwidth", "unknown unit 'ms'"),
        ("1 ms", "1 parsec", "c.toml:19: link.latency", "unknown unit 'parsec'"),
        (
            '["pi-1", "server"]',
            '["pi-1", "serve"]',
            "c.toml:24: link.between[0].devices",
            "did you mean 'server'",
        ),
        ('["pi-1", "server"]', '["pi-1"]', "c.toml:24: link.between[0].devices", "two device"),
        ('["pi-1", "server"]', '["pi-1", "pi-1"]', "c.toml:24: link.between", "joined to itself"),
        ('caller = "server"', 'caller = "me"', "c.toml:2: caller", "no device of the cluster"),
        ('caller = "server"', 'color = "red"', "c.toml:2: color", "unknown key"),
        ('caller = "server"', "", "c.toml:3: caller_overhead", "there is no caller"),
        ("1.5 ms", "inf", "c.toml:3: caller_overhead", "must be finite"),
        ("0.5 ms", "-1 us", "c.toml:11: device[0].overhead", "must be 0 or more"),
        ("5 ns/B", "5 ns", "c.toml:20: link.send_cost", "unknown unit 'ns'"),
        ('"8 ms/MB"', "-1", "c.toml:21: link.receive_cost", "at least 0"),
        ("[[device]]", "[[devices]]", "c.toml", "unknown key"),
        ('name = "pi-1"', 'name = "pi-1', "c.toml", "not valid TOML"),
    ],
)
def test_a_bad_file_is_an_error_with_line_and_path(old, new, where, what):
    with pytest.raises(PlanError) as caught:
        cluster_from_toml(FULL.replace(old, new), source="c.toml")
    assert where in str(caught.value)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("device = 3", "c:1: device: expected [[device]] tables, got int 3"),
        ("device = [3]", "c: device[0]: expected a table, got int 3"),
        ("[device]\nname = 'a'", "c: device: expected [[device]] tables, got dict {'name': 'a'}"),
        ("link = 'x'", "c:1: link: expected a table, got str 'x'"),
        ("[link]\nbetween = [3]", "link.between[0]: expected a table, got int 3"),
    ],
)
def test_what_is_no_table_is_named(text, what):
    with pytest.raises(PlanError) as caught:
        cluster_from_toml(text, source="c")
    assert what in str(caught.value)


def test_the_same_link_twice_is_an_error():
    again = FULL + '[[link.between]]\nfrom = "server"\nto = "pi-1"\n'
    with pytest.raises(PlanError, match=r"link.between\[1\]: the link server -> pi-1 again"):
        cluster_from_toml(again)


def test_a_missing_file_and_an_empty_one_are_errors(tmp_path):
    with pytest.raises(PlanError, match=r"none\.toml: the cluster file cannot be read"):
        load_cluster(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(PlanError, match=r"no \[\[device\]\]"):
        load_cluster(tmp_path / "empty.toml")


@pytest.mark.parametrize("cluster", [cluster_from_toml(FULL), equal_cluster(3)])
def test_what_is_written_reads_back_equal(cluster):
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster


def test_odd_names_are_written_so_that_they_read_back():
    cluster = Cluster(devices=(Device(name='a "b"\\\n\x7fé', address="x\ty"),))
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster


def test_the_example_reads():
    cluster = load_cluster(Path(__file__).parents[3] / "examples" / "cluster.toml")
    assert [device.name for device in cluster.devices] == ["server", "pi-1", "pi-2"]


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"100 Mbit/s"', '"100"', "c.toml:18: link.bandwidth: '100' has no unit"),
        ('"100 Mbit/s"', '"100 MB/sec"', "unknown unit 'MB/sec'; did you mean 'MB/s'?"),
        ('"100 Mbit/s"', '"100 mbit"', "unknown unit 'mbit'; did you mean 'Mbit/s'?"),
        ('"100 Mbit/s"', "nan", "must be at least 0, got nan"),
        ('"100 Mbit/s"', '"1e-300 B/s"', "must be at least 0.001 B/s"),
        ('"1 GiB"', "nan", "device[0].memory_bytes: must be at least 0, got nan"),
        ('"1 GiB"', "true", "expected a number, got bool True"),
        ('"1 GiB"', "1e300", "too large"),
        ("speed = 0.5", "speed = 1e-320", "device[0].speed: expected 1e-09 to 1e+09"),
        ("speed = 0.5", f"speed = 1{'0' * 400}", "device[0].speed: a number is too large"),
        ("speed = 0.5", f"speed = 1{'0' * 5000}", "a number or a nesting is too long"),
        ("speed = 0.5", f"speed = {'[' * 20_000}", "a number or a nesting is too long"),
        ("speed = 0.5", "speed = 1979-05-27", "expected a number, got date"),
        ("threads = 4", f"threads = 1{'0' * 30}", "device[0].threads: expected a whole number"),
        ('name = "pi-1"', 'name = "server"', "'server' is the name of another device too"),
        ('name = "pi-1"', 'name = "a\\u001b"\nname2 = 1', "device[0].name2: unknown key"),
        ('devices = ["pi-1", "server"]', 'devices = ["\\u001b[2J", "server"]', r"'\x1b[2J'"),
        ('caller = "server"', 'caller = ""', "c.toml:2: caller: expected text, got str ''"),
        ('caller = "server"', '"\\u001b" = 3', r"c.toml: '\x1b': unknown key; known: caller"),
        ('caller = "server"', '"a` - at `$.b" = 3', "unknown key"),
        ("speed = 0.5", '"` - at `$.link[0].x" = 3', "unknown key"),
        ('devices = ["pi-1", "server"]', "devices = [3, 4]", "expected text, got int 3"),
        ('devices = ["pi-1", "server"]', 'from = "pi-1"', "give devices = [A, B] for both"),
        ('devices = ["pi-1", "server"]', 'devices = ["pi-1", "server"]\nto = "x"', "give devices"),
    ],
)
def test_every_kind_of_wrong_value_is_named(old, new, what):
    with pytest.raises(PlanError) as caught:
        cluster_from_toml(FULL.replace(old, new), source="c.toml")
    assert what in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "no [[device]]"),
        (b"[[device]]\nname = '\xff'\n", "a cluster file is UTF-8 text; byte 19 is not"),
        (b"#" * (1 << 20) + b"\n", "longer than 1,048,576 bytes"),
    ],
    ids=["empty", "latin-1", "long"],
)
def test_a_file_that_is_no_cluster_file_says_so(tmp_path, data, what):
    path = tmp_path / "c.toml"
    path.write_bytes(data)
    with pytest.raises(PlanError) as caught:
        load_cluster(path)
    assert what in str(caught.value)


def test_a_folder_and_an_impossible_name_are_errors(tmp_path):
    with pytest.raises(PlanError, match="cannot be read: Is a directory"):
        load_cluster(tmp_path)
    with pytest.raises(PlanError, match="cannot be read: embedded null byte"):
        load_cluster("a\0b.toml")


def test_a_byte_order_mark_and_windows_line_ends_are_no_reason_to_fail(tmp_path):
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert load_cluster(path) == cluster_from_toml(FULL)


def test_a_number_without_a_unit_is_read_and_noted(caplog):
    text = FULL.replace('"100 Mbit/s"', "100").replace('"1 GiB"', "1000")
    cluster = cluster_from_toml(text, source="c.toml")
    assert cluster.link.bandwidth_bytes_per_s == 100
    (record,) = caplog.records
    assert record.getMessage() == (
        "c.toml:18: link.bandwidth = 100 has no unit and is read as bytes per second; "
        "write a unit as in '100 Mbit/s'"
    )


def test_what_cutset_writes_has_units(caplog):
    cluster = cluster_from_toml(FULL)
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster
    assert caplog.records == []


def test_memory_in_a_file_is_never_rounded_up():
    text = FULL.replace('"1 GiB"', "9007199254740991.0")
    assert cluster_from_toml(text).devices[0].memory_bytes == 9_007_199_254_740_991
    text = FULL.replace('"1 GiB"', "9007199254740993")
    assert cluster_from_toml(text).devices[0].memory_bytes == 9_007_199_254_740_993


WIRES = """
[[device]]
name = "pi-1"
port = "100 Mbit/s"
[[device]]
name = "pi-2"
port_out = "8 Mbit/s"
port_in = "16 Mbit/s"
duplex = "half"
[[device]]
name = "server"
[caller]
name = "laptop"
address = "10.0.0.9"
port = "100 Mbit/s"
duplex = "full"
[[medium]]
name = "wifi"
devices = ["pi-1", "pi-2", "laptop"]
bandwidth = "20 Mbit/s"
latency = "2 ms"
relayed = true
[link]
bandwidth = "1 Gbit/s"
send_cost = "8 ns/B"
[[link.between]]
devices = ["pi-2", "laptop"]
medium = "wifi"
bandwidth = "5 Mbit/s"
"""


def test_reads_ports_media_and_a_caller_that_is_no_device():
    slow = Link(bandwidth_bytes_per_s=625_000.0, latency_s=0.002, send_s_per_byte=8e-9)
    port = Port(out_bytes_per_s=12_500_000.0, in_bytes_per_s=12_500_000.0)
    pairs = [("pi-2", "laptop"), ("laptop", "pi-2")]
    assert cluster_from_toml(WIRES) == Cluster(
        devices=(
            Device(name="pi-1", port=port),
            Device(
                name="pi-2",
                port=Port(out_bytes_per_s=1e6, in_bytes_per_s=2e6, half_duplex=True),
            ),
            Device(name="server"),
        ),
        link=Link(bandwidth_bytes_per_s=125e6, send_s_per_byte=8e-9),
        overrides=tuple(
            LinkOverride(source=a, target=b, link=slow, medium="wifi") for a, b in pairs
        ),
        caller="laptop",
        caller_machine=CallerMachine(name="laptop", address="10.0.0.9", port=port),
        media=(
            Medium(
                name="wifi",
                devices=("pi-1", "pi-2", "laptop"),
                bandwidth_bytes_per_s=2_500_000.0,
                latency_s=0.002,
                relayed=True,
            ),
        ),
    )


def test_what_is_shared_is_written_so_that_it_reads_back():
    cluster = cluster_from_toml(WIRES)
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster


def test_a_link_without_costs_beside_one_with_costs_reads_back():
    text = FULL.replace('bandwidth = "1 Gbit/s"', 'bandwidth = "1 Gbit/s"\nsend_cost = "0 s/B"')
    cluster = cluster_from_toml(text)
    assert cluster.link_between("pi-1", "server").send_s_per_byte == 0.0
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('port = "100 Mbit/s"\n[[', 'port = "0 B/s"\n[[', "c:4: device[0].port: must be at least"),
        ('port_in = "16 Mbit/s"', 'port = "1 MB/s"', "c:8: device[1].port: is both directions"),
        ('port_in = "16 Mbit/s"', "", "c:9: device[1].duplex: half duplex needs the bandwidth"),
        ('duplex = "half"', 'duplex = "demi"', "c:9: device[1].duplex: expected 'full' or 'half'"),
        ('duplex = "half"', "duplex = true", "expected 'full' or 'half', got bool True"),
        ('name = "laptop"', 'name = "pi-1"', "c:13: caller.name: 'pi-1' is the name of a device"),
        ('duplex = "full"', "speed = 1", "c:16: caller.speed: unknown key; known: port, port_out"),
        ('"10.0.0.9"', '"laptop.local"', "c:14: caller.address: expected an IP address, got 'lap"),
        ('"100 Mbit/s"\nduplex', '"1 m"\nduplex', "c:15: caller.port: unknown unit 'm'"),
        ('name = "wifi"', "", "c:17: medium[0]: the medium has no name"),
        ('bandwidth = "20 Mbit/s"', "", "c:17: medium[0]: the medium has no bandwidth"),
        ('["pi-1", "pi-2", "laptop"]', '"pi-1"', "c:19: medium[0].devices: expected names of dev"),
        ('["pi-1", "pi-2", "laptop"]', '["pi-1"]', "medium[0].devices: a medium joins two devices"),
        ('["pi-1", "pi-2", "laptop"]', '["pi-1", "pi-1"]', "medium[0].devices: 'pi-1' is named tw"),
        ('["pi-1", "pi-2", "laptop"]', '["pi-1", "pie"]', "'pie', which is no device of the cl"),
        ("relayed = true", "relayed = 1", "c:22: medium[0].relayed: expected true or false"),
        ("[link]", '[[medium]]\nname="wifi"\ndevices=["pi-1","pi-2"]\nbandwidth=inf\n[link]',
         "medium[1].name: 'wifi' is another medium's name too"),
        ("[link]", '[[medium]]\nname="air"\ndevices=["pi-1","pi-2"]\nbandwidth=inf\n[link]',
         "c:23: medium[1]: 'pi-1' and 'pi-2' are both on media 'wifi' and 'air', and nothing says"),
        ('bandwidth = "1 Gbit/s"', "", "nothing joins 'pi-1' to 'server': they are on no common"),
        ('medium = "wifi"', 'medium = "wify"', "c:28: link.between[0].medium: 'wify' joins no pi"),
        ('["pi-2", "laptop"]\nmed', '["pi-2", "server"]\nmed', "'wifi' joins no pi-2 and server"),
        ('medium = "wifi"\nbandwidth = "5 Mbit/s"', 'latency = "1 s"',
         "c:26: link.between[0]: pi-2 and laptop are on medium wifi: say medium = ... for a link"),
        ("[caller]", 'caller_overhead = "1 ms"\n[caller]', "device[2].caller_overhead: unknown"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_in_wires_is_an_error_with_line_and_path(old, new, what):
    assert old in WIRES
    with pytest.raises(PlanError) as caught:
        cluster_from_toml(WIRES.replace(old, new, 1), source="c")
    assert what in str(caught.value)


def test_what_a_caller_takes_needs_one_on_a_device():
    with pytest.raises(PlanError, match="c:1: caller_overhead: is what a caller takes from a st"):
        cluster_from_toml('caller_overhead = "1 ms"' + WIRES, source="c")


def test_two_on_two_media_say_which_they_use():
    air = '[[medium]]\nname="air"\ndevices=["pi-1","pi-2"]\nbandwidth=inf\n[link]'
    chosen = '[[link.between]]\ndevices=["pi-1","pi-2"]\nmedium="air"\n'
    cluster = cluster_from_toml(WIRES.replace("[link]", air) + chosen)
    assert [o.medium for o in cluster.overrides] == ["wifi", "wifi", "air", "air"]
    assert math.isinf(cluster.overrides[-1].link.bandwidth_bytes_per_s)
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster


_WITHOUT_KEYS = """
caller = "a"
[[device]]
name = "a"
[[device]]
name = "b"
[[device]]
name = "c"
[link]
bandwidth = "100 Mbit/s"
[[link.between]]
devices = ["a", "b"]
security = "none"
[[link.between]]
from = "c"
to = "a"
security = "curve"
"""


def test_a_wire_that_is_trusted_goes_without_keys():
    cluster = cluster_from_toml(_WITHOUT_KEYS)
    assert not cluster.secured_between("a", "b")
    assert not cluster.link_between("b", "a").secured
    assert cluster.secured_between("b", "c")
    assert cluster.link_between("b", "c").secured
    assert cluster.unsecured_links(["b", "c"]) == (0,)
    assert cluster.unsecured_links(["a", "b"]) == (1, 2)  # the caller is on a
    assert cluster.unsecured_links(["c", "c"]) == ()
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster


def test_all_wires_may_go_without_keys_but_one():
    text = _WITHOUT_KEYS.replace('"100 Mbit/s"', '"100 Mbit/s"\nsecurity = "none"')
    cluster = cluster_from_toml(text)
    assert cluster.unsecured_links(["b", "c"]) == (0, 1)  # c -> a has keys
    assert not cluster_from_toml(text.replace('caller = "a"', "")).secured_between(None, "b")
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster


@pytest.mark.parametrize("wrong", ['"tls"', '""', "true", "0", '"None"'])
def test_a_security_that_is_none_of_ours_is_an_error(wrong):
    text = _WITHOUT_KEYS.replace('security = "none"', f"security = {wrong}")
    with pytest.raises(PlanError, match=r"link.between\[0\].security: expected 'curve' or 'none'"):
        cluster_from_toml(text)


def test_the_backends_and_workers_of_a_device_are_read_and_written() -> None:
    text = '[[device]]\nname = "a"\nworker_bytes = "90 MiB"\n'
    text += 'backends = ["torch", "onnxruntime:XNNPACK", "torch"]\n'
    cluster = cluster_from_toml(text + '[[device]]\nname = "b"\n')
    assert [d.backends for d in cluster.devices] == [("torch", "onnxruntime:XNNPACK"), None]
    assert [d.worker_bytes for d in cluster.devices] == [94_371_840, None]
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster


@pytest.mark.parametrize("value", ["[]", '"torch"', '["a b"]', "[1]", '[""]', '["\\u001b[31m"]'])
def test_what_names_no_backend_is_refused(value: str) -> None:
    with pytest.raises(PlanError, match=r"device\[0\].backends: .*backend"):
        cluster_from_toml(f'[[device]]\nname = "a"\nbackends = {value}\n')
