"""Fixtures that several folders use."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Several processes of a test share two cores; OpenMP's default of one thread a core would
# have them fight. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST_FIRST = (
    "beds/test_ray.py",
    "distributed/test_processes.py",
    "beds/test_ray_probe.py",
    "distributed/test_torch_settings.py",
    "beds/test_ssh_faults.py",
    "beds/test_hosts_install.py",
    "serve/test_soak.py",
    "beds/test_ssh.py",
    "integration/test_six_models_run.py",
    "docs/test_blocks_run.py",
    "cli/test_report_pages.py",
    "cli/test_commands.py",
    "cli/test_input_forms.py",
    "integration/test_many_models.py",
    "property/test_mutated_programs.py",
)
"""Files of which one keeps a process busy for half a minute or more: begun last, it would be alone
at the end. What waits for its testbed stands beside what computes. For ``--dist loadfile
--no-loadscope-reorder``, which gives out files in this order."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {Path(__file__).parent / file: rank for rank, file in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """Python looks less often for garbage, and not among what was imported.

    That took an eighth of the time of an export.
    """
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    _keep_translations()


def _keep_translations() -> None:
    """torch parses its 500 translations into ONNX anew for every export, for a third of a second.

    Once the first export has imported them, they are kept.
    """
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter is not None and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_info"):
        read = functools.cache(exporter.ONNXRegistry.from_torchlib)
        exporter.ONNXRegistry.from_torchlib = staticmethod(read)


@pytest.fixture(scope="session")
def assets() -> ModuleType:
    """Trained weights and photographs, ``examples/demo_assets.py``."""
    path = Path(__file__).parents[1] / "examples" / "demo_assets.py"
    spec = importlib.util.spec_from_file_location("demo_assets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
