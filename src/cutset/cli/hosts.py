"""Commands about the hosts of a cluster file: hosts check, hosts install."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutset.cli import options
from cutset.cli.screen import print_json, show_progress, stdout, tell
from cutset.errors import EngineError

if TYPE_CHECKING:
    from cutset.engines.ssh.troubles import Trouble

app = typer.Typer(no_args_is_help=True, help="Look after the hosts that a cluster file names.")

ClusterFile = Annotated[
    Path, typer.Option("--cluster", help="a cluster file with the devices' ssh addresses")
]


@app.command()
def check(cluster: ClusterFile, as_json: options.Json = False) -> None:
    """Log in to every host; tell what it has, how fast it reaches the others, and what to mend."""
    import msgspec

    from cutset.cluster.cluster_file import load_cluster
    from cutset.engines.ssh.check import check_hosts, pairs_without_keys
    from cutset.report.host_table import print_hosts

    loaded = load_cluster(cluster)
    without_keys = pairs_without_keys(loaded)
    with show_progress() as progress:
        states = check_hosts(loaded, progress=progress)
    if as_json:
        hosts = [{**msgspec.to_builtins(s), "ok": s.ok} for s in states]
        print_json({"hosts": hosts, "without_keys": without_keys})
    else:
        print_hosts(stdout(), states)
    if without_keys:
        pairs = ", ".join(f"{a} - {b}" for a, b in without_keys)
        tell(
            f'warning: security = "none" leaves {pairs} without keys: whoever is on these wires can'
            " read and change rows",
            err=True,
        )
    _leave((s.name, s.trouble) for s in states)
    if not all(state.ok for state in states):
        raise typer.Exit(EngineError.exit_code)


@app.command()
def install(
    cluster: ClusterFile,
    wheel: Annotated[
        Path | None,
        typer.Option(metavar="FILE.whl", help="of Cutset; else made of what is installed here"),
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="wheels of all that Cutset needs, for hosts without internet"
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Put this version of Cutset on every host, into the environment that its `python` names."""
    import msgspec

    from cutset.cluster.cluster_file import load_cluster
    from cutset.engines.ssh.install import install_on_hosts

    with show_progress() as progress:
        done = install_on_hosts(
            load_cluster(cluster), wheel=wheel, wheels=wheels, progress=progress
        )
    if as_json:
        print_json({"hosts": msgspec.to_builtins(done)})
    else:
        for each in done:
            if each.trouble is None:
                tell(f"{each.name}: {'installed' if each.changed else 'has this version already'}")
    _leave((each.name, each.trouble) for each in done)


def _leave(troubles: Iterable[tuple[str, Trouble | None]]) -> None:
    """Says what is wrong with each host, on stderr, and leaves if anything is.

    Raises:
        typer.Exit: with 6.
    """
    found = [f"{name}: {trouble}" for name, trouble in troubles if trouble is not None]
    for line in found:
        tell(line, err=True)
    if found:
        raise typer.Exit(EngineError.exit_code)
