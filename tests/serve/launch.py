"""A server in a process of its own: ``python launch.py BUNDLE [JSON of settings]`` says its URL."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cutset.serve.command import serve_bundle
from cutset.serve.settings import ServeSettings

if __name__ == "__main__":
    given = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    engine_options = {key: given.pop(key) for key in ("backend", "micro_batch") if key in given}
    serve_bundle(
        Path(sys.argv[1]),
        ServeSettings(**{"port": 0, "model_name": "small", **given}),
        log_json=True,
        on_listening=lambda url: print(url, flush=True),
        **engine_options,
    )
