"""What the arguments of an operation must satisfy before it may be called, even without elements.

Most operations of torch check everything they are given: shapes and dtypes before they compute,
indices while they do. Their rule is that the call goes through in `dry_run`. Here are the
rules of the others: kernels that trust their caller (the statistics of a batch normalisation are
read as far as there are channels, however short they are), that divide by an argument, that keep
state or draw random numbers in training, or that return as many tensors as they are told.

Source: the kernels in ``aten/src/ATen/native`` and what they check, as in torch 2.9 to 2.15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

_MAX_STEP = 1 << 16
"""Largest kernel, stride, padding, dilation or factor."""

_REDUCED = (torch.float16, torch.bfloat16)

CallArguments: TypeAlias = Mapping[str, Any]
Rule: TypeAlias = Callable[[CallArguments], None]


class BrokenRuleError(ValueError):
    """Arguments that an operation must not get; says why."""


def check_arguments(
    function: torch._ops.OpOverload, arguments: CallArguments, *, num_results: int
) -> None:
    """Applies an operation's rule, if it has one beside the dry run.

    Args:
        function: the operation.
        arguments: all that its signature has, by name; tensors may have no elements.
        num_results: how many results the program expects.

    Raises:
        BrokenRuleError: it must not be called with these arguments.
    """
    name = function._opname
    if name in _PARTS:
        _require(
            _PARTS[name](arguments) == num_results,
            f"it does not return {num_results} tensors",
        )
    for rule in RULES.get(name, ()):
        rule(arguments)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenRuleError(otherwise)


def _tensor(arguments: CallArguments, *names: str) -> torch.Tensor:
    """The first of `names` that the operation has; it must hold elements."""
    name = next(name for name in names if name in arguments)
    tensor = arguments[name]
    _require(isinstance(tensor, torch.Tensor), f"{name!r} is no tensor")
    _require(tensor.numel() > 0, f"{name!r} of shape {list(tensor.shape)} has no elements")
    return tensor  # type: ignore[no-any-return]


def _numbers(arguments: CallArguments, name: str, least: int, counts: Sequence[int]) -> list[int]:
    """An argument of one or several whole numbers from `least` on."""
    value = arguments[name]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    _require(len(values) in counts, f"{name!r} has {len(values)} numbers")
    for number in values:
        _require(
            type(number) is int and least <= number <= _MAX_STEP,
            f"{name!r} is {str(number)[:40]}, expected {least} to {_MAX_STEP}",
        )
    return values


def _spread(values: list[int], count: int) -> list[int]:
    return values * count if len(values) == 1 else values


def _same_dtype(arguments: CallArguments, *names: str) -> None:
    tensors = [arguments[name] for name in names if isinstance(arguments[name], torch.Tensor)]
    found = {tensor.dtype for tensor in tensors}
    _require(len(found) == 1, f"{', '.join(names)} are of different dtypes")


def _parameters(
    arguments: CallArguments, names: Sequence[str], tensor: torch.Tensor, shape: Sequence[int]
) -> None:
    """Parameters of a normalisation: as long as what they are applied to, of a dtype it knows."""
    given = [arguments[name] for name in names if arguments.get(name) is not None]
    for name in names:
        parameter = arguments.get(name)
        if parameter is not None:
            _require(
                list(parameter.shape) == list(shape),
                f"{name!r} has shape {list(parameter.shape)}, expected {list(shape)}",
            )
    dtypes = {parameter.dtype for parameter in given}
    _require(
        dtypes <= {tensor.dtype} or (tensor.dtype in _REDUCED and dtypes == {torch.float32}),
        f"{', '.join(names)} are of other dtypes than what they are applied to",
    )


def _is_false(name: str) -> Rule:
    def rule(arguments: CallArguments) -> None:
        _require(
            arguments[name] is False,
            f"{name!r} is {arguments[name]}; a stage computes as in evaluation, without "
            f"random numbers and without a state",
        )

    return rule


# -- normalisation -----------------------------------------------------------------------------

_STATISTICS = ("running_mean", "running_var")


def _statistics(arguments: CallArguments, *, of_input: bool) -> None:
    """Either they are given, or they are the input's own: those given would be changed by these."""
    for name in _STATISTICS:
        _require(
            (arguments[name] is None) is of_input,
            f"{name!r} would be changed with each call" if of_input else f"{name!r} is missing",
        )


def _instance_norm(arguments: CallArguments) -> None:
    tensor = _tensor(arguments, "input")
    _require(tensor.dim() >= 3, "'input' has fewer than three dimensions")
    _statistics(arguments, of_input=arguments["use_input_stats"])
    _parameters(arguments, ("weight", "bias", *_STATISTICS), tensor, [tensor.shape[1]])


def _batch_norm(arguments: CallArguments) -> None:
    tensor = _tensor(arguments, "input")
    _require(tensor.dim() >= 2, "'input' has fewer than two dimensions")
    _require(tensor.is_floating_point(), "'input' is not of floating point")
    _statistics(arguments, of_input=arguments.get("training", False))
    names = ("weight", "bias", *_STATISTICS)
    _parameters(arguments, names, tensor, [tensor.shape[1]])


def _group_norm(arguments: CallArguments) -> None:
    tensor = _tensor(arguments, "input")
    _require(tensor.dim() >= 2, "'input' has fewer than two dimensions")
    (groups,) = _numbers(arguments, "group" if "group" in arguments else "num_groups", 1, (1,))
    _require(tensor.shape[1] % groups == 0, f"{groups} groups do not divide {tensor.shape[1]}")
    if "HxW" in arguments:
        expected = [*tensor.shape[:2], math.prod(tensor.shape[2:])]
        actual = [arguments["N"], arguments["C"], arguments["HxW"]]
        _require(actual == expected, f"N, C, HxW are {actual}, expected {expected}")
    _parameters(arguments, ("weight", "bias"), tensor, [tensor.shape[1]])


def _layer_norm(arguments: CallArguments) -> None:
    tensor = _tensor(arguments, "input")
    shape = list(arguments["normalized_shape"])
    _require(
        0 < len(shape) <= tensor.dim() and list(tensor.shape[-len(shape) :]) == shape,
        f"'normalized_shape' is {shape[:8]}, and 'input' has shape {list(tensor.shape)}",
    )
    _parameters(arguments, ("weight", "bias"), tensor, shape)


def _weight_norm(arguments: CallArguments) -> None:
    v, g, dim = _tensor(arguments, "v"), _tensor(arguments, "g"), arguments["dim"]
    _require(dim in (0, v.dim() - 1), f"'dim' is {dim}, expected the first or the last")
    shape = [length if place == dim else 1 for place, length in enumerate(v.shape)]
    _require(list(g.shape) == shape, f"'g' has shape {list(g.shape)}, expected {shape}")
    _same_dtype(arguments, "v", "g")


# -- convolution, pooling, resampling ------------------------------------------------------------


def _convolution(arguments: CallArguments, *, transposed: bool | None = None) -> None:
    tensor, weight = _tensor(arguments, "input"), _tensor(arguments, "weight")
    if transposed is None:
        transposed = arguments.get("transposed", False)
    spatial = weight.dim() - 2
    _require(
        spatial in (1, 2, 3) and tensor.dim() in (spatial + 1, spatial + 2),
        f"'weight' has {weight.dim()} dimensions, 'input' {tensor.dim()}",
    )
    (groups,) = _numbers(arguments, "groups", 1, (1,))
    channels = tensor.shape[-spatial - 1]
    taken, made = weight.shape[1] * groups, weight.shape[0]
    if transposed:
        taken, made = weight.shape[0], weight.shape[1] * groups
    _require(
        taken == channels and weight.shape[0] % groups == 0,
        f"'input' has {channels} channels, 'weight' takes {taken} in {groups} groups",
    )
    bias = arguments["bias"]
    _require(bias is None or list(bias.shape) == [made], f"'bias' is not of shape [{made}]")
    _same_dtype(arguments, "input", "weight", "bias")
    counts = (1, spatial)
    strides = _spread(_numbers(arguments, "stride", 1, counts), spatial)
    dilations = _spread(_numbers(arguments, "dilation", 1, counts), spatial)
    if isinstance(arguments["padding"], str):
        _require(arguments["padding"] in ("same", "valid"), "'padding' is neither same nor valid")
        return
    paddings = _spread(_numbers(arguments, "padding", 0, counts), spatial)
    if transposed:
        further = _spread(_numbers(arguments, "output_padding", 0, counts), spatial)
        for more, stride, dilation in zip(further, strides, dilations, strict=True):
            _require(more < max(stride, dilation), "'output_padding' is not below the stride")
        return
    for length, kernel, padding, dilation in zip(
        tensor.shape[-spatial:], weight.shape[2:], paddings, dilations, strict=True
    ):
        _require(
            dilation * (kernel - 1) < length + 2 * padding,
            f"a kernel of {kernel}, dilation {dilation}, is larger than {length} + 2 * {padding}",
        )


def _transposed_convolution(arguments: CallArguments) -> None:
    _convolution(arguments, transposed=True)


def _pooling(spatial: int) -> Rule:
    counts = (1, spatial)

    def rule(arguments: CallArguments) -> None:
        tensor = _tensor(arguments, "self")
        _require(
            tensor.dim() in (spatial + 1, spatial + 2), f"'self' has {tensor.dim()} dimensions"
        )
        kernel = _spread(_numbers(arguments, "kernel_size", 1, counts), spatial)
        _numbers(arguments, "stride", 1, (0, *counts))
        paddings = _spread(_numbers(arguments, "padding", 0, counts), spatial)
        for size, padding in zip(kernel, paddings, strict=True):
            _require(2 * padding <= size, f"'padding' {padding} is over half of the kernel {size}")
        if "dilation" in arguments:
            _numbers(arguments, "dilation", 1, counts)
        if arguments.get("divisor_override") is not None:
            _numbers(arguments, "divisor_override", 1, (1,))

    return rule


def _adaptive_pooling(spatial: int) -> Rule:
    def rule(arguments: CallArguments) -> None:
        tensor = _tensor(arguments, "self")
        _require(
            tensor.dim() in (spatial + 1, spatial + 2), f"'self' has {tensor.dim()} dimensions"
        )
        _numbers(arguments, "output_size", 1, (1, spatial))

    return rule


def _unpooling(arguments: CallArguments) -> None:
    # That each index lies within the result, the kernels check themselves.
    tensor, indices = _tensor(arguments, "self"), _tensor(arguments, "indices")
    spatial = len(arguments["output_size"])
    _require(tensor.dim() in (spatial + 1, spatial + 2), f"'self' has {tensor.dim()} dimensions")
    _require(
        indices.shape == tensor.shape and indices.dtype == torch.int64,
        "'indices' are not of the shape of 'self' and of int64",
    )
    _numbers(arguments, "output_size", 1, (spatial,))
    for name, least in (("stride", 1), ("padding", 0)):
        if name in arguments:
            _numbers(arguments, name, least, (spatial,))


def _windows(arguments: CallArguments) -> None:
    """im2col and col2im."""
    _tensor(arguments, "self")
    for name, least in (("kernel_size", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
        _numbers(arguments, name, least, (2,))
    if "output_size" in arguments:
        _numbers(arguments, "output_size", 1, (2,))


def _upsampling(spatial: int) -> Rule:
    """Sizes and factors that say the same: a kernel finds its sources by the factor."""

    def rule(arguments: CallArguments) -> None:
        tensor = _tensor(arguments, "input", "self")
        _require(tensor.dim() == spatial + 2, f"it is given {tensor.dim()} dimensions")
        sizes: list[int] | None = None
        if arguments["output_size"] is not None:
            sizes = _numbers(arguments, "output_size", 1, (spatial,))
        factors = arguments.get("scale_factors")
        if factors is None:
            names = [name for name in arguments if name.startswith("scales")]
            factors = [arguments[name] for name in names] or [None] * spatial
        elif sizes is not None:
            raise BrokenRuleError("both 'output_size' and 'scale_factors' are given")
        _require(len(factors) == spatial, f"it has {len(factors)} factors")
        for place, factor in enumerate(factors):
            if factor is None:
                _require(sizes is not None, "neither a size nor a factor is given")
                continue
            _require(
                isinstance(factor, (int, float)) and 1 / _MAX_STEP <= factor <= _MAX_STEP,
                f"a factor is {str(factor)[:40]}",
            )
            length = tensor.shape[2 + place]
            size = sizes[place] if sizes is not None else math.floor(length * factor)
            _require(
                size >= 1 and abs(length * factor - size) <= 1,
                f"{length} times {factor} is not {size}",
            )

    return rule


def _grid_sampling(arguments: CallArguments) -> None:
    tensor, grid = _tensor(arguments, "input"), _tensor(arguments, "grid")
    spatial = tensor.dim() - 2
    _require(
        spatial in (2, 3)
        and grid.dim() == tensor.dim()
        and grid.shape[0] == tensor.shape[0]
        and grid.shape[-1] == spatial,
        f"'grid' has shape {list(grid.shape)}, 'input' {list(tensor.shape)}",
    )
    _same_dtype(arguments, "input", "grid")
    modes = (0, 1, 2) if spatial == 2 else (0, 1)
    _require(arguments["interpolation_mode"] in modes, "'interpolation_mode' is unknown")
    _require(arguments["padding_mode"] in (0, 1, 2), "'padding_mode' is unknown")


def _padding(arguments: CallArguments) -> None:
    """Any amount of a constant; of the tensor's own elements no more than there are."""
    tensor = _tensor(arguments, "self")
    name = "pad" if "pad" in arguments else "padding"
    amounts = list(arguments[name])
    _require(
        len(amounts) % 2 == 0 and len(amounts) <= 2 * tensor.dim(), f"{name!r} is of wrong length"
    )
    is_constant = arguments.get("mode", "constant" if "value" in arguments else "") == "constant"
    for place, amount in enumerate(amounts):
        length = tensor.shape[-1 - place // 2]
        least, most = (-length, _MAX_STEP) if is_constant else (0, length)
        _require(
            type(amount) is int and least <= amount <= most,
            f"{name!r} is {str(amount)[:40]}, expected {least} to {most}",
        )


def _factor(name: str) -> Rule:
    def rule(arguments: CallArguments) -> None:
        tensor = _tensor(arguments, "self")
        _require(tensor.dim() >= 3, f"'self' has {tensor.dim()} dimensions")
        _numbers(arguments, name, 1, (1,))

    return rule


def _channel_shuffle(arguments: CallArguments) -> None:
    channels = _tensor(arguments, "self").shape[1:2]
    (groups,) = _numbers(arguments, "groups", 1, (1,))
    _require(bool(channels) and channels[0] % groups == 0, f"{groups} groups do not divide")


def _deformed_convolution(arguments: CallArguments) -> None:
    # That an offset is a number, `cutset.bundles.reading.torch.functions` sees to before each call.
    names = ("input", "weight", "offset", "mask", "bias")
    tensor, weight, offset = (_tensor(arguments, name) for name in names[:3])
    _require(
        all(t.dim() == 4 for t in (tensor, weight, offset)), "it is given other than 4 dimensions"
    )
    for name, least in (("stride", 1), ("pad", 0), ("dilation", 1)):
        for side in ("h", "w"):
            _numbers(arguments, f"{name}_{side}", least, (1,))
    for name in ("groups", "offset_groups"):
        _numbers(arguments, name, 1, (1,))
    groups, offset_groups = arguments["groups"], arguments["offset_groups"]
    taps = weight.shape[2] * weight.shape[3] * offset_groups
    _require(
        weight.shape[1] * groups == tensor.shape[1]
        and weight.shape[0] % groups == 0
        and tensor.shape[1] % offset_groups == 0,
        "the channels of 'input' and 'weight' do not meet",
    )
    places = [
        (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for length, kernel, pad, dilation, stride in (
            (
                tensor.shape[2 + i],
                weight.shape[2 + i],
                *(arguments[f"{name}_{side}"] for name in ("pad", "dilation", "stride")),
            )
            for i, side in enumerate("hw")
        )
    ]
    rows = tensor.shape[0]
    _require(list(offset.shape) == [rows, 2 * taps, *places], "'offset' is of another shape")
    if arguments["use_mask"]:
        _require(list(arguments["mask"].shape) == [rows, taps, *places], "'mask' is too")
    _require(list(arguments["bias"].shape) == [weight.shape[0]], "'bias' is of another length")
    _same_dtype(arguments, *names)


# -- attention, recurrence, look-up, Fourier transforms -----------------------------------------


def _attention(arguments: CallArguments, *, is_flash: bool = False) -> None:
    query, key, value = (_tensor(arguments, name) for name in ("query", "key", "value"))
    _same_dtype(arguments, "query", "key", "value")
    dims = query.dim()
    _require(
        key.dim() == value.dim() == dims and (dims == 4 if is_flash else dims >= 2),
        "query, key and value have different numbers of dimensions",
    )
    outer = [list(tensor.shape[:-2]) for tensor in (query, key, value)]
    if arguments.get("enable_gqa"):
        _require(dims >= 3, "heads in groups need a dimension of heads")
        heads = [lengths.pop() for lengths in outer]
        _require(heads[0] % heads[1] == 0 == heads[0] % heads[2], "heads do not divide")
    _require(
        outer[0] == outer[1] == outer[2]
        and query.shape[-1] == key.shape[-1]
        and key.shape[-2] == value.shape[-2]
        and (not is_flash or value.shape[-1] == key.shape[-1]),
        f"query {list(query.shape)}, key {list(key.shape)} and value {list(value.shape)} do not "
        f"fit each other",
    )
    mask = arguments["attn_mask"]
    if mask is not None:
        wanted = (*query.shape[:-1], key.shape[-2])
        lengths = mask.shape
        _require(
            2 <= len(lengths) <= len(wanted)
            and all(n in (1, w) for n, w in zip(lengths[::-1], wanted[::-1], strict=False)),
            f"'attn_mask' has shape {list(lengths)}, expected {list(wanted)}",
        )
        _require(mask.dtype in (torch.bool, query.dtype), f"'attn_mask' is {mask.dtype}")
    _require(arguments["dropout_p"] == 0, "'dropout_p' is not 0")


def _flash_attention(arguments: CallArguments) -> None:
    _attention(arguments, is_flash=True)


def _recurrence(gates: int) -> Rule:
    """All weights of all layers: the kernels of a library read them as long as they should be."""

    def rule(arguments: CallArguments) -> None:
        _require("batch_sizes" not in arguments, "packed sequences are not permitted")
        _is_false("train")(arguments)
        tensor = _tensor(arguments, "input")
        states = arguments["hx"] if isinstance(arguments["hx"], list) else [arguments["hx"]]
        _require(
            tensor.dim() == 3
            and len(states) == (2 if gates == 4 else 1)
            and all(state.dim() == 3 for state in states),
            "'input' and 'hx' are not of three dimensions",
        )
        (layers,) = _numbers(arguments, "num_layers", 1, (1,))
        directions = 2 if arguments["bidirectional"] else 1
        given, hidden = states[0].shape[2], states[-1].shape[2]
        rows = tensor.shape[0 if arguments["batch_first"] else 1]
        for state, size in zip(states, (given, hidden), strict=False):
            _require(
                list(state.shape) == [layers * directions, rows, size] and size > 0,
                f"'hx' has shape {list(state.shape)}",
            )
        expected: list[list[int]] = []
        for layer in range(layers):
            taken = tensor.shape[2] if layer == 0 else given * directions
            for _ in range(directions):
                expected += [[gates * hidden, taken], [gates * hidden, given]]
                expected += [[gates * hidden]] * 2 if arguments["has_biases"] else []
                expected += [[given, hidden]] if given != hidden else []
            _require(len(expected) <= len(arguments["params"]), "weights are missing")
        _require(
            [list(weight.shape) for weight in arguments["params"]] == expected,
            f"the weights are not of the shapes {expected[:8]}",
        )
        dtypes = {t.dtype for t in (tensor, *states, *arguments["params"])}
        _require(dtypes == {tensor.dtype}, "the weights are of different dtypes")

    return rule


def _embedding(arguments: CallArguments) -> None:
    # That each index lies within the table, the kernel checks itself.
    table = _tensor(arguments, "weight")
    _require(table.dim() == 2, "'weight' is no table")
    _require(arguments["indices"].dtype in (torch.int32, torch.int64), "'indices' are no indices")


def _one_hot(arguments: CallArguments) -> None:
    _require(arguments["num_classes"] >= 1, "the number of classes would depend on values")


def _without_sorter(arguments: CallArguments) -> None:
    _require(arguments.get("sorter") is None, "'sorter' is not permitted")


def _fourier(arguments: CallArguments) -> None:
    tensor, dims = _tensor(arguments, "self"), arguments["dim"]
    _require(
        bool(dims)
        and all(type(dim) is int and 0 <= dim < tensor.dim() for dim in dims)
        and len(set(dims)) == len(dims),
        "'dim' names no dimensions, or one twice",
    )
    if "last_dim_size" in arguments:
        length = arguments["last_dim_size"]
        _require(
            length >= 1 and tensor.shape[dims[-1]] == length // 2 + 1,
            f"'last_dim_size' is {length}, and there are {tensor.shape[dims[-1]]} coefficients",
        )


# -- how many tensors come back ------------------------------------------------------------------


def _length_along(arguments: CallArguments, dim: int | None = None) -> int:
    tensor = arguments["self"]
    dim = arguments["dim"] if dim is None else dim
    _require(-tensor.dim() <= dim < tensor.dim(), f"'dim' is {dim} of {tensor.dim()} dimensions")
    return tensor.shape[dim]  # type: ignore[no-any-return]


def _num_split(arguments: CallArguments) -> int:
    sizes = arguments["split_sizes" if "split_sizes" in arguments else "split_size"]
    if isinstance(sizes, (list, tuple)):
        return len(sizes)
    _require(sizes >= 1, f"the parts are of {sizes}")
    return int(max(1, -(-_length_along(arguments) // sizes)))


def _num_chunks(arguments: CallArguments) -> int:
    _require(arguments["chunks"] >= 1, f"'chunks' is {arguments['chunks']}")
    length = _length_along(arguments)
    if length == 0:
        return int(arguments["chunks"])
    size = -(-length // arguments["chunks"])
    return int(-(-length // size))


def _num_unbound(arguments: CallArguments) -> int:
    return _length_along(arguments)


def _num_tensor_split(arguments: CallArguments) -> int:
    if "indices" in arguments:
        return len(arguments["indices"]) + 1
    _require("sections" in arguments, "where it splits would depend on values")
    return int(arguments["sections"])


_PARTS: dict[str, Callable[[CallArguments], int]] = {
    **dict.fromkeys(("split", "split_copy", "unsafe_split"), _num_split),
    **dict.fromkeys(("split_with_sizes", "split_with_sizes_copy"), _num_split),
    "unsafe_split_with_sizes": _num_split,
    **dict.fromkeys(("chunk", "unsafe_chunk"), _num_chunks),
    **dict.fromkeys(("unbind", "unbind_copy"), _num_unbound),
    **dict.fromkeys(("tensor_split", "dsplit", "hsplit", "vsplit"), _num_tensor_split),
}

_NOT_TRAINING = {
    **{name: (_is_false("train"),) for name in ("alpha_dropout", "dropout")},
    **{name: (_is_false("train"),) for name in ("feature_alpha_dropout", "feature_dropout")},
    "rrelu": (_is_false("training"),),
}

RULES: dict[str, tuple[Rule, ...]] = {
    **_NOT_TRAINING,
    **dict.fromkeys(("batch_norm", "native_batch_norm"), (_batch_norm,)),
    "_native_batch_norm_legit_no_training": (_batch_norm,),
    "instance_norm": (_instance_norm,),
    **dict.fromkeys(("group_norm", "native_group_norm"), (_group_norm,)),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm"), (_layer_norm,)),
    "_fused_rms_norm": (_layer_norm,),
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), (_weight_norm,)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), (_convolution,)),
    "_convolution": (_convolution,),
    **{f"conv_transpose{n}d": (_transposed_convolution,) for n in (1, 2, 3)},
    **{f"{kind}_pool{n}d": (_pooling(n),) for n in (1, 2, 3) for kind in ("avg", "max")},
    **{f"max_pool{n}d_with_indices": (_pooling(n),) for n in (1, 2, 3)},
    **{
        f"adaptive_{kind}_pool{n}d": (_adaptive_pooling(n),)
        for n in (1, 2, 3)
        for kind in ("avg", "max")
    },
    **{f"_adaptive_avg_pool{n}d": (_adaptive_pooling(n),) for n in (2, 3)},
    **{f"max_unpool{n}d": (_unpooling,) for n in (2, 3)},
    **dict.fromkeys(("im2col", "col2im"), (_windows,)),
    **{
        name: (_upsampling(int(name.removesuffix("_aa")[-2])),)
        for name in (
            *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
            *("upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"),
            *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
            *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
        )
    },
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), (_grid_sampling,)),
    **dict.fromkeys(("pad", "constant_pad_nd", "_pad_circular"), (_padding,)),
    **{f"{kind}_pad{n}d": (_padding,) for n in (1, 2, 3) for kind in ("reflection", "replication")},
    "pixel_shuffle": (_factor("upscale_factor"),),
    "pixel_unshuffle": (_factor("downscale_factor"),),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), (_channel_shuffle,)),
    "deform_conv2d": (_deformed_convolution,),
    "scaled_dot_product_attention": (_attention,),
    "_scaled_dot_product_attention_math": (_attention,),
    "_scaled_dot_product_flash_attention_for_cpu": (_flash_attention,),
    "lstm": (_recurrence(4),),
    "gru": (_recurrence(3),),
    **dict.fromkeys(("rnn_relu", "rnn_tanh"), (_recurrence(1),)),
    "embedding": (_embedding,),
    "one_hot": (_one_hot,),
    **dict.fromkeys(("searchsorted", "bucketize"), (_without_sorter,)),
    **dict.fromkeys(("_fft_c2c", "_fft_c2r", "_fft_r2c"), (_fourier,)),
}
"""What to check before an operation, by its name."""
