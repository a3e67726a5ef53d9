"""Mutants of real stage programs, tried in processes of their own: ``make mutations``.

What is mutated: the archives of small models of every kind (`SOURCES`): types, sizes, strides,
constants, arguments and their order, operations among those that are listed. What is tried: load
the stage; if it is accepted, compute one set of rows three times. The rows and the weights lie in
memory that ends where a page begins that nobody may touch, so that a read beyond an end is a
signal and no number by chance.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import mmap
import random
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutset.bundles.reading.torch.archive import ProgramArchive
from cutset.bundles.reading.torch.decode import read_program
from cutset.bundles.reading.torch.dry_run import DryRun
from cutset.bundles.reading.torch.functions import build_module
from cutset.bundles.reading.torch.loading import LoadedProgram
from cutset.bundles.reading.torch.operators import _ATEN
from cutset.capture.pieces import build_piece, export_piece
from cutset.capture.torch_export import capture_model
from cutset.errors import CutsetError

ROWS = 2
MEMORY_BYTES = 1 << 28
"""What a mutant may hold at once, by the dry run."""

ADDRESS_BYTES = 16 << 30
BATCH_TIMEOUT_S = 240
MODEL_JSON = "models/model.json"
WEIGHTS_JSON = "data/weights/model_weights_config.json"


class Attention(nn.Module):
    """Words become vectors that look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 24)
        self.last = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.norm(self.table((words * 3).long().clamp(0, 10)))
        q, k, v = self.mix(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(x.roll(1, 1)[:, :, :8]).softmax(-1)


class Pyramid(nn.Module):
    """Two scales of features, one enlarged and added, then looked at through a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 3, padding=1)
        self.coarse = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = nn.functional.max_pool2d(self.coarse(fine), 2)
        big = nn.functional.interpolate(self.up(coarse), size=8, mode="bilinear")
        grid = big[:, :2].permute(0, 2, 3, 1)
        seen = nn.functional.grid_sample(fine, grid, align_corners=False)
        seen = nn.functional.pad(seen, (1, 1, 1, 1), mode="reflect")
        windows = nn.functional.unfold(seen, 3, stride=2).sum(1)
        return torch.cat([nn.functional.avg_pool2d(big, 2).flatten(1), windows], 1)


class Norms(nn.Module):
    """Every normalisation, after one another."""

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.group = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.instance, self.layer = nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([4, 4, 4])
        self.scale = nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.instance(self.group(self.batch(x))))
        x = nn.functional.pixel_unshuffle(nn.functional.pixel_shuffle(x, 2), 2)
        return nn.functional.linear(x.reshape(x.shape[0], 8, 8), self.scale)


class Recurrent(nn.Module):
    """A sequence read forwards and backwards, its steps picked by an index."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 3, batch_first=True, bidirectional=True)
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.cell(x)[0][:, self.order]
        return x.gather(2, (x > 0).long()).index_select(1, self.order)


class Residual(nn.Module):
    """Convolutions, a skip, in-place operations, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = self.act(x + self.second(x))
        return self.head(nn.functional.dropout(x.mean((2, 3)), training=self.training))


SOURCES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 8, 8)),
    "attention": (Attention, (6,)),
    "pyramid": (Pyramid, (3, 8, 8)),
    "norms": (Norms, (4, 4, 4)),
    "recurrent": (Recurrent, (3, 4)),
}


def write_source(name: str, folder: Path) -> Path:
    """Writes the program of one small model as one stage."""
    make, shape = SOURCES[name]
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(ROWS, *shape)
    captured = capture_model(model, (example,))
    piece = build_piece(captured, 0, len(captured.graph.operations))
    exported = export_piece(piece, (example,))
    exported.example_inputs = None
    path = folder / f"{name}.pt2"
    torch.export.save(exported, path)
    return path


# -- mutating ------------------------------------------------------------------------------------

Document = dict[str, Any]
_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    4,
    5,
    7,
    8,
    16,
    63,
    64,
    1000,
    -2,
    -7,
    1 << 16,
    1 << 31,
    1 << 47,
    1 << 62,
)
_FLOATS = (0.0, -1.0, 0.5, 2.0, 1e-300, 1e300, "NaN", "Infinity", "-Infinity")
_DTYPES = (1, 2, 4, 5, 6, 7, 8, 10, 12, 13)
_WORDS = ("same", "valid", "constant", "reflect", "replicate", "circular", "none", "tanh")


class Mutation:
    """Changes a few places of a program, by a seed."""

    def __init__(self, document: Document, weights: Document, seed: int) -> None:
        self._random = random.Random(seed)
        self._graph = document["graph_module"]["graph"]
        self._weights = weights["config"]
        self.words: list[str] = []

    def apply(self) -> str:
        """One to three changes; says which."""
        kinds = (
            *(self._number,) * 5,
            *(self._argument,) * 3,
            *(self._operation, self._names, self._weight, self._insert, self._leave_out),
        )
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            self._random.choice(kinds)()
        return "; ".join(self.words)

    def _node(self) -> Document:
        return self._random.choice(self._graph["nodes"])  # type: ignore[no-any-return]

    def _pick(self, values: Any) -> Any:
        return self._random.choice(tuple(values))

    def _leaves(self) -> Iterator[tuple[Any, Any, str]]:
        """Where numbers and words stand: holder, key, kind."""
        for node in self._graph["nodes"]:
            for argument in node["inputs"]:
                for kind, value in argument["arg"].items():
                    if isinstance(value, list) and value and not isinstance(value[0], dict):
                        yield from ((value, place, kind[:-1]) for place in range(len(value)))
                    elif not isinstance(value, (list, dict)):
                        yield argument["arg"], kind, kind

    def _number(self) -> None:
        holder, key, kind = self._pick(self._leaves())
        choice = {
            "as_int": lambda: self._pick((*_NUMBERS, holder[key] + self._pick((-1, 1, 2)))),
            "as_float": lambda: self._pick(_FLOATS),
            "as_bool": lambda: not holder[key],
            "as_string": lambda: self._pick(_WORDS),
            "as_scalar_type": lambda: self._pick(_DTYPES),
        }.get(kind)
        if choice is not None:
            before, holder[key] = holder[key], choice()
            self.words.append(f"{kind} {before} -> {holder[key]}")

    def _argument(self) -> None:
        node = self._node()
        if not node["inputs"]:
            return
        argument = self._pick(node["inputs"])
        kind = next(iter(argument["arg"]))
        if kind == "as_tensor":
            argument["arg"] = {kind: {"name": self._pick(self._values(node))}}
        elif kind == "as_ints":
            self._random.shuffle(argument["arg"][kind])
            if self._random.random() < 0.5:
                argument["arg"][kind] = argument["arg"][kind][: self._pick(range(3))]
        else:
            argument["arg"] = self._pick(
                ({"as_none": True}, {"as_int": self._pick(_NUMBERS)}, {"as_bool": True})
            )
        self.words.append(f"{node['target']}: {argument}")

    def _values(self, node: Document) -> list[str]:
        """Names of what is made before `node`."""
        names = [i["as_tensor"]["name"] for i in self._graph["inputs"]]
        for other in self._graph["nodes"]:
            if other is node:
                break
            names += [o["as_tensor"]["name"] for o in other["outputs"] if "as_tensor" in o]
        return names

    def _operation(self) -> None:
        node = self._node()
        old = node["target"]
        listed = sorted(_ATEN)
        name = self._pick(listed)
        packet = getattr(torch.ops.aten, name)
        node["target"] = f"torch.ops.aten.{name}.{self._pick(packet.overloads())}"
        self._rename(node)
        self.words.append(f"{old} -> {node['target']}")

    def _rename(self, node: Document) -> None:
        """The given arguments under the names of the new signature, in order."""
        _, _, _, name, overload = node["target"].split(".")
        known = [a.name for a in getattr(getattr(torch.ops.aten, name), overload)._schema.arguments]
        for argument, wanted in zip(node["inputs"], known, strict=False):
            argument["name"] = wanted
        del node["inputs"][len(known) :]

    def _names(self) -> None:
        node = self._node()
        if len(node["inputs"]) > 1:
            first, second = self._random.sample(node["inputs"], 2)
            first["arg"], second["arg"] = second["arg"], first["arg"]
            self.words.append(f"{node['target']}: {first['name']} and {second['name']} exchanged")

    def _weight(self) -> None:
        if not self._weights:
            return
        name = self._pick(sorted(self._weights))
        meta = self._weights[name]["tensor_meta"]
        key = self._pick(("sizes", "strides", "dtype", "storage_offset"))
        if key == "dtype":
            meta[key] = self._pick(_DTYPES)
        elif key == "storage_offset":
            meta[key] = {"as_int": self._pick(_NUMBERS)}
        elif meta[key]:
            place = self._pick(range(len(meta[key])))
            meta[key][place] = {"as_int": self._pick((0, 1, 2, 3, 1 << 47))}
        if self._random.random() < 0.3:
            meta["sizes"], meta["strides"] = meta["sizes"][:1], meta["strides"][-1:]
        self.words.append(f"weight {name}: {key}")

    def _insert(self) -> None:
        """A call of any listed operation with what its signature asks for, read by what follows."""
        node = self._node()
        place = self._graph["nodes"].index(node)
        name = self._pick(sorted(_ATEN))
        packet = getattr(torch.ops.aten, name)
        overload = self._pick(packet.overloads())
        schema = getattr(packet, overload)._schema
        values = self._values(node)
        inputs = [
            {"name": a.name, "arg": self._made_up(str(a.type), values), "kind": 1}
            for a in schema.arguments
            if not a.has_default_value() or self._random.random() < 0.3
        ]
        outputs = [
            {"as_tensor": {"name": f"inserted_{place}_{k}"}} for k in range(len(schema.returns))
        ]
        target = f"torch.ops.aten.{name}.{overload}"
        self._graph["nodes"].insert(place, {"target": target, "inputs": inputs, "outputs": outputs})
        for argument in node["inputs"]:
            if "as_tensor" in argument["arg"] and outputs:
                argument["arg"] = outputs[0]
                break
        self.words.append(f"{target} before {node['target']}")

    def _made_up(self, kind: str, values: list[str]) -> Document:
        if "List[Tensor" in kind or "List[Optional[Tensor" in kind:
            return {"as_tensors": [{"name": self._pick(values)} for _ in range(self._pick((1, 2)))]}
        if "Tensor" in kind:
            return {"as_tensor": {"name": self._pick(values)}}
        if "List[int" in kind:
            return {"as_ints": [self._pick((0, 1, 2, 3, -1)) for _ in range(self._pick((1, 2, 3)))]}
        if "List[float" in kind:
            return {"as_floats": [self._pick(_FLOATS)] * 2}
        if "float" in kind:
            return {"as_float": self._pick(_FLOATS)}
        if "bool" in kind:
            return {"as_bool": self._random.random() < 0.5}
        if "str" in kind:
            return {"as_string": self._pick(_WORDS)}
        return {"as_int": self._pick((0, 1, 2, 3, -1, 5))}

    def _leave_out(self) -> None:
        node = self._node()
        if node["inputs"]:
            gone = self._pick(node["inputs"])
            node["inputs"].remove(gone)
            self.words.append(f"{node['target']}: without {gone['name']}")


# -- trying ---------------------------------------------------------------------------------------

_HELD: list[Any] = []


def guarded(tensor: Tensor) -> Tensor:
    """A copy that ends where a page begins that may not be touched."""
    data = tensor.contiguous()
    num_bytes = data.numel() * data.element_size()
    page = mmap.PAGESIZE
    total = -(-max(num_bytes, 1) // page) * page
    area = mmap.mmap(-1, total + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + total), page, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    _HELD.append(area)
    whole = torch.frombuffer(area, dtype=torch.uint8, count=total)
    end = whole[total - num_bytes :]
    end.copy_(data.flatten().view(torch.uint8))
    return end.view(data.dtype).view(data.shape)


class Undeclared(DryRun):
    """Leaves out the comparison with what the program declares, of which a mutant knows nothing."""

    def _check_declared(self, name: str, tensor: Tensor, where: str) -> None:
        del name, tensor, where


def attempt(path: Path, rows: Tensor) -> str:
    """Loads one program and computes; what came of it, in a word."""
    try:
        with ProgramArchive(path, path=path.name) as archive:
            program = read_program(archive)
            run = Undeclared(program, memory_bytes=MEMORY_BYTES)
            run.run([(tuple(rows.shape), rows.dtype)] * len(program.inputs))
            read = archive.read_storage
            archive.read_storage = lambda name: guarded(read(name))  # type: ignore[method-assign]
            module = build_module(program, archive)
    except CutsetError:
        return "refused"
    stage = LoadedProgram(module, program, run)
    weights = [weight.detach().clone() for weight in module.parameters()]
    given = guarded(rows)
    try:
        answers = [stage((given,) * len(program.inputs)) for _ in range(2)]
    except (RuntimeError, ValueError, TypeError, IndexError, MemoryError, OverflowError):
        return "failed" if same((given,), (rows,)) else "INPUT"
    if not same((given,), (rows,)):
        return "INPUT"
    if not same(weights, [weight.detach() for weight in module.parameters()]):
        return "WEIGHTS"
    return "computed" if same(*answers) else "STATE"


def same(first: Any, second: Any) -> bool:
    """Bit for bit, NaN included."""
    pairs = zip(first, second, strict=True)
    return all(a.shape == b.shape and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.flatten().view(torch.uint8) if plain.numel() else plain


def run_batch(source: Path, seeds: range) -> None:
    """Tries mutants of one program, a line before and after each: a death has a name."""
    torch.set_num_threads(1)
    gc.freeze()
    gc.set_threshold(10_000)  # what was imported is no garbage, and a mutant leaves little
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).partition("/")[0]
    rows = torch.linspace(-1, 1, 4096)[: ROWS * _length(source)].reshape(ROWS, *_shape(source))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.pt2"
        for seed in seeds:
            document = json.loads(members[f"{root}/{MODEL_JSON}"])
            weights = json.loads(members[f"{root}/{WEIGHTS_JSON}"])
            words = Mutation(document, weights, seed).apply()
            changed = members | {
                f"{root}/{MODEL_JSON}": json.dumps(document).encode(),
                f"{root}/{WEIGHTS_JSON}": json.dumps(weights).encode(),
            }
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in changed.items():
                    archive.writestr(name, data)
            print(f"{seed} {words}", flush=True)
            _HELD.clear()
            print(f"= {attempt(path, rows)}", flush=True)


def _shape(source: Path) -> tuple[int, ...]:
    return SOURCES[source.stem][1]


def _length(source: Path) -> int:
    return int(torch.Size(_shape(source)).numel())


def try_mutants(source: Path, seeds: range) -> dict[str, list[str]]:
    """Runs a batch in a child process.

    Returns:
        What came of the mutants: descriptions by ``refused``, ``failed`` (an error of torch's while
        it computed), ``computed``, ``INPUT``, ``WEIGHTS``, ``STATE``, ``KILLED``. A child that dies
        or hangs takes one mutant with it; the rest is tried in another.
    """
    found: dict[str, list[str]] = {}
    first = seeds.start
    while first < seeds.stop:
        command = [sys.executable, __file__, str(source), str(first), str(seeds.stop)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=BATCH_TIMEOUT_S, check=False
            )
            lines, end = (
                done.stdout.splitlines(),
                f"exit code {done.returncode}{done.stderr[-300:]}",
            )
        except subprocess.TimeoutExpired as late:
            lines, end = (late.stdout or b"").decode().splitlines(), "endless"
        pairs = list(zip(lines[::2], lines[1::2], strict=False))
        for words, outcome in pairs:
            found.setdefault(outcome.removeprefix("= "), []).append(f"{source.stem} {words}")
        first += len(pairs)
        if first < seeds.stop:
            last = lines[-1] if len(lines) % 2 else "before the first"
            found.setdefault("KILLED", []).append(f"{source.stem} {last}: {end}")
            first += 1
    return found


def main() -> None:
    """Tries mutants of every source and counts what came of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    each = -(-chosen.count // len(SOURCES))
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in SOURCES:
            seeds = range(chosen.seed, chosen.seed + each)
            found = try_mutants(write_source(name, Path(folder)), seeds)
            print(name, {outcome: len(words) for outcome, words in found.items()}, flush=True)
            for outcome in set(found) - {"refused", "failed", "computed"}:
                bad += len(found[outcome])
                print(*(f"{outcome}: {words}" for words in found[outcome]), sep="\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    if len(sys.argv) == 4 and not sys.argv[1].startswith("-"):
        run_batch(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
