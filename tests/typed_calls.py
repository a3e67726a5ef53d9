"""What a caller who checks types writes: `mypy --strict` reads this file, nothing runs it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import cutset


def from_a_module_to_answers(module: nn.Module, rows: torch.Tensor) -> int:
    """The first thing that a PyTorch user types."""
    prepared = cutset.prepare_model(module, rows)
    plan = cutset.plan_model(prepared, cutset.PlanRequest(num_stages=2, objective="latency"))
    bundle = cutset.split_model(prepared, plan, "own.cutset")
    assert bundle.verification.bit_exact
    with cutset.open_session(bundle) as session:
        tensor: torch.Tensor = session.run(rows)
        array: np.ndarray = session.run(rows.numpy())
        named: dict[str, torch.Tensor] = session.run_named(rows)
        several: list[np.ndarray] = list(session.stream([rows.numpy(), (rows.numpy(),)]))
        return session.run(rows).shape[0] + tensor.numel() + array.size + len(named) + len(several)
