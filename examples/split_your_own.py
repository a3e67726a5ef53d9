"""Splits a module of your own in two, proves the pieces, and runs them as two processes.

Run it with ``python examples/split_your_own.py``; it writes ``own.cutset`` into the current folder.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import cutset


class Block(nn.Module):
    """A residual block: Cutset sees the skip and never cuts inside."""

    def __init__(self, width: int) -> None:
        """Takes the number of channels."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds what the body makes of `x` to it."""
        return x + self.body(x)


def make_model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """What Cutset asks of a model: the module, and inputs with two rows or more to capture it."""
    torch.manual_seed(0)
    blocks = [Block(16) for _ in range(4)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *blocks, *head)
    return model, (torch.randn(2, 3, 32, 32),)


def main() -> int:
    """Runs the example; 0 when the pieces gave exactly the whole model's numbers."""
    torch.set_num_threads(1)
    # The same words serve on the command line: cutset split split_your_own.py:make_model ...
    prepared = cutset.prepare_model(f"{__file__}:make_model")
    print("units:", ", ".join(unit.path for unit in prepared.cuts.units))
    print("may be cut after:", ", ".join(point.after for point in prepared.cuts.points))

    # Every piece is measured with every backend that is installed; costs="flops" would count
    # multiply-adds instead.
    plan = cutset.plan_model(prepared, cutset.PlanRequest(num_stages=2))
    print("is cut after:", plan.stages[0].last)

    bundle = cutset.split_model(prepared, plan, "own.cutset", replace=True)
    for check in bundle.verification.checks:
        print(f"{check.name}: {'ok' if check.ok else 'FAILED'}, {check.detail}")

    rows = torch.randn(5, 3, 32, 32)
    with cutset.open_session(bundle, backend="torch") as session:
        pieces = torch.as_tensor(session.run(rows))
    with torch.inference_mode():
        # In micro-batches as the plan has them: their size changes last bits, as in torch.
        whole = torch.cat([prepared.found.model(part) for part in rows.split(plan.micro_batch)])
    equal = torch.equal(pieces, whole)
    print("equal to the whole model:", "every bit" if equal else "NO")
    return 0 if equal else 1


# Worker processes import the main module anew on some platforms; only the first one runs this.
if __name__ == "__main__":
    sys.exit(main())
