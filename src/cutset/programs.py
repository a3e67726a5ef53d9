"""The modules that are named in words: programs for processes of their own, and what draws.

Where a module is started or asked for by its name, no import tells a reader, a type checker or a
linter of it. So all such names stand here, and nowhere else but in the package's entry points.
"""

from __future__ import annotations

from collections.abc import Mapping

PROGRAMS: Mapping[str, str] = {
    "board": "cutset.engines.ssh.board",
    "bystander": "cutset.measure.bystander_work",
    "command": "cutset.cli",
    "flows": "cutset.measure.flows",
    "idle-worker": "cutset.measure.idle_worker",
    "link-speed": "cutset.measure.link_speed",
    "overhead": "cutset.measure.overhead",
    "stages-alone": "cutset.measure.stages",
    "verification": "cutset.bundles.proof.child",
    "worker": "cutset.runtime.worker",
}
"""What runs in a process of its own: a name, and the module whose ``main`` it runs."""

NOTEBOOK_DRAWINGS = "cutset.report.notebook"
"""What draws an object that a notebook shows; it stands above all that is drawn."""
