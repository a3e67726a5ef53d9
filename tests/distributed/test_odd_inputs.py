"""Whatever is given as rows gives the model's numbers or is refused in words, over both links."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cutset.engines.local import LocalEngine
from cutset.errors import ContractViolation, EngineError
from cutset.runtime.session import Session, open_session

from .bundles import write_bundle

_ROWS = 5  # two micro-batches of 3


class _Doubling(nn.Module):
    """An output for each dtype that tells exactly what came in."""

    def forward(
        self,
        x: torch.Tensor,
        z: torch.Tensor,
        n: torch.Tensor,
        flag: torch.Tensor,
        h: torch.Tensor,
        none: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        return {
            "x": x * 2,
            "z": z * 2,
            "imag": z.imag,
            "n": n * 2,
            "flag": torch.logical_not(flag),
            "h": h.to(torch.float32),
            "none": none * 2,
        }


def _inputs(num_rows: int = _ROWS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    return {
        "x": torch.randn(num_rows, 4, 4, generator=generator),
        "z": torch.randn(num_rows, 4, 4, dtype=torch.complex64, generator=generator),
        "n": torch.arange(num_rows),
        "flag": torch.arange(num_rows) % 2 == 0,
        "h": torch.randn(num_rows, 2, generator=generator).bfloat16(),
        "none": torch.zeros(num_rows, 0),
    }


@pytest.fixture(scope="module")
def odd_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "odd.cutset"
    return write_bundle(_Doubling().eval(), tuple(_inputs(2).values()), (), folder, micro_batch=3)


@pytest.fixture(scope="module", params=["within a host", "between hosts"])
def session(request: pytest.FixtureRequest, odd_bundle: Path) -> Iterator[Session]:
    engine = LocalEngine(("cpu",), num_threads=1, shares_memory=request.param == "within a host")
    with open_session(odd_bundle, backend="torch", engine=engine) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_process_survives() -> None:
    """This module keeps a session open from test to test."""


def _check(session: Session, given: dict[str, Any], meant: dict[str, torch.Tensor]) -> None:
    """What comes back is what the model makes of `meant`, without gradient."""
    answer = session.submit(*given.values()).result(60)
    expected = _Doubling()(*(each.detach() for each in meant.values()))
    for name, tensor in expected.items():
        ours = torch.as_tensor(answer[name])
        assert not ours.requires_grad
        assert type(ours) is torch.Tensor
        assert torch.equal(ours, tensor.resolve_conj().resolve_neg()), name


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, every second place of a wider tensor."""
    return torch.stack((tensor, tensor + 1), dim=-1)[..., 0]


class _Tagged(torch.Tensor):
    """A subclass that insists on itself."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


_RESOLVED: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "conjugated": ("z", lambda z: z.conj()),
    "mH": ("z", lambda z: z.mH),
    "conjugated, every second": ("z", lambda z: _wide(z).conj()),
    "negated complex": ("z", torch._neg_view),
    "imag of conj": ("x", lambda x: torch.complex(x, x + 1).conj().imag),
    "neg view": ("x", torch._neg_view),
    "real part": ("x", lambda x: torch.complex(x, x + 1).real),
    "transposed": ("x", lambda x: x.transpose(1, 2)),
    "batch last in memory": ("x", lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1)),
    "every second": ("x", _wide),
    "reversed": ("x", lambda x: x.flip(0)),
    "expanded": ("x", lambda x: x[:1, :1, :1].expand(_ROWS, 4, 4)),
    "overlapping": ("x", lambda x: x.flatten().as_strided((_ROWS, 4, 4), (3, 2, 1))),
    "an offset into its memory": ("x", lambda x: torch.cat((x[:1], x))[1:]),
    "requires grad": ("x", lambda x: x.clone().requires_grad_()),
    "not a leaf": ("x", lambda x: x.clone().requires_grad_() * 1),
    "parameter": ("x", nn.Parameter),
    "buffer": ("x", nn.Buffer),
    "subclass": ("x", lambda x: x.as_subclass(_Tagged)),  # type: ignore[arg-type]
    "in inference mode": ("x", torch.inference_mode()(lambda x: x * 3)),
    "negated integers": ("n", torch._neg_view),
    "bfloat16, every second": ("h", _wide),
    "bool, expanded": ("flag", lambda flag: flag[:1].expand(_ROWS)),
    "no columns, odd strides": ("none", lambda none: none.as_strided((_ROWS, 0), (7, 9))),
}


@pytest.mark.parametrize("case", _RESOLVED)
def test_tensors_of_every_make_are_the_numbers_that_they_show(session: Session, case: str) -> None:
    name, turn = _RESOLVED[case]
    inputs = _inputs()
    odd = turn(inputs[name])
    meant = odd.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg().clone()
    _check(session, {**inputs, name: odd}, {**inputs, name: meant})


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _field(array: np.ndarray) -> np.ndarray:
    """A field of records of five bytes: strides that no tensor has."""
    records = np.zeros(array.shape, dtype=[("byte", "i1"), ("number", array.dtype)])
    records["number"] = array
    return records["number"]


def _misaligned(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"?" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


_ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda x: x,
    "big endian": lambda x: x.astype(">f4"),
    "big endian, reversed": lambda x: x.astype(">f4")[::-1],
    "reversed rows": lambda x: x[::-1],
    "reversed columns": lambda x: x[:, :, ::-1],
    "Fortran order": np.asfortranarray,
    "Fortran order, read-only": lambda x: _read_only(np.asfortranarray(x)),
    "every second": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "broadcast": lambda x: np.broadcast_to(x[:, :1, :1], x.shape),
    "read-only": lambda x: _read_only(x.copy()),
    "field of records": _field,
    "misaligned": _misaligned,
    "matrix of one row each": lambda x: x.view(type("_Named", (np.ndarray,), {})),
}


@pytest.mark.parametrize("num_rows", [1, _ROWS])
@pytest.mark.parametrize("case", _ARRAYS)
def test_arrays_of_every_make_are_the_numbers_that_they_show(
    session: Session, case: str, num_rows: int
) -> None:
    inputs = _inputs(num_rows)
    odd = _ARRAYS[case](inputs["x"].numpy())
    meant = torch.from_numpy(np.array(odd, dtype=np.float32, order="C"))
    _check(session, {**inputs, "x": odd}, {**inputs, "x": meant})


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_file_mapped_into_memory_is_an_array(session: Session, tmp_path: Path, mode: Any) -> None:
    inputs = _inputs()
    inputs["x"].numpy().tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", dtype=np.float32, mode=mode, shape=(_ROWS, 4, 4))
    _check(session, {**inputs, "x": mapped}, inputs)


def test_foreign_byte_order_of_complex_numbers_is_turned(session: Session) -> None:
    inputs = _inputs()
    _check(session, {**inputs, "z": inputs["z"].numpy().astype(">c8")}, inputs)


def test_bfloat16_may_be_an_array_too(session: Session) -> None:
    inputs = _inputs()
    halves = inputs["h"].float().numpy().astype(ml_dtypes.bfloat16)
    _check(session, {**inputs, "h": halves}, inputs)


@pytest.mark.parametrize("num_rows", [1, 3, _ROWS])
def test_answers_are_the_callers_own(session: Session, num_rows: int) -> None:
    inputs = _inputs(num_rows)
    given = {name: tensor.numpy() for name, tensor in inputs.items() if name != "h"}
    given["h"] = inputs["h"].float().numpy().astype(ml_dtypes.bfloat16)
    for values in (tuple(inputs.values()), tuple(given[name] for name in inputs)):
        kind = type(values[0])
        first, second = session.run(*values), session.run(*values)
        assert {type(answer) for answer in first.values()} == {kind}
        first["x"][...] = 7  # writable, and nobody else's
        assert bool((second["x"] == values[0] * 2).all())
        for _ in range(2 * session.window):
            session.run(values[0] * 0, *values[1:])
        assert bool((first["x"] == 7).all())
        assert bool((second["x"] == values[0] * 2).all())


def _given_back(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x.untyped_storage().resize_(8)
    return x


def _fake(x: torch.Tensor) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(x.shape)


def _quantised(x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but there
        return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)


def _nested(layout: torch.layout) -> Callable[[torch.Tensor], torch.Tensor]:
    def make(x: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a prototype
            return torch.nested.nested_tensor(list(x), layout=layout)

    return make


def _sparse_rows(x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in beta state
        return x[0].to_sparse_csr()


def _masked(x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype
        return torch.masked.masked_tensor(x, x > 0)


class _Capsule:
    """What other libraries' arrays are: something that can be exported."""

    def __init__(self, x: torch.Tensor) -> None:
        self._x = x

    def __dlpack__(self, **options: Any) -> object:
        return self._x.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._x.__dlpack_device__()


_REFUSED: dict[str, tuple[Callable[[torch.Tensor], Any], type[Exception], str]] = {
    "sparse coo": (lambda x: x.to_sparse(), ContractViolation, "sparse_coo; give to_dense"),
    "sparse csr": (_sparse_rows, ContractViolation, "sparse_csr; give to_dense"),
    "mkldnn": (lambda x: x.to_mkldnn(), ContractViolation, "_mkldnn; give to_dense"),
    "quantised": (_quantised, ContractViolation, "quint8.*; give dequantize"),
    "nested": (_nested(torch.strided), ContractViolation, "nested tensor"),
    "jagged": (_nested(torch.jagged), ContractViolation, "NestedTensor"),
    "meta": (lambda x: x.to("meta"), ContractViolation, "meta, which has no numbers"),
    "fake": (_fake, ContractViolation, "a FakeTensor"),
    "masked": (_masked, ContractViolation, "a MaskedTensor"),
    "given back": (_given_back, ContractViolation, "memory was given back"),
    "float8": (lambda x: x.to(torch.float8_e5m2), ContractViolation, "convert it to float32"),
    "bfloat16": (lambda x: x.bfloat16(), ContractViolation, "convert it to float32"),
    "float64": (lambda x: x.numpy().astype("f8"), ContractViolation, "convert it to float32"),
    "big endian f8": (lambda x: x.numpy().astype(">f8"), ContractViolation, "convert it"),
    "unsigned": (lambda x: x.numpy().astype("u4"), ContractViolation, "convert it to float32"),
    "long double": (lambda x: x.numpy().astype("g"), ContractViolation, "convert it to float32"),
    "objects": (lambda x: x.numpy().astype("O"), ContractViolation, "dtype object; give"),
    "words": (lambda x: x.numpy().astype("U8"), ContractViolation, "give an array of numbers"),
    "dates": (lambda x: np.zeros(_ROWS, "M8[s]"), ContractViolation, "array of numbers"),
    "records": (lambda x: np.zeros(_ROWS, [("a", "f4")]), ContractViolation, "of numbers"),
    "masked array": (lambda x: np.ma.array(x.numpy()), ContractViolation, "give filled"),
    "0-d": (lambda x: torch.tensor(1.0), ContractViolation, "give it 3 dimensions"),
    "0-d array": (lambda x: np.array(1, "f4"), ContractViolation, "give it 3 dimensions"),
    "no rows": (lambda x: x[:0], EngineError, "has no rows"),
    "other rows": (lambda x: x[:2], ContractViolation, "with 2 rows; give it the promised"),
    "empty rows": (lambda x: x[:, :0], ContractViolation, "promised lengths"),
    "a list": (lambda x: x.tolist(), TypeError, "give a torch.Tensor or a numpy.ndarray"),
    "a number": (lambda x: 1.0, TypeError, "a float came"),
    "a NumPy number": (lambda x: np.float32(1), TypeError, "a float32 came"),
    "nothing": (lambda x: None, TypeError, "a NoneType came"),
    "exportable": (_Capsule, TypeError, "a _Capsule came; give a torch.Tensor"),
    "unread parameter": (lambda x: nn.UninitializedParameter(), EngineError, "no rows"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_has_no_numbers_to_read_is_refused_alone(session: Session, case: str) -> None:
    make, kind, words = _REFUSED[case]
    inputs = _inputs()
    odd = [make(inputs["x"]), *list(inputs.values())[1:]]
    with pytest.raises(kind, match=words):
        session.submit(*odd).result(60)
    with pytest.raises(kind, match=words):
        session.run(*odd)
    (error,) = session.stream([tuple(odd)], return_errors=True)
    assert isinstance(error, kind)
    _check(session, inputs, inputs)
    assert session.epoch == 1


def test_inputs_are_given_one_by_one(session: Session) -> None:
    inputs = _inputs()
    values = tuple(inputs.values())
    for given in (inputs, list(values), values):
        with pytest.raises(TypeError, match="in this order: x, z, n, flag, h, none"):
            session.submit(given).result(60)  # type: ignore[arg-type]
    with pytest.raises(ContractViolation, match=r"6 tensors expected .* 7 came"):
        session.run(*values, values[0])
    with pytest.raises(ContractViolation, match=r"6 tensors expected .* 0 came"):
        session.run()


def test_tensors_inside_of_a_transform_are_refused(session: Session) -> None:
    values = tuple(_inputs().values())
    with pytest.raises(ContractViolation, match=r"inside of torch\.func"):
        torch.func.grad(lambda x: session.run(x, *values[1:])["x"].sum())(values[0])
    with pytest.raises(ContractViolation, match=r"inside of torch\.func"):
        torch.func.vmap(lambda x: session.run(x, *values[1:])["x"])(values[0])


def test_modes_of_the_callers_thread_reach_nobody(session: Session) -> None:
    # A mode makes something else of what torch computes on the thread.
    inputs = _inputs()
    gaps = {**inputs, "x": _wide(inputs["x"])}
    with FakeTensorMode(allow_non_fake_inputs=True):
        odd = session.submit(*gaps.values())
    assert torch.equal(odd.result(60)["x"], inputs["x"] * 2)
    with torch.device("meta"):
        fine = session.submit(*gaps.values())
    assert torch.equal(fine.result(60)["x"], inputs["x"] * 2)
    _check(session, inputs, inputs)
    assert session.epoch == 1
