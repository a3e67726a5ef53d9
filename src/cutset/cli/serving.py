"""The command that serves a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutset.cli import options
from cutset.cli.engine_choice import chosen_engine
from cutset.cli.screen import native_output_to_stderr, tell, usage_error


def serve(
    bundle: options.Bundle,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any")] = 8000,
    engine: options.Engine = None,
    address: options.Address = None,
    replan_after: options.ReplanAfter = None,
    cluster: options.RunningCluster = None,
    backend: options.Backend = "auto",
    batch_size: options.MicroBatch = None,
    threads: options.Threads = 1,
    name: Annotated[
        str | None, typer.Option(help="the model's name in URLs; the folder's by default")
    ] = None,
    max_delay: Annotated[
        float,
        typer.Option(
            metavar="MS",
            parser=options.milliseconds,
            show_default="2 ms",
            help="how long rows wait for others",
        ),
    ] = 0.002,
    max_queue: Annotated[
        int, typer.Option(min=1, help="micro-batches that one let in may wait for")
    ] = 64,
    deadline: Annotated[
        float,
        typer.Option(
            metavar="S", parser=options.seconds, show_default="30 s", help="504 after so long"
        ),
    ] = 30.0,
    nan: Annotated[str, typer.Option(metavar="reject|allow", help="NaN in inputs")] = "reject",
    token_file: Annotated[Path | None, typer.Option(help="file with the clients' token")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="let everyone in")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file: serve HTTPS")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its key")] = None,
    max_body: Annotated[
        int,
        typer.Option(
            metavar="MIB",
            parser=options.mebibytes,
            show_default="64 MiB",
            help="longest request",
        ),
    ] = 64 << 20,
    max_connections: Annotated[int, typer.Option(min=1, help="most connections")] = 256,
    otel: Annotated[bool, typer.Option("--otel", help="make OpenTelemetry spans")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="log JSON lines to stderr")] = False,
) -> None:
    """Serve a bundle over HTTP: Open Inference Protocol v2, a page at /, metrics."""
    from cutset.serve.command import serve_bundle
    from cutset.serve.settings import ServeSettings, read_token

    try:
        settings = ServeSettings(
            host=host,
            port=port,
            token=None if token_file is None else read_token(token_file),
            no_auth=no_auth,
            tls_cert=tls_cert,
            tls_key=tls_key,
            model_name=name,
            max_delay_s=max_delay,
            max_queue=max_queue,
            deadline_s=deadline,
            nan_policy=nan,
            max_body_bytes=max_body,
            max_connections=max_connections,
        )
    except ValueError as error:
        usage_error(str(error))
    where = chosen_engine(engine, address, replan_after, cluster)
    with native_output_to_stderr():
        serve_bundle(
            bundle,
            settings,
            engine=where,
            backend=backend,
            micro_batch=batch_size,
            num_threads=threads,
            log_json=log_json,
            with_tracing=otel,
            on_listening=lambda url: tell(f"serving {bundle} at {url}", err=True),
        )
