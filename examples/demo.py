"""A trained MobileNetV2 in two pieces: split, proven, and run as two processes.

Run it with ``make demo``. It needs no network: the weights and the photographs come with packages.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from demo_assets import mobilenet_weights, photographs
from rich.console import Console

import cutset
from cutset.report.text import print_answers, print_checks, print_plan

BUNDLE = Path("demo/mobilenet_v2.cutset")
NUM_ROWS = 100


def main() -> int:
    """Runs the demonstration; 0 when the pieces gave exactly the whole model's numbers."""
    console = Console(highlight=False)
    torch.set_num_threads(1)

    console.print("[bold]1. Split[/] a trained MobileNetV2 over two equal devices")
    prepared = cutset.prepare_model("torchvision:mobilenet_v2", weights=str(mobilenet_weights()))
    console.print(f"   weights: {prepared.found.weights}")
    plan = cutset.plan_model(prepared, cutset.PlanRequest(num_stages=2))
    print_plan(console, plan)

    console.print("\n[bold]2. Verify[/] that the two shards are the whole model")
    bundle = cutset.split_model(prepared, plan, BUNDLE, replace=True)
    checks = bundle.verification.checks
    print_checks(console, [(check.name, check.ok, check.detail) for check in checks])

    console.print("\n[bold]3. Run[/] photographs through two worker processes")
    preprocessing, labels = prepared.found.preprocessing, prepared.found.labels
    assert preprocessing is not None
    paths = photographs()
    rows = [cutset.read_image(path, preprocessing)[np.newaxis] for path in paths]
    with torch.inference_mode():
        tensors = [torch.from_numpy(row) for row in rows]
        whole = torch.cat([prepared.found.model(tensor) for tensor in tensors]).numpy()
    with cutset.open_session(bundle, backend="torch") as session:
        pieces = np.concatenate(list(session.stream(rows)))
    print_answers(console, [path.name for path in paths], cutset.top_k(pieces, labels, 3))
    agree = np.array_equal(pieces, whole)
    console.print(
        f"   agreement with the whole model: {'every bit' if agree else 'NOT EQUAL'} "
        f"({len(rows)} of {len(rows)} photographs, {whole.size} numbers)"
    )

    console.print("\n[bold]4. Throughput[/], a row at a time")
    with torch.inference_mode():
        alone = _rows_per_s(lambda: [prepared.found.model(tensors[0]) for _ in range(NUM_ROWS)])
    console.print(f"   whole model, one process, one thread:  {alone:6.1f} rows/s")
    for backend in ("torch", "onnxruntime"):
        with cutset.open_session(bundle, backend=backend) as session:
            list(session.stream([rows[0]] * 10))
            speed = _rows_per_s(lambda s=session: list(s.stream([rows[0]] * NUM_ROWS)))
        console.print(
            f"   two processes, one thread each, {backend + ':':<13}{speed:6.1f} rows/s "
            f"({speed / alone:.2f} times)"
        )
    return 0 if agree else 1


def _rows_per_s(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return NUM_ROWS / (time.perf_counter() - started)


# Worker processes import the main module anew on some platforms; only the first one runs this.
if __name__ == "__main__":
    sys.exit(main())
