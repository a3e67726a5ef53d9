"""``python -m release STEP``: `make changelog` and `make release` call this."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from release.steps import ReleaseRefused, require_ready, tag, write_changelog

STEPS = {"changelog": write_changelog, "ready": require_ready, "tag": tag}


def main() -> None:
    """Takes one step, or ends with what stands against it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    step = parser.parse_args().step
    try:
        answer = STEPS[step](Path(__file__).parents[1])
    except ReleaseRefused as refused:
        sys.exit(f"{step}: {refused}")
    print(step, answer or "done")


if __name__ == "__main__":
    main()
