"""What ``cutset serve`` does, without the parsing of its options."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cutset.engines.registry import EngineSettings
from cutset.extras import naming_extras
from cutset.serve.logs import JsonFormatter
from cutset.serve.settings import ServeSettings

_NUM_SPANS = 256
"""Micro-batches of which each stage remembers the times, for answers that tell them."""

_SWITCH_INTERVAL_S = 0.001
"""How long a thread may keep the interpreter's lock while another wants it; Python's is 0.005."""


def serve_bundle(  # noqa: PLR0913  # open_session's words, and the server's
    bundle: Path,
    settings: ServeSettings,
    *,
    engine: str | EngineSettings = "local",
    backend: str = "auto",
    micro_batch: int | None = None,
    num_threads: int = 1,
    log_json: bool = False,
    with_tracing: bool = False,
    on_listening: Callable[[str], None] | None = None,
) -> None:
    """Starts the workers of a bundle and serves them until SIGTERM or Ctrl-C.

    Args:
        bundle: the bundle's folder.
        settings: addresses and limits.
        engine: as `open_session` takes it.
        backend: as `open_session` takes it.
        micro_batch: as `open_session` takes it.
        num_threads: threads of each stage.
        log_json: log to stderr, a JSON object a line.
        with_tracing: make OpenTelemetry spans with the global tracer provider.
        on_listening: told the server's URL once it takes requests.

    Raises:
        ValueError: a setting is wrong: usage.
        MissingExtra: the extra that serving needs is not installed.
        CutsetError: the address is taken, the bundle is bad, or the pipeline ended.
    """
    with naming_extras():
        from cutset.backends.allocator import map_large_blocks
        from cutset.runtime.session import open_session
        from cutset.serve.server import address_of, bind, serve

        make_tracing = None
        if with_tracing:
            from cutset.serve.tracing import Tracing

            make_tracing = Tracing
    with naming_extras("serving"):
        import PIL  # noqa: F401  # images are decoded when they come, which is late to miss it
    if log_json:
        _log_as_json()
    listener = bind(settings)
    # Bodies grow as they arrive; mapped by themselves, they leave no holes behind when they go.
    map_large_blocks()
    try:
        with open_session(
            bundle,
            engine=engine,
            backend=backend,
            micro_batch=micro_batch,
            num_threads=num_threads,
            num_spans=_NUM_SPANS,
        ) as session:
            url = address_of(settings, listener)

            def tell() -> None:
                if on_listening is not None:
                    on_listening(url)

            with _short_pauses():
                serve(session, settings, listener, make_tracing=make_tracing, on_listening=tell)
    finally:
        listener.close()


@contextlib.contextmanager
def _short_pauses() -> Iterator[None]:
    """Keeps the interpreter from stopping everyone for tens of milliseconds.

    A full garbage collection looks at everything that was made when modules were imported. It all
    stays for as long as the server runs, so it is set aside once.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval_s)


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
