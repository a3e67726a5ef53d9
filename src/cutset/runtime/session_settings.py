"""How a session is run: what `open_session` is given, checked."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from cutset.backends.selection import check_backend_name
from cutset.bundles.open import Bundle
from cutset.costs.cost_model import default_window
from cutset.engines.local import cores_of
from cutset.engines.protocol import Engine, Load
from cutset.ranges import MAX_ROWS, MAX_THREADS
from cutset.runtime.contract import check_micro_batch, groups_of, links_of
from cutset.runtime.status import Limits, checked_count

_MOST_WINDOW = 4096
_MOST_SPANS = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """Settings of a session; as `cutset.open_session` takes them, each decided.

    Attributes:
        backend: name of a backend, or ``"auto"``.
        micro_batch: rows that travel together.
        num_threads: threads that each stage computes with.
        window: most micro-batches in flight.
        pin: whether each stage gets cores of its own.
        limits: how long to wait for what, and how often to try again.
        num_spans: of how many micro-batches each process keeps a timeline.
    """

    backend: str
    micro_batch: int
    num_threads: int
    window: int
    pin: bool
    limits: Limits
    num_spans: int

    def num_slots(self, engine: Engine) -> int:
        """Places for micro-batches in memory that an engine's processes share."""
        # Two more than can be in flight: a slot is given back a moment after its answer is out.
        return self.window + 2 if engine.shares_memory else 0

    def loads(self, bundle: Bundle, num_slots: int) -> tuple[Load, ...]:
        """What each worker is told to load, in the order of the members."""
        plan = bundle.manifest.plan
        groups = groups_of(plan)
        num_members = len(groups.places)
        return tuple(
            Load(
                bundle=os.fsencode(Path(bundle.directory).resolve()),
                stage=stage,
                member=member,
                backend=self.backend,
                micro_batch=self.micro_batch,
                num_threads=self.num_threads,
                cpus=cores_of(member, num_members, self.num_threads) if self.pin else (),
                heartbeat_s=(
                    self.limits.heartbeat_s
                    if groups.sizes[stage] == 1
                    else min(self.limits.heartbeat_s, self.limits.sibling_s)
                ),
                num_spans=self.num_spans,
                num_slots=num_slots,
                num_in_flight=self.window,
            )
            for member, (stage, _) in enumerate(groups.places)
        )


def checked_settings(
    bundle: Bundle,
    *,
    backend: str,
    micro_batch: int | None,
    num_threads: int,
    window: int | None,
    pin: bool,
    limits: Limits | None,
    num_spans: int,
) -> SessionSettings:
    """The settings of a session with a bundle; see `cutset.open_session`."""
    plan = bundle.manifest.plan
    rows = plan.micro_batch if micro_batch is None else micro_batch
    rows = checked_count("micro_batch", rows, 1, MAX_ROWS)
    check_micro_batch(rows, bundle.manifest.micro_batch_only)
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits are a cutset.runtime.status.Limits, got {limits!r}")
    in_flight = default_window(len(groups_of(plan).places)) if window is None else window
    settings = SessionSettings(
        backend=backend,
        micro_batch=rows,
        window=checked_count("window", in_flight, 1, _MOST_WINDOW),
        num_threads=checked_count("num_threads", num_threads, 1, MAX_THREADS),
        pin=pin,
        limits=limits or Limits(),
        num_spans=checked_count("num_spans", num_spans, 0, _MOST_SPANS),
    )
    check_backend_name(backend)
    links_of(bundle.manifest, rows)
    return settings
