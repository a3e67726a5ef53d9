"""The profiles that a cluster's devices name."""

from __future__ import annotations

from pathlib import Path

from cutset.cluster.devices import Cluster
from cutset.costs.cost_model import REFERENCE
from cutset.costs.profile import Profile, load_profile


def load_profiles(
    cluster: Cluster | None, folder: Path, reference: Profile | None
) -> Profile | dict[str, Profile] | None:
    """The profiles to plan with: the reference, and those that a cluster's devices name.

    Args:
        cluster: the cluster, or None.
        folder: where the files that its devices name are looked for.
        reference: what devices without a profile are scaled from; where None, the first device's
            own profile serves.

    Raises:
        PlanError: a profile cannot be read.
    """
    named = {
        device.profile: load_profile(folder / device.profile)
        for device in (cluster.devices if cluster else ())
        if device.profile is not None
    }
    if not named:
        return reference
    return named if reference is None else {REFERENCE: reference, **named}
