"""Arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from cutset.quantities import ROW_RATE, SECONDS, Measure, read_bytes, read_quantity


def _quantity(measure: Measure, bare: str) -> Callable[[str | float], float]:
    """A parser of numbers with a unit, as in cluster files; one without has the unit `bare`."""

    def parse(value: str | float) -> float:
        if not isinstance(value, str):
            return value  # the default
        try:
            found = read_quantity(value, measure, bare=bare)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if found == float("inf"):
            raise typer.BadParameter("must be finite; leave the option out for no limit")
        return found

    return parse


seconds = _quantity(SECONDS, "s")
milliseconds = _quantity(SECONDS, "ms")
rows_per_s = _quantity(ROW_RATE, "rows/s")


def mebibytes(value: str | int) -> int:
    """Bytes; a number without a unit is of MiB."""
    if not isinstance(value, str):
        return value  # the default
    try:
        return read_bytes(value, bare="MiB")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was written, even with the value that it has by default."""
    source = context.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")


def written(name: str) -> str:
    """An option as it is written: ``max_tensors`` is ``--max-tensors``."""
    return f"--{name.replace('_', '-')}"


def any_weights(model: str, weights: str | None = None) -> str | None:
    """Weights where the answer does not depend on them: random ones if none are named.

    A file that holds its own keeps them.
    """
    holds_its_own = Path(model).suffix in (".onnx", ".pt2")
    return weights if weights is not None or holds_its_own else "random:0"


Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME (or just NAME), timm:NAME, FILE.py:FACTORY, FILE.pt2 or FILE.onnx",
    ),
]
Bundle: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="a bundle")]
Weights: TypeAlias = Annotated[
    str | None, typer.Option(help="DEFAULT, a .pth or .safetensors file, or random:SEED")
]
Keep: TypeAlias = Annotated[
    list[str] | None, typer.Option(metavar="CLASS", help="never divide modules of this class")
]
Divide: TypeAlias = Annotated[
    list[str] | None, typer.Option(metavar="CLASS", help="allow cuts between its children")
]
MaxTensors: TypeAlias = Annotated[
    int, typer.Option(min=1, help="most tensors that may cross a cut")
]
Part: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="only this module of the model"),
]
Preprocess: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="how images become rows: FILE.toml, torchvision:WEIGHTS or timm:NAME",
    ),
]
Labels: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="names of the classes: FILE.txt, FILE.json, torchvision:WEIGHTS or timm:NAME",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="print one JSON document")]
BatchSize: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="rows of a micro-batch; as many as measured to pay by default"),
]
MicroBatchOnly: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="capture the model for N rows alone; the bundle then takes no other micro-batches",
    ),
]
Threads: TypeAlias = Annotated[int, typer.Option(min=1, help="threads of each stage")]
PlannedThreads: TypeAlias = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="threads of each stage; 1 by default"),
]
Runs: TypeAlias = Annotated[int, typer.Option(min=5, help="measured runs")]
Stages: TypeAlias = Annotated[int | None, typer.Option(min=1, help="that many equal devices")]
Cluster: TypeAlias = Annotated[Path | None, typer.Option(help="a cluster file (TOML)")]
Cut: TypeAlias = Annotated[
    list[str] | None, typer.Option(metavar="AFTER", help="cut here (repeatable)")
]
Cost: TypeAlias = Annotated[
    str,
    typer.Option(metavar="measured|flops", help="what a piece costs: seconds or multiply-adds"),
]
ProfileFile: TypeAlias = Annotated[
    Path | None, typer.Option("--profile", help="a profile instead of measuring now")
]
Serial: TypeAlias = Annotated[
    bool, typer.Option(help="computing and sending add up instead of overlapping")
]
FixedOrder: TypeAlias = Annotated[
    bool, typer.Option(help="stages keep the cluster file's order of devices")
]
MaxLatency: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="S", parser=seconds, help="most time for one micro-batch alone; 0.05 or '50 ms'"
    ),
]
TimeLimit: TypeAlias = Annotated[
    float,
    typer.Option(
        metavar="S",
        parser=seconds,
        help="most time for planning, after which the best plan so far is taken; 20 or '20 s'",
    ),
]
MinThroughput: TypeAlias = Annotated[
    float | None,
    typer.Option(metavar="ROWS/S", parser=rows_per_s, help="least rows per second; 20 or '20/s'"),
]
Replicas: TypeAlias = Annotated[
    int,
    typer.Option(
        metavar="N", help="up to N devices for a stage, each with a share; 1: one device a stage"
    ),
]
NoReplicas: TypeAlias = Annotated[
    bool, typer.Option("--no-replicas", help="one device a stage: --replicas 1")
]
Allow: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="fp16|int8|zstd",
        help="codecs that may be used between stages, where that pays (repeatable); fp16 and"
        " int8 change answers a little, zstd packs without loss",
    ),
]
Calibration: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="with --allow: images, a folder of them, .npy, .npz or .safetensors (repeatable), on"
        " which answers with and without codecs are compared",
    ),
]
MinAgreement: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="with --allow: least share of rows that keep their top label; 0.97 for a model with"
        " labels",
    ),
]
MaxError: TypeAlias = Annotated[
    float | None,
    typer.Option(min=0.0, help="with --allow: most that a number of an output may differ"),
]
Engine: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="local|ssh|ray|NAME",
        help="where workers run: here, by ssh, on a Ray cluster, or on an engine that a package"
        " adds; what the cluster file says, or local",
    ),
]
Address: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT|auto", help="the Ray cluster's head; auto: this machine's"),
]
ReplanAfter: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        parser=seconds,
        help="give a device up after so long, and place its stages anew; 10",
    ),
]
RunningCluster: TypeAlias = Annotated[
    Path | None,
    typer.Option("--cluster", help="a cluster file: the devices' addresses, speeds, links"),
]
Backend: TypeAlias = Annotated[
    str,
    typer.Option(metavar="NAME", help="what computes a stage: auto, or as `cutset doctor` lists"),
]
PlannedBackend: TypeAlias = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="plan for this backend; auto: for each stage's fastest",
    ),
]
MicroBatch: TypeAlias = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="rows of a micro-batch; the plan's by default"),
]
