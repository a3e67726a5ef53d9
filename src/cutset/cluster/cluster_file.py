"""The cluster file: devices and the links between them, as people write them.

It is TOML::

    engine = "ssh"               # optional: what runs bundles here, where nobody says
    ssh_config = "ssh_config"    # optional, beside this file: instead of ~/.ssh/config
    caller = "server"            # optional: the device the rows come from and go back to
    caller_overhead = "1 ms"     # optional; what the caller takes from a stage on its device

    [[device]]
    name = "pi-1"
    speed = 0.5                  # relative to the profiled device ...
    profile = "pi-1.json"        # ... or its own measured costs (then speed is not used)
    memory_bytes = "1 GiB"       # optional; without it memory is no limit
    worker_bytes = "90 MiB"      # optional; what a worker holds there before it has a stage
    threads = 4                  # optional
    overhead = "0.8 ms"          # optional; what messages take from a stage's computing
    address = "10.0.0.11"        # optional; where an engine finds it; for ssh "pi@10.0.0.11:22"
    listen = "10.0.0.11"         # optional; for its neighbours, where ssh shows another address
    python = "~/cutset/bin/python"  # for ssh: what runs Cutset there
    folder = "~/cutset-work"     # optional, for ssh: where it works and keeps shards
    env = { NAME = "value" }     # optional, for ssh: variables of its environment
    backends = ["onnxruntime"]   # optional; what computes stages there, `cutset hosts check` tells
    port = "100 Mbit/s"          # optional; its connection, which all that it sends shares, and
                                 # all that it receives; port_out and port_in where these differ
    duplex = "half"              # optional; both directions share it

    [caller]                     # in the place of caller = ...: a machine that computes nothing
    name = "laptop"              # optional; what links and media call it, "caller" if left out
    address = "10.0.0.9"         # optional; port, port_out, port_in and duplex as above

    [[medium]]                   # what several share
    name = "wifi"
    devices = ["pi-1", "server", "laptop"]
    bandwidth = "20 Mbit/s"
    latency = "2 ms"             # optional
    relayed = true               # optional; each message is on it twice: an access point

    [link]                       # the default between any two; without it links cost nothing
    bandwidth = "100 Mbit/s"
    latency = "1 ms"
    send_cost = "5 ns/B"         # optional; what a byte takes from the sender's computing, ...
    receive_cost = "9 ns/B"      # ... and from the receiver's
    security = "none"            # optional; no keys, no encryption: for a wire that is trusted

    [[link.between]]             # both directions ...
    devices = ["pi-1", "server"]
    bandwidth = "1 Gbit/s"

    [[link.between]]             # ... or one
    from = "server"
    to = "pi-1"
    latency = "2 ms"

    [[link.between]]             # over a medium, but not as fast as others there
    devices = ["pi-1", "laptop"]
    medium = "wifi"
    bandwidth = "5 Mbit/s"

Two that are on one medium send over it. Without `medium` a [[link.between]] is a wire of its own,
so for two on a medium it gives a bandwidth; with it, it takes what it leaves out from the medium.

Numbers without a unit are bytes, bytes per second, seconds, and seconds per byte; but for
``memory_bytes``, whose name says it, a log warning tells how they are read. A bandwidth may be
``inf``. An override that leaves something out otherwise takes it from the default.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cutset.cluster.devices import (
    CallerMachine,
    Cluster,
    Device,
    Link,
    LinkOverride,
    no_device,
    two_media,
)
from cutset.cluster.file_source import Source
from cutset.cluster.file_tables import (
    TABLES,
    BetweenTable,
    CallerTable,
    ClusterTable,
    DeviceTable,
    LinkTable,
    MediumTable,
)
from cutset.cluster.ssh_address import read_ssh_address
from cutset.cluster.wires import Medium
from cutset.cluster.written_values import (
    Pair,
)
from cutset.errors import PlanError
from cutset.quantities import shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_FILE_BYTES = 1 << 20


def load_cluster(path: str | Path) -> Cluster:
    """Reads a cluster file (see the module's docstring).

    Raises:
        PlanError: the file cannot be read, is no TOML, or breaks a rule; the message gives the
            file, the line where it is known, and the path of the value.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: no path can have this name
        reason = error.strerror if isinstance(error, OSError) else error
        raise PlanError(f"{path}: the cluster file cannot be read: {reason}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise PlanError(f"{path}: longer than {_MAX_FILE_BYTES:,} bytes, so no cluster file")
    try:
        text = data.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise PlanError(
            f"{path}: a cluster file is UTF-8 text; byte {error.start} is not: {error.reason}"
        ) from error
    cluster = cluster_from_toml(text, source=str(path))
    if cluster.ssh_config is None:
        return cluster
    config = Path(path).parent / Path(cluster.ssh_config).expanduser()
    return msgspec.structs.replace(cluster, ssh_config=str(config))


def cluster_from_toml(text: str, *, source: str = "cluster") -> Cluster:
    """Reads a cluster from the text of a cluster file; `source` names it in errors.

    Raises:
        PlanError: as `load_cluster`.
    """
    try:
        document = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{source}: not valid TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # numbers of 5000 digits; tables in tables in ...
        raise PlanError(f"{source}: no cluster file: a number or a nesting is too long") from error
    place = Source(source, text, TABLES)
    own: CallerTable | None = None
    if isinstance(document.get("caller"), dict):
        own = place.convert(document.pop("caller"), "caller")
        place.note_bare_numbers(own, "caller")
    tables: ClusterTable = place.convert(document)
    place.note_bare_numbers(tables)
    devices = _devices_of(tables.device, place)
    machine = None if own is None else _caller_machine(own, devices, place)
    names = [device.name for device in devices]
    caller = tables.caller if machine is None else machine.name
    if machine is None and caller is not None and caller not in names:
        place.fail("caller", f"{shown(str(caller))}, {no_device(caller, names)}")
    if tables.caller_overhead and tables.caller is None:
        problem = "there is no caller; name its device with caller = ..."
        if machine is not None:
            problem = "is what a caller takes from a stage on its device; this one is on none"
        place.fail("caller_overhead", problem)
    if machine is not None:
        names.append(machine.name)
    media = _media_of(tables.medium, names, place)
    link = tables.link.over(Link())
    overrides = _overrides_of(tables.link, media, names, place)
    _check_pairs(media, overrides, names, tables.link, place)
    cluster = Cluster(
        devices=devices,
        link=link,
        overrides=overrides,
        caller=None if caller is None else str(caller),
        caller_overhead_s=float(tables.caller_overhead),
        media=tuple(media.values()),
        caller_machine=machine,
        engine=None if tables.engine is None else str(tables.engine),
        ssh_config=None if tables.ssh_config is None else str(tables.ssh_config),
    )
    if cluster.engine == "ssh":
        _check_reachable(cluster, place)
    return cluster


def _check_reachable(cluster: Cluster, place: Source) -> None:
    """Checks the addresses of a cluster for ssh."""
    for index, device in enumerate(cluster.devices):
        path = f"device[{index}].address"
        if device.address is None and device.name != cluster.caller:
            place.fail(path[: -len(".address")], 'engine = "ssh" needs the address of each device')
        try:
            if device.address is not None:
                read_ssh_address(device.address)
        except ValueError as error:
            place.fail(path, str(error))


def _caller_machine(table: CallerTable, devices: Sequence[Device], place: Source) -> CallerMachine:
    if table.name in [device.name for device in devices]:
        problem = (
            f"{shown(str(table.name))} is the name of a device; a caller that is on it is"
            " caller = NAME, and needs no table"
        )
        place.fail("caller.name", problem)
    return CallerMachine(
        name=str(table.name),
        address=None if table.address is None else str(table.address),
        port=table.checked_port("caller", place),
    )


def _media_of(tables: Sequence[MediumTable], names: list[str], place: Source) -> dict[str, Medium]:
    media: dict[str, Medium] = {}
    for index, table in enumerate(tables):
        path = f"medium[{index}]"
        if table.name in media:
            place.fail(f"{path}.name", f"{shown(str(table.name))} is another medium's name too")
        for name in table.devices:
            if name not in names:
                place.fail(f"{path}.devices", f"{shown(name)}, {no_device(name, names)}")
            if table.devices.count(name) > 1:
                place.fail(f"{path}.devices", f"{shown(name)} is named twice")
        if len(table.devices) < 2:
            place.fail(f"{path}.devices", "a medium joins two devices at least")
        media[str(table.name)] = Medium(
            name=str(table.name),
            devices=tuple(table.devices),
            bandwidth_bytes_per_s=float(table.bandwidth),
            latency_s=float(table.latency),
            relayed=bool(table.relayed),
        )
    return media


def _check_pairs(
    media: dict[str, Medium],
    overrides: Sequence[LinkOverride],
    names: list[str],
    link: LinkTable,
    place: Source,
) -> None:
    """Every two machines are joined by one thing, where some are by a medium."""
    given = {(override.source, override.target) for override in overrides}
    for pair in itertools.permutations(names if media else (), 2):
        shared = _shared(media, *pair)
        if len(shared) > 1 and pair not in given:
            place.fail(f"medium[{list(media).index(shared[-1])}]", two_media(*pair, shared))
        if not shared and pair not in given and link.bandwidth is None:
            problem = (
                f"nothing joins {pair[0]!r} to {pair[1]!r}: they are on no common medium, [link]"
                " gives no bandwidth, and no [[link.between]] is theirs"
            )
            place.fail("medium", problem)


def _shared(media: dict[str, Medium], source: str, target: str) -> list[str]:
    """Names of the media that two machines are both on."""
    return [m.name for m in media.values() if {source, target} <= {*m.devices}]


def _devices_of(tables: Sequence[DeviceTable], place: Source) -> tuple[Device, ...]:
    if not tables:
        place.fail("", "no [[device]]; a cluster needs at least one")
    names = [table.name for table in tables]
    for index, name in enumerate(names):
        if name in names[:index]:
            problem = f"{shown(str(name))} is the name of another device too"
            place.fail(f"device[{index}].name", problem)
    # Plain values: to the program a name is a name, wherever it was written.
    return tuple(
        Device(
            name=str(table.name),
            speed=float(table.speed),
            memory_bytes=None if table.memory_bytes is None else int(table.memory_bytes),
            profile=None if table.profile is None else str(table.profile),
            threads=None if table.threads is None else int(table.threads),
            address=None if table.address is None else str(table.address),
            listen=None if table.listen is None else str(table.listen),
            python=None if table.python is None else str(table.python),
            folder=None if table.folder is None else str(table.folder),
            env=tuple(table.env),
            backends=None if table.backends is None else tuple(table.backends),
            worker_bytes=None if table.worker_bytes is None else int(table.worker_bytes),
            overhead_s=float(table.overhead),
            port=table.checked_port(f"device[{index}]", place),
        )
        for index, table in enumerate(tables)
    )


def _overrides_of(
    tables: LinkTable, media: dict[str, Medium], names: list[str], place: Source
) -> tuple[LinkOverride, ...]:
    overrides: dict[tuple[str, str], LinkOverride] = {}
    default = tables.over(Link())
    for index, table in enumerate(tables.between):
        path = f"link.between[{index}]"
        for source, target in _pairs_of(table, names, path, place):
            if (source, target) in overrides:
                place.fail(path, f"the link {source} -> {target} again")
            shared = _shared(media, source, target)
            link = table.over(default)
            if table.medium is not None:
                if table.medium not in shared:
                    known = f"they are both on {', '.join(shared)}" if shared else "none does"
                    problem = f"{shown(str(table.medium))} joins no {source} and {target}; {known}"
                    place.fail(f"{path}.medium", problem)
                medium = media[table.medium]
                link = table.over(
                    msgspec.structs.replace(
                        default,
                        bandwidth_bytes_per_s=medium.bandwidth_bytes_per_s,
                        latency_s=medium.latency_s,
                    )
                )
            elif shared and table.bandwidth is None:
                problem = (
                    f"{source} and {target} are on medium {' and '.join(shared)}: say"
                    " medium = ... for a link over it, or the bandwidth of a wire of their own"
                )
                place.fail(path, problem)
            overrides[source, target] = LinkOverride(
                source=source,
                target=target,
                link=link,
                medium=None if table.medium is None else str(table.medium),
            )
    return tuple(overrides.values())


def _pairs_of(
    table: BetweenTable, names: list[str], path: str, place: Source
) -> tuple[tuple[str, str], ...]:
    """The directed pairs of devices that a table is about."""
    one = (table.source, table.to)
    ends = table.devices
    key = f"{path}.devices"
    if ends is None and table.source is not None and table.to is not None:
        ends = Pair((table.source, table.to))
        key = f"{path}.to"
    elif ends is None or one != (None, None):
        place.fail(path, "give devices = [A, B] for both directions, or from = A and to = B")
    for end in ends:
        if end not in names:
            place.fail(key, f"{shown(str(end))}, {no_device(end, names)}")
    first, second = (str(end) for end in ends)
    if first == second:
        place.fail(key, f"{first!r} is joined to itself")
    return ((first, second),) if table.devices is None else ((first, second), (second, first))
