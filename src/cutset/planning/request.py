"""What a plan is wanted for: one value that everything takes which plans."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import msgspec

from cutset.cluster.devices import Cluster, equal_cluster
from cutset.codecs.known_codecs import ALLOWABLE
from cutset.errors import PlanError
from cutset.planning.deadline import TIME_LIMIT_S

MAX_REPLICAS = 1024
"""Devices that a stage may have at most."""

Objective: TypeAlias = Literal["throughput", "latency"]
"""What is best: the least period, or the least time for one micro-batch alone."""


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan is wanted for; checked where it is made.

    Attributes:
        num_stages: exactly this many. Without a cluster that many equal devices, a stage each;
            with one None lets the planner choose, and not every device need be used.
        cut_names: cut exactly after these (`CutPoint.after`) and nowhere else; there is one stage
            more. Empty where the planner chooses.
        cluster: unequal devices and their links.
        objective: ``"throughput"`` or ``"latency"``.
        serial: whether a stage receives, computes and sends one after the other, instead of at the
            same time.
        fixed_order: whether stages must keep the cluster's order of devices.
        max_latency_s: the most seconds that one micro-batch may take alone, or None.
        min_rows_per_s: the least rows per second in steady state, or None.
        time_limit_s: seconds after which searches end and the best plan so far is taken, with the
            gap that is known; None for no limit.
        allow: of `ALLOWABLE`, what the plan may use between stages where it pays; without any, all
            tensors travel as they are.
        replicas: how many devices a stage may have at most, each with a share of its
            micro-batches; 1 for one device a stage.
    """

    num_stages: int | None = None
    cut_names: tuple[str, ...] = ()
    cluster: Cluster | None = None
    objective: Objective = "throughput"
    serial: bool = False
    fixed_order: bool = False
    max_latency_s: float | None = None
    min_rows_per_s: float | None = None
    time_limit_s: float | None = TIME_LIMIT_S
    allow: tuple[str, ...] = ()
    replicas: int = 1

    def __post_init__(self) -> None:
        """Checks the choice, the ranges, and that cuts and stages do not contradict each other.

        Raises:
            ValueError: an unknown objective or codec, a limit that is not above 0 and finite, or a
                number of stages below 1.
            TypeError: one text stands for the names of cuts or codecs.
            PlanError: there are not as many cuts as the number of stages needs, or something is
                wanted that plans with several devices a stage are not searched for.
        """
        if self.objective not in get_args(Objective):
            raise ValueError(f"objective is 'throughput' or 'latency', got {self.objective!r}")
        for name in ("max_latency_s", "min_rows_per_s", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"{name} must be above 0 and finite, or None for no limit, got {value}"
                )
        for field in ("cut_names", "allow"):
            names = getattr(self, field)
            if isinstance(names, str):
                raise TypeError(f"{field} is a tuple of names, got the text {names!r}")
        for name in self.allow:
            if name not in ALLOWABLE:
                raise ValueError(f"codec {name!r} is unknown; there are {', '.join(ALLOWABLE)}")
        self._check_replicas()
        if self.num_stages is not None and self.num_stages < 1:
            raise ValueError(f"num_stages must be at least 1, got {self.num_stages}")
        if self.cut_names and self.num_stages not in (None, self._num_given):
            raise PlanError(
                f"{self._num_given - 1} cuts make {self._num_given} stages, not the "
                f"{self.num_stages} that were asked for; leave one of the two out"
            )

    def _check_replicas(self) -> None:
        if not 1 <= self.replicas <= MAX_REPLICAS:
            raise ValueError(f"replicas must be 1 to {MAX_REPLICAS}, got {self.replicas}")
        if self.replicas == 1:
            return
        is_both = self.objective == "latency" and self.min_rows_per_s is not None
        media = self.devices_and_links.media
        wanted = {
            "a fixed order of devices": self.fixed_order,
            "the least latency under a throughput": is_both,
            "a medium that devices share": bool(media),
        }
        for what, is_wanted in wanted.items():
            if is_wanted:
                raise PlanError(
                    f"stages of up to {self.replicas} devices are not planned with {what}: ask for"
                    " one device a stage (replicas=1, --no-replicas), or leave that out"
                )

    @property
    def _num_given(self) -> int:
        """Stages that the named cuts make."""
        return len(set(self.cut_names)) + 1

    @property
    def _count(self) -> int | None:
        return self._num_given if self.cut_names else self.num_stages

    def resolved(self) -> PlanRequest:
        """The request with what it decides itself filled in: a cluster, and how many stages.

        The number stays None where the planner chooses it.
        """
        count = self._count if self.cluster is not None else self._count or 1
        return msgspec.structs.replace(self, num_stages=count, cluster=self.devices_and_links)

    @property
    def devices_and_links(self) -> Cluster:
        """The cluster, or as many equal devices as there are to be stages."""
        return self.cluster if self.cluster is not None else equal_cluster(self._count or 1)

    def within(self, seconds: float) -> PlanRequest:
        """The request with `seconds` as its time limit; without one where it has none."""
        if self.time_limit_s is None:
            return self
        return msgspec.structs.replace(self, time_limit_s=max(seconds, 1e-3))

    def max_period_s(self, num_rows: int) -> float | None:
        """Seconds that a micro-batch of `num_rows` rows may take in steady state, or None."""
        return None if self.min_rows_per_s is None else num_rows / self.min_rows_per_s
