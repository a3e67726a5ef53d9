"""The planner beside what others published: values and seconds on one core.

Run it from the project's folder: ``python benchmarks/planner.py``. Cases whose files are absent
are left out and named. Seconds are of processor time, so that a busy machine does not count.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cutset.planning.anyorder.downsets import DagProblem, Space
from cutset.planning.anyorder.search import solve_downsets
from cutset.planning.problem import ChainProblem
from cutset.planning.solvers.solve import solve_period
from planner_inputs import (
    INPUTS,
    chain_problem,
    cuts_with_one_reader,
    inception_like,
    published_pipeedge_period,
    read_pipedream_case,
    read_pipeedge_case,
    read_placement_case,
    read_speed_case,
)

ONE_A_CUT = {
    "layer_resnet50": "39.398",
    "layer_bert24": "17.790",
    "operator_resnet50": "129.155",
    "operator_bert3": "37.456",
}
"""Cases of dnn-partitioning and their published optima "with one tensor per cut"."""


class Row(NamedTuple):
    """A line of the table; None where nobody published a number or set a limit."""

    name: str
    value: float
    published: str | None
    seconds: float
    limit_s: float | None
    note: str


def timed(solve: Callable[[], float]) -> tuple[float, float]:
    """What a function returns and the seconds of processor time that it took."""
    start = time.process_time()
    value = solve()
    return value, time.process_time() - start


def chain(
    name: str, problem: ChainProblem, published: str | None, limit_s: float | None, note: str
) -> Row:
    """Solves a chain for its period."""
    notes = [note] if note else []

    def solve() -> float:
        solution = solve_period(problem)
        value = problem.period_s(solution.stages)
        if solution.proven_by != "exhaustion":
            notes.append(f"proven within {value / solution.bound_s - 1:.2%}")
        return value

    value, seconds = timed(solve)
    return Row(name, value, published, seconds, limit_s, "; ".join(notes))


def random_chain(seed: int, num_devices: int, num: int, *, fixed_order: bool) -> ChainProblem:
    """Unequal devices and links, of the same family as the planner-speed files."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(0.5, 1.6, num_devices)
    bandwidth = rng.uniform(30, 1000, num_devices)
    memory = rng.uniform(0.1, 2.0, num)
    return chain_problem(
        rng.uniform(0.02, 1.6, num) / speed[:, None],
        memory,
        rng.uniform(0.15, 0.6, num_devices) * memory.sum(),
        rng.uniform(1, 60, num),
        1 / np.minimum(bandwidth[:, None], bandwidth),
        fixed_order=fixed_order,
    )


def published_rows() -> list[Row]:
    """Every value that the inputs' README names."""
    rows = []
    speed = {
        "8_96": ("11.5312042", 0.8),
        "12_96": ("7.05548718", 40.5),
        "8_300": ("29.2153287", 18.0),
    }
    limits = {"8_96": None, "12_96": 0.5, "8_300": 0.3}
    for name, (best, theirs) in speed.items():
        problem = read_speed_case(INPUTS / "planner-speed" / f"s_{name}.flat.txt")
        row = chain(f"planner-speed {name}", problem, best, limits[name], f"PipeEdge's: {theirs} s")
        rows.append(row)
    for model, best in (("base", "1.549"), ("large", "5.043")):
        name = f"google/vit-{model}-patch16-224"
        problem = read_pipeedge_case(INPUTS / "pipeedge", name, (4, 4))
        note = ""
        if model == "base":
            theirs = published_pipeedge_period(INPUTS / "pipeedge", problem)
            note = f"PipeEdge's own schedule: {theirs:.6f}"
        rows.append(chain(f"pipeedge vit-{model} 4+4", problem, best, None, note))
    placements = {
        "layer_resnet50": ("33.774666", 1.0, "authors: 0.1 s"),
        "layer_bert24": ("17.789906", None, "authors: 0.01 s"),
        "operator_resnet50": ("124.349", None, "authors: 0.4 s"),
        "operator_bert3": ("27.9186", None, "authors: 1.4 s"),
    }
    for name, (best, limit_s, note) in placements.items():
        path = INPUTS / "dnn-partitioning" / f"{name}.json"
        dag = read_placement_case(path)
        rows.append(downsets(f"dnn-partitioning {name}", dag, best, limit_s, note))
    for folder in sorted((INPUTS / "pipedream").iterdir()):
        if folder.is_dir():
            dag = read_pipedream_case(folder / "graph.txt", 4)
            rows.append(downsets(f"pipedream {folder.name}, 4 equal", dag, None, None, ""))
    return rows


def downsets(
    name: str, problem: object, published: str | None, limit_s: float | None, note: str
) -> Row:
    """Solves a graph over all downsets."""
    start = time.process_time()
    solution = solve_downsets(problem)  # type: ignore[arg-type]
    seconds = time.process_time() - start
    if solution is None:
        raise SystemExit(f"{name} has no plan")
    notes = f"{solution.num_downsets:,} {solution.family}s" + (f"; {note}" if note else "")
    return Row(name, solution.period_s, published, seconds, limit_s, notes)


def made_up_rows() -> list[Row]:
    """The sizes for which there are limits but no published inputs."""
    return [
        chain("16 distinct x 96", random_chain(0, 16, 96, fixed_order=False), None, 5.0, ""),
        chain("20 distinct x 96", random_chain(0, 20, 96, fixed_order=False), None, None, ""),
        chain(
            "fixed order, 64 x 10,000", random_chain(0, 64, 10_000, fixed_order=True), None, 2.0, ""
        ),
        downsets("InceptionV3's shape", inception_like(0), None, 30.0, ""),
    ]


def is_missed(value: float, published: str) -> bool:
    """Whether a value is another than the one published, to the digits that were published."""
    rounding = 0.5 * 10.0 ** -len(published.partition(".")[2])
    return abs(value - float(published)) > rounding + 1e-6 * value


def print_one_a_cut() -> bool:
    """Prints what it costs where little may cross a cut; whether a published value is missed."""
    print("\nOne reader: all that crosses a cut and costs anything is read by one node; this gives")
    print("the values published as one tensor a cut. One maker: one node made all that crosses.")
    print(f"{'case':34} {'any cut':>12} {'one reader':>12} {'published':>12} {'off by':>9}"
          f" {'one maker':>12}")  # fmt: skip
    missed = False
    for name, published in ONE_A_CUT.items():
        path = INPUTS / "dnn-partitioning" / f"{name}.json"
        problem, one_made = read_placement_case(path), read_placement_case(path, max_tensors=1)
        any_cut = least_period(problem)
        one_reader = least_period(problem, allowed=cuts_with_one_reader)
        one_maker = least_period(one_made)
        off = f"{one_reader / float(published) - 1:+.1e}"
        print(f"{'dnn-partitioning ' + name:34} {any_cut:12.9g} {one_reader:12.9g} {published:>12}"
              f" {off:>9} {one_maker:12.9g}")  # fmt: skip
        missed |= is_missed(one_reader, published)
    return missed


def least_period(
    problem: DagProblem, *, allowed: Callable[[Space], np.ndarray] | None = None
) -> float:
    """The least period of a graph; `allowed` as for `solve_downsets`."""
    solution = solve_downsets(problem, allowed=allowed)
    if solution is None:
        raise SystemExit("there is no plan")
    return solution.period_s


def main() -> int:
    """Prints the table; 1 where a published optimum is missed."""
    rows = made_up_rows()
    if INPUTS.is_dir():
        rows = published_rows() + rows
    else:
        print(f"{INPUTS} is absent: published cases are left out", file=sys.stderr)
    print(f"{'case':34} {'ours':>12} {'best known':>12} {'off by':>9} {'seconds':>8} {'limit':>6}")
    missed = False
    for row in rows:
        best = row.published or ""
        off = f"{row.value / float(best) - 1:+.1e}" if best else ""
        limit = "" if row.limit_s is None else f"{row.limit_s:g}"
        print(f"{row.name:34} {row.value:12.9g} {best:>12} {off:>9} {row.seconds:8.3f} {limit:>6}"
              f"  {row.note}")  # fmt: skip
        missed |= bool(best) and is_missed(row.value, best)
    if INPUTS.is_dir():
        missed |= print_one_a_cut()
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
