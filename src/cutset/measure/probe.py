"""Measures a cluster's hosts for the planner: profiles of a model, and each directed link.

What is measured is what will happen: the profile runs on the node itself; links, and what messages
take from computing, are measured over the channel that the runtime uses. One thing is measured at a
time, so that nodes that share something do not disturb each other; then links at once, to see what
they share.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from cutset.bundles.file_entries import FileEntry, sha256_of
from cutset.cluster.devices import Cluster, Device, LinkOverride
from cutset.cluster.wires import Medium, Port, Wires
from cutset.costs.profile import Profile, profile_from_json
from cutset.engines.ray.engine import RayCluster
from cutset.engines.registry import EngineSettings
from cutset.engines.remote_host import HostAwayError, MeasuringHosts, RemoteHost
from cutset.errors import EngineError
from cutset.measure.find_wires import FoundWires, find_shared_wires, tried_pairs
from cutset.measure.flows import FlowProcesses
from cutset.measure.link_speed import exchange, links_of
from cutset.measure.overhead import TYPICAL_ROW_BYTES, Overhead
from cutset.progress import Progress, no_progress

_LOG = logging.getLogger(__name__)

_PROFILE_LIMIT_S = 1800.0
_IDLE_LIMIT_S = 300.0
_OVERHEAD_LIMIT_S = 600.0
_LINK_LIMIT_S = 180.0
_FILE_SUFFIXES = (".pt2", ".onnx", ".py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured.

    Attributes:
        cluster: devices with address, memory, threads, overhead and the name of their profile's
            file, and all links.
        profiles: by the name of the file that the cluster names.
    """

    cluster: Cluster
    profiles: dict[str, Profile]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """What to measure.

    Attributes:
        model: as `prepare_model` takes it; a file is sent to the nodes.
        address: of the Ray cluster, where no engine is named.
        engine: whose hosts are measured, or None.
        options: further options of ``cutset profile`` (``("--keep", "Block")``).
        batch_size: rows of a micro-batch; None for as many numbers of rows as pay.
        num_threads: threads that compute on each node.
        num_runs: measured runs on each node.
        secured: whether links have keys while they are measured, and in the cluster.
    """

    model: str
    address: str = "auto"
    engine: EngineSettings | None = None
    options: tuple[str, ...] = ()
    batch_size: int | None = None
    num_threads: int = 1
    num_runs: int = 20
    secured: bool = True


def probe_cluster(request: ProbeRequest, *, progress: Progress = no_progress) -> Probe:
    """Measures all living nodes of a Ray cluster, or all hosts of another engine, one by one.

    Args:
        request: what to measure.
        progress: told of every step.

    Raises:
        EngineError: no Ray or no cluster, a node that does not answer, or a measurement that failed
            there; says which and why.
    """
    try:
        with (request.engine or RayCluster(address=request.address)).measuring_hosts() as measured:
            return _probe(request, measured, progress)
    except HostAwayError as error:
        raise EngineError(str(error)) from error


def _probe(request: ProbeRequest, measured: MeasuringHosts, progress: Progress) -> Probe:
    hosts, caller_address = measured.hosts, measured.caller_address
    facts: dict[str, dict[str, int]] = {}
    profiles: dict[str, Profile] = {}
    overheads: dict[str, Overhead] = {}
    workers: dict[str, int] = {}
    for name, host in hosts.items():
        progress(f"profiling on {name}")
        facts[name] = host.ask("facts")
        profiles[name] = _profile(request, host, name)
        progress(f"measuring what messages cost on {name}")
        overheads[name] = _overhead(request, host)
        progress(f"measuring what a worker holds on {name}")
        workers[name] = max(_worker_bytes(host, each) for each in profiles[name].backends)
    links: list[LinkOverride] = []
    for source, target in itertools.combinations(hosts, 2):
        progress(f"measuring the link between {source} and {target}")
        links += _links(request, hosts, source, target)
    progress("measuring what links share")
    shared = _shared_wires(request, hosts, links)
    times = {name: _whole_s(profile) for name, profile in profiles.items()}
    fastest_s = min(times.values())
    file = measured.cluster
    known = {} if file is None else {d.name: d for d in file.devices}
    told = {
        name: known.get(name) or Device(name=name, address=host.address)
        for name, host in hosts.items()
    }
    media = file.media if file is not None and shared.medium is None else ()
    devices = tuple(
        msgspec.structs.replace(
            told[name],
            port=shared.ports.get(name, told[name].port),
            speed=fastest_s / times[name],
            memory_bytes=facts[name]["memory_bytes"],
            profile=_file_name(name),
            threads=request.num_threads,
            backends=profiles[name].backends,
            worker_bytes=workers[name],
            overhead_s=overheads[name].stage_s,
        )
        for name in hosts
    )
    caller = next((n for n, host in hosts.items() if host.address == caller_address), None)
    cluster = Cluster(
        devices=devices,
        overrides=tuple(_over(link, shared.medium, file) for link in links),
        media=media if shared.medium is None else (shared.medium,),
        caller=caller,
        caller_overhead_s=overheads[caller].caller_s if caller is not None else 0.0,
        engine=None if file is None else file.engine,
        ssh_config=None if file is None else file.ssh_config,
    )
    return Probe(cluster=cluster, profiles={_file_name(name): p for name, p in profiles.items()})


def _file_name(device: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in device)
    return f"{kept}.json"


def _whole_s(profile: Profile) -> float:
    return min(timing.median_s for timing in profile.whole.values())


def _profile(request: ProbeRequest, host: RemoteHost, device: str) -> Profile:
    model = _sent(request.model, host)
    arguments = [
        *("profile", model, "--json", "--device", device),
        *(("--batch-size", str(request.batch_size)) if request.batch_size is not None else ()),
        *("--threads", str(request.num_threads)),
        *("--runs", str(request.num_runs)),
        *request.options,
    ]
    host.ask("start_program", "command", arguments, request.num_threads)
    text = host.program_result(_PROFILE_LIMIT_S)
    return profile_from_json(text, source=f"the profile of {device}")


def _overhead(request: ProbeRequest, host: RemoteHost) -> Overhead:
    num_bytes = (request.batch_size or 1) * TYPICAL_ROW_BYTES
    arguments = ["--bytes", str(num_bytes), "--threads", str(request.num_threads)]
    host.ask("start_program", "overhead", arguments, request.num_threads)
    return msgspec.json.decode(host.program_result(_OVERHEAD_LIMIT_S), type=Overhead)


def _worker_bytes(host: RemoteHost, backend: str) -> int:
    """What an idle worker holds; see `cutset.measure.idle_memory`."""
    host.ask("start_program", "idle-worker", [backend], 1)
    return int(host.program_result(_IDLE_LIMIT_S))


def _sent(model: str, host: RemoteHost) -> str:
    """The model's name as the node knows it, after sending its file if it is one."""
    file, colon, factory = model.partition(":")
    path = Path(file)
    if path.suffix not in _FILE_SUFFIXES or not path.is_file():
        return model
    entry = FileEntry(path=path.name, num_bytes=path.stat().st_size, sha256=sha256_of(path))
    fields = msgspec.structs.astuple(entry)
    if host.ask("missing_manifest", fields, group="files"):
        host.send_file(path.parent, entry)
    kept: str = host.ask("keep_model", entry.sha256, path.suffix)
    return kept + colon + factory


class _Talk:
    """With a program on a host; see `cutset.measure.link_speed.Conversation`."""

    def __init__(self, host: RemoteHost) -> None:
        self._host = host
        self._heard = ""

    def hear(self) -> list[str]:
        num_lines = self._heard.count("\n")
        self._heard += self._host.ask("hear_program", len(self._heard))
        return self._heard.split("\n")[num_lines:-1]

    def tell(self, line: str) -> None:
        self._host.ask("tell_program", line)


def _links(
    request: ProbeRequest,
    hosts: Mapping[str, RemoteHost],
    source: str,
    target: str,
) -> tuple[LinkOverride, LinkOverride]:
    """Both directions between two nodes."""
    for name in (source, target):
        arguments = [
            *("--listen-host", hosts[name].address),
            *("--threads", str(request.num_threads)),
            *(("--first",) if name == source else ()),
            *(() if request.secured else ("--unsecured",)),
        ]
        hosts[name].ask("start_program", "link-speed", arguments, 1)
    ends = (_Talk(hosts[source]), _Talk(hosts[target]))
    there, back = (
        msgspec.structs.replace(link, secured=request.secured)
        for link in links_of(*exchange(*ends, limit_s=_LINK_LIMIT_S))
    )
    return (
        LinkOverride(source=source, target=target, link=there),
        LinkOverride(source=target, target=source, link=back),
    )


def _over(link: LinkOverride, found: Medium | None, file: Cluster | None) -> LinkOverride:
    """The link, over the medium that was found, or else over that of the cluster file."""
    if found is not None:
        return msgspec.structs.replace(link, medium=found.name)
    told = [] if file is None else Wires(file).common_media(link.source, link.target)
    return msgspec.structs.replace(link, medium=told[0]) if told else link


def _shared_wires(
    request: ProbeRequest, hosts: Mapping[str, RemoteHost], links: Sequence[LinkOverride]
) -> FoundWires:
    """What the links between hosts share."""
    pairs = tried_pairs(list(hosts))
    if not pairs:
        return FoundWires()
    for name, host in hosts.items():
        arguments = ["--listen-host", host.address]
        for option, end in (("--sends", 0), ("--receives", 1)):
            arguments += [option, *(str(k) for k, pair in enumerate(pairs) if pair[end] == name)]
        host.ask("start_program", "flows", arguments + ["--unsecured"] * (not request.secured), 1)
    talks = {name: _Talk(host) for name, host in hosts.items()}
    flows = FlowProcesses(pairs, talks, limit_s=_LINK_LIMIT_S)
    rates = {(each.source, each.target): each.link.bandwidth_bytes_per_s for each in links}
    found = find_shared_wires(
        list(hosts), lambda chosen: flows.flood(chosen, min(rates[pair] for pair in chosen))
    )
    flows.end()
    return found


def describe_probe(probe: Probe) -> Sequence[str]:
    """Lines for people: devices, then links, then what these share."""
    lines = [
        f"{device.name}: {_whole_s(probe.profiles[device.profile or '']) * 1e3:.1f} ms for the"
        f" whole model, {(device.memory_bytes or 0) >> 20:,} MiB free, of which an idle worker"
        f" takes {(device.worker_bytes or 0) >> 20:,},"
        f" {device.threads} threads, {device.overhead_s * 1e3:.2f} ms lost to messages,"
        f" at {device.address or 'this machine'}"
        for device in probe.cluster.devices
    ]
    lines += [
        f"{each.source} -> {each.target}:"
        f" {each.link.bandwidth_bytes_per_s * 8e-6:.1f} Mbit/s, {each.link.latency_s * 1e3:.2f} ms"
        for each in probe.cluster.overrides
    ]
    for device in probe.cluster.devices:
        port, rates = device.port, (device.port.out_bytes_per_s, device.port.in_bytes_per_s)
        if port != Port():
            out, into = (f"{rate * 8e-6:.1f} Mbit/s" for rate in rates)
            lines.append(
                f"port of {device.name}: {out} out, {into} in{', half duplex' * port.half_duplex}"
            )
    lines += [
        f"medium {medium.name} of {', '.join(medium.devices)}:"
        f" {medium.bandwidth_bytes_per_s * 8e-6:.1f} Mbit/s for all that they send"
        for medium in probe.cluster.media
    ]
    return lines
