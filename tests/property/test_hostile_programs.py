"""Whatever a program's JSON says, loading the stage gives a `CutsetError` or a program.

Nothing is computed here: `mutations` computes what was accepted, in processes of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cutset.bundles.open import open_bundle
from cutset.bundles.reading.torch.loading import load_program
from cutset.errors import CutsetError
from distributed.bundles import write_bundle
from hostile import MODEL_JSON, PROGRAM, copy_of, edit_members, members_of, root_of
from hostile_json import Mutator
from models_of_trouble import residual_net

CONFIG = "data/weights/model_weights_config.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two stages."""
    folder = tmp_path_factory.mktemp("hostile") / "b.cutset"
    return write_bundle(residual_net(), (torch.randn(3, 3, 8, 8),), (4,), folder)


@pytest.mark.parametrize("member", [MODEL_JSON, CONFIG])
@pytest.mark.parametrize(
    "count", [150, pytest.param(2000, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_only_our_errors(source: Path, tmp_path: Path, member: str, count: int) -> None:
    bundle = copy_of(source, tmp_path / "b.cutset")
    original = members_of(bundle / PROGRAM)
    name = f"{root_of(original)}/{member}"
    mutator = Mutator(json.loads(original[name]), seed=count)
    num_refused = 0
    for _ in range(count):
        changed = {**original, name: mutator.text().encode("utf-8", "surrogatepass")}
        edit_members(bundle, lambda members, _, changed=changed: members.update(changed))
        try:
            load_program(open_bundle(bundle), 1)
        except CutsetError:
            num_refused += 1
    assert count // 4 < num_refused < count
