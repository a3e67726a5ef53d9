"""Shapes and dtypes that the most frequent operations return, without asking torch.

torch's own answers on its ``meta`` device are written in Python for most operations: 0.2 ms a call,
and the first one imports torch's compiler, a second and 150 MB in every worker. So what ordinary
models are made of is worked out here, for the plain case (floating point, no promotion); for
anything else the functions return None, and torch is asked.

Strides are not worked out: results lie in row-major order here. Nothing in a dry run depends on
them; a view that the real strides do not allow is an error of torch's when it is computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeGuard

import torch

from cutset.bundles.reading.torch.argument_checks import CallArguments

Made: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...] | None"


def results_of(function: torch._ops.OpOverload, arguments: CallArguments) -> Made:
    """What `function` returns, as tensors of the ``meta`` device; None if it is not known here.

    Args:
        function: the operation.
        arguments: all that its signature has, by name, after its rule was satisfied.
    """
    work_out = _RESULTS.get(f"{function._opname}.{function._overloadname}")
    return work_out(arguments) if work_out else None


def _like(
    tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype or tensor.dtype, device=tensor.device)


def _broadcast(*shapes: Sequence[int]) -> tuple[int, ...] | None:
    """The common shape, or None if there is none."""
    longest = max(map(len, shapes))
    padded = [(1,) * (longest - len(shape)) + tuple(shape) for shape in shapes]
    result = []
    for lengths in zip(*padded, strict=True):
        found = set(lengths) - {1}
        if len(found) > 1:
            return None
        result.append(found.pop() if found else 1)
    return tuple(result)


def _ints(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values


def _is_plain(tensor: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point()


def _same(name: str) -> Callable[[CallArguments], Made]:
    """A result of the shape and dtype of one argument, where this is of floating point."""

    def work_out(arguments: CallArguments) -> Made:
        tensor = arguments[name]
        if not _is_plain(tensor) or arguments.get("dtype") is not None:
            return None
        others = ("min", "max", "exponent", "value", "lambd", "alpha", "negative_slope")
        if any(isinstance(arguments.get(other), (torch.Tensor, complex)) for other in others):
            return None
        return _like(tensor, tensor.shape)

    return work_out


def _of_two(arguments: CallArguments) -> Made:
    """Arithmetic on two tensors, or a tensor and a number."""
    first, second = arguments["self"], arguments["other"]
    if not _is_plain(first) or isinstance(second, complex):
        return None
    if isinstance(second, torch.Tensor):
        shape = _broadcast(first.shape, second.shape)
        if shape is None or second.dtype != first.dtype:
            return None
        return _like(first, shape)
    return _like(first, first.shape)


def _softmax(arguments: CallArguments) -> Made:
    tensor = arguments["self"]
    if not -tensor.dim() <= arguments["dim"] < tensor.dim():
        return None
    return _same("self")(arguments)


def _linear(arguments: CallArguments) -> Made:
    tensor, weight, bias = (arguments[name] for name in ("input", "weight", "bias"))
    if not _is_plain(tensor) or tensor.dim() < 1 or weight.dim() != 2:
        return None
    fits = tensor.shape[-1] == weight.shape[1] and weight.dtype == tensor.dtype
    if not fits or (
        bias is not None and (list(bias.shape) != [weight.shape[0]] or bias.dtype != tensor.dtype)
    ):
        return None
    return _like(tensor, (*tensor.shape[:-1], weight.shape[0]))


def _matrix_product(arguments: CallArguments) -> Made:
    first = arguments["self"]
    second = arguments["other" if "other" in arguments else "mat2"]
    if not _is_plain(first) or first.dtype != second.dtype or min(first.dim(), second.dim()) < 2:
        return None
    outer = _broadcast(first.shape[:-2], second.shape[:-2])
    if outer is None or first.shape[-1] != second.shape[-2]:
        return None
    return _like(first, (*outer, first.shape[-2], second.shape[-1]))


def _batch_product(arguments: CallArguments) -> Made:
    first, second = arguments["self"], arguments["mat2"]
    if first.dim() != 3 or second.dim() != 3 or first.shape[0] != second.shape[0]:
        return None
    return _matrix_product(arguments)


def _convolution(arguments: CallArguments) -> Made:
    tensor, weight = arguments["input"], arguments["weight"]
    spatial = weight.dim() - 2
    if not _is_plain(tensor) or arguments.get("transposed", False):
        return None
    strides, dilations = (_ints(arguments[name], spatial) for name in ("stride", "dilation"))
    reach = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
    padding = arguments["padding"]
    if padding == "same":
        added = reach
    else:
        numbers = [0] * spatial if padding == "valid" else _ints(padding, spatial)
        added = [2 * number for number in numbers]
    lengths = [
        (length + more - span - 1) // stride + 1
        for length, more, span, stride in zip(
            tensor.shape[-spatial:], added, reach, strides, strict=True
        )
    ]
    if min(lengths) < 1:
        return None
    return _like(tensor, (*tensor.shape[: -spatial - 1], weight.shape[0], *lengths))


def _pooling(arguments: CallArguments) -> Made:
    tensor, kernel = arguments["self"], arguments["kernel_size"]
    spatial = 2
    if not _is_plain(tensor) or arguments["ceil_mode"]:
        return None
    kernels, paddings = _ints(kernel, spatial), _ints(arguments["padding"], spatial)
    strides = _ints(arguments["stride"], spatial) or kernels
    dilations = _ints(arguments.get("dilation", 1), spatial)
    lengths = [
        (length + 2 * padding - dilation * (size - 1) - 1) // stride + 1
        for length, size, stride, padding, dilation in zip(
            tensor.shape[-spatial:], kernels, strides, paddings, dilations, strict=True
        )
    ]
    if min(lengths) < 1:
        return None
    return _like(tensor, (*tensor.shape[:-spatial], *lengths))


def _adaptive_pooling(arguments: CallArguments) -> Made:
    tensor = arguments["self"]
    if not _is_plain(tensor):
        return None
    return _like(tensor, (*tensor.shape[:-2], *_ints(arguments["output_size"], 2)))


def _concatenation(arguments: CallArguments) -> Made:
    tensors, dim = arguments["tensors"], arguments["dim"]
    first = tensors[0] if tensors else None
    if not _is_plain(first) or not -first.dim() <= dim < first.dim():
        return None
    dim %= first.dim()
    shapes = [list(tensor.shape) for tensor in tensors]
    lengths = [shape.pop(dim) if len(shape) == first.dim() else 0 for shape in shapes]
    if any(shape != shapes[0] for shape in shapes) or any(t.dtype != first.dtype for t in tensors):
        return None
    shape = list(first.shape)
    shape[dim] = sum(lengths)
    return _like(first, shape)


def _stack(arguments: CallArguments) -> Made:
    tensors, dim = arguments["tensors"], arguments["dim"]
    first = tensors[0] if tensors else None
    if not _is_plain(first) or not -first.dim() - 1 <= dim <= first.dim():
        return None
    if any(t.shape != first.shape or t.dtype != first.dtype for t in tensors):
        return None
    shape = list(first.shape)
    shape.insert(dim % (first.dim() + 1), len(tensors))
    return _like(first, shape)


def _reduction(arguments: CallArguments) -> Made:
    tensor, dims = arguments["self"], arguments["dim"]
    if not _is_plain(tensor) or arguments["dtype"] is not None or not dims:
        return None
    if not all(-tensor.dim() <= dim < tensor.dim() for dim in dims):
        return None
    gone = {dim % tensor.dim() for dim in dims}
    if len(gone) != len(dims):
        return None
    keep = arguments["keepdim"]
    lengths = [1 if d in gone else n for d, n in enumerate(tensor.shape) if keep or d not in gone]
    return _like(tensor, lengths)


def _attention(arguments: CallArguments) -> Made:
    query, value = arguments["query"], arguments["value"]
    return _like(query, (*query.shape[:-1], value.shape[-1])) if _is_plain(query) else None


def _recurrence(arguments: CallArguments) -> Made:
    tensor = arguments["input"]
    states = arguments["hx"] if isinstance(arguments["hx"], list) else [arguments["hx"]]
    size = states[0].shape[2] * (2 if arguments["bidirectional"] else 1)
    results = [_like(tensor, (*tensor.shape[:2], size))]
    return (*results, *(_like(state, state.shape) for state in states))


def _embedding(arguments: CallArguments) -> Made:
    table, indices = arguments["weight"], arguments["indices"]
    return _like(table, (*indices.shape, table.shape[1]))


def _index(arguments: CallArguments) -> Made:
    """One block of indices of whole numbers; where there are several, torch is asked."""
    tensor, indices = arguments["self"], list(arguments["indices"])
    places = [place for place, index in enumerate(indices) if index is not None]
    given = [indices[place] for place in places]
    if not given or any(index.dtype != torch.int64 for index in given):
        return None
    shape = _broadcast(*(index.shape for index in given))
    is_block = places == list(range(places[0], places[-1] + 1))
    if shape is None or not is_block or len(indices) > tensor.dim():
        return None
    return _like(tensor, (*tensor.shape[: places[0]], *shape, *tensor.shape[places[-1] + 1 :]))


def _upsampling(arguments: CallArguments) -> Made:
    tensor, sizes = arguments["input"], arguments["output_size"]
    if not _is_plain(tensor):
        return None
    if sizes is None:
        pairs = zip(tensor.shape[2:], arguments["scale_factors"], strict=True)
        sizes = [math.floor(length * factor) for length, factor in pairs]
    return _like(tensor, (*tensor.shape[:2], *sizes))


def _padding(arguments: CallArguments) -> Made:
    tensor, amounts = arguments["self"], arguments["pad"]
    shape = list(tensor.shape)
    for place, (before, behind) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        shape[-1 - place] += before + behind
    return _like(tensor, shape) if _is_plain(tensor) and min(shape, default=1) >= 1 else None


def _rolled(arguments: CallArguments) -> Made:
    tensor, shifts, dims = (arguments[name] for name in ("self", "shifts", "dims"))
    if len(shifts) != len(dims) or not all(-tensor.dim() <= d < tensor.dim() for d in dims):
        return None
    return _like(tensor, tensor.shape)


def _view(arguments: CallArguments) -> Made:
    """A view by its shape alone: which strides the tensor really has is not known here."""
    return torch.ops.aten.reshape.default(arguments["self"], arguments["size"])  # type: ignore[no-any-return]


_SAME_SELF = (
    *("abs", "clone", "cos", "elu", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "log", "mish", "neg", "reciprocal", "relu", "relu6", "rsqrt", "sigmoid"),
    *("silu", "sin", "softplus", "sqrt", "square", "tanh", "clamp", "clamp_min"),
)

_RESULTS: dict[str, Callable[[CallArguments], Made]] = {
    **{f"{name}.default": _same("self") for name in _SAME_SELF},
    "pow.Tensor_Scalar": _same("self"),
    "masked_fill.Scalar": lambda a: (
        _same("self")(a)
        if _broadcast(a["self"].shape, a["mask"].shape) == a["self"].shape
        else None
    ),
    **{
        f"{name}.default": _same("input")
        for name in ("batch_norm", "instance_norm", "group_norm", "layer_norm")
    },
    **{f"{name}.int": _softmax for name in ("softmax", "log_softmax")},
    **{
        f"{name}.{kind}": _of_two
        for name, kind in itertools.product(("add", "sub", "mul", "div"), ("Tensor", "Scalar"))
    },
    "rsub.Scalar": _of_two,
    "linear.default": _linear,
    **dict.fromkeys(("matmul.default",), _matrix_product),
    "bmm.default": _batch_product,
    **{f"conv{n}d.{kind}": _convolution for n in (1, 2, 3) for kind in ("default", "padding")},
    "convolution.default": _convolution,
    **{f"{kind}_pool2d.default": _pooling for kind in ("avg", "max")},
    "adaptive_avg_pool2d.default": _adaptive_pooling,
    "cat.default": _concatenation,
    "stack.default": _stack,
    **dict.fromkeys(("mean.dim", "sum.dim_IntList"), _reduction),
    "scaled_dot_product_attention.default": _attention,
    **{f"{name}.input": _recurrence for name in ("lstm", "gru", "rnn_relu", "rnn_tanh")},
    "embedding.default": _embedding,
    "index.Tensor": _index,
    **{
        f"upsample_{kind}.vec": _upsampling
        for kind in ("nearest1d", "nearest2d", "bilinear2d", "bicubic2d", "linear1d")
    },
    "pad.default": _padding,
    "constant_pad_nd.default": _padding,
    "roll.default": _rolled,
    "view.default": _view,
    "_unsafe_view.default": _view,
}
