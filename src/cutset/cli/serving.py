"""The command that serves a bundle over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutset.cli import options
from cutset.cli.screen import native_output_to_stderr, usage_error


def serve(
    bundle: options.Bundle,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port; 0 has the system choose one")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="file with the token that clients must present")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="anyone who reaches the address may use it")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file: certificate chain")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file: its key")] = None,
    name: Annotated[str, typer.Option(help="the model's name in URLs")] = "model",
    max_delay: Annotated[
        float, typer.Option(min=0, help="seconds that rows wait to share a micro-batch")
    ] = 0.002,
    max_queue: Annotated[
        int, typer.Option(min=1, help="micro-batches' worth of rows accepted at once")
    ] = 64,
    deadline: Annotated[float, typer.Option(help="seconds until a request gets 504")] = 30.0,
    max_body: Annotated[int, typer.Option(min=1, help="longest body in bytes")] = 64 << 20,
    max_connections: Annotated[int, typer.Option(min=1, help="most connections")] = 256,
    nan: Annotated[str, typer.Option(metavar="reject|allow", help="NaN in inputs")] = "reject",
    engine: options.Engine = "local",
    backend: options.Backend = "auto",
    batch_size: options.MicroBatch = None,
    threads: options.Threads = 1,
    log_json: Annotated[bool, typer.Option("--log-json", help="log JSON lines to stderr")] = False,
    otel: Annotated[bool, typer.Option("--otel", help="make OpenTelemetry spans")] = False,
) -> None:
    """Serve a bundle over HTTP: Open Inference Protocol v2, a page, metrics."""
    from cutset.serve.command import serve_bundle
    from cutset.serve.settings import ServeSettings, read_token

    try:
        settings = ServeSettings(
            host=host,
            port=port,
            token=read_token(token_file) if token_file is not None else None,
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
    with native_output_to_stderr():
        serve_bundle(
            bundle,
            settings,
            engine=engine,
            backend=backend,
            micro_batch=batch_size,
            num_threads=threads,
            log_json=log_json,
            with_tracing=otel,
            on_listening=lambda url: typer.echo(f"serving {bundle} at {url}", err=True),
        )
