"""What the cluster file says of a link's security reaches both of its ends, and no other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cutset.engines.local import LocalEngine
from cutset.links import circuit
from cutset.runtime.session import open_session

from .bundles import SmallNet, whole_model


class _Engine(LocalEngine):
    def __init__(self, unsecured: tuple[int, ...]) -> None:
        super().__init__(("a", "b"), num_threads=1, shares_memory=False)
        self._unsecured = unsecured

    def unsecured_links(self) -> tuple[int, ...]:
        return self._unsecured


@pytest.mark.parametrize("unsecured", [(), (0,), (1, 2), (0, 1, 2)])
def test_links_go_without_keys_where_that_is_wanted(
    bundle: Path, model: SmallNet, unsecured: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[int, bool] = {}
    healthy = circuit.join

    def join(*arguments: Any, secured: bool, **options: Any) -> Any:
        made[arguments[2].index] = secured
        return healthy(*arguments, secured=secured, **options)

    # The caller's own ends; a worker's must agree with them, or they would not talk.
    monkeypatch.setattr(circuit, "join", join)
    rows = torch.randn(6, 3, 16, 16)
    with open_session(bundle, engine=_Engine(unsecured), backend="onnxruntime") as session:
        answer = session.run(rows)
        assert session.epoch == 1
    assert made == {0: 0 not in unsecured, 2: 2 not in unsecured}
    assert torch.allclose(answer, whole_model(model, rows, 4), atol=1e-5)
