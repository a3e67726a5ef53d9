"""The rules of what looks at windows: convolution, pooling, resampling, padding."""

from __future__ import annotations

import math

import torch

from cutset.bundles.reading.torch.argument_checks import (
    MAX_STEP,
    BrokenRuleError,
    CallArguments,
    Rule,
    check_same_dtype,
    numbers_of,
    require,
    spread,
    tensor_of,
)


def _convolution(arguments: CallArguments, *, transposed: bool | None = None) -> None:
    tensor, weight = tensor_of(arguments, "input"), tensor_of(arguments, "weight")
    if transposed is None:
        transposed = arguments.get("transposed", False)
    spatial = weight.dim() - 2
    require(
        spatial in (1, 2, 3) and tensor.dim() in (spatial + 1, spatial + 2),
        f"'weight' has {weight.dim()} dimensions, 'input' {tensor.dim()}",
    )
    (groups,) = numbers_of(arguments, "groups", 1, (1,))
    channels = tensor.shape[-spatial - 1]
    taken, made = weight.shape[1] * groups, weight.shape[0]
    if transposed:
        taken, made = weight.shape[0], weight.shape[1] * groups
    require(
        taken == channels and weight.shape[0] % groups == 0,
        f"'input' has {channels} channels, 'weight' takes {taken} in {groups} groups",
    )
    bias = arguments["bias"]
    require(bias is None or list(bias.shape) == [made], f"'bias' is not of shape [{made}]")
    check_same_dtype(arguments, "input", "weight", "bias")
    counts = (1, spatial)
    strides = spread(numbers_of(arguments, "stride", 1, counts), spatial)
    dilations = spread(numbers_of(arguments, "dilation", 1, counts), spatial)
    if isinstance(arguments["padding"], str):
        require(arguments["padding"] in ("same", "valid"), "'padding' is neither same nor valid")
        return
    paddings = spread(numbers_of(arguments, "padding", 0, counts), spatial)
    if transposed:
        further = spread(numbers_of(arguments, "output_padding", 0, counts), spatial)
        for more, stride, dilation in zip(further, strides, dilations, strict=True):
            require(more < max(stride, dilation), "'output_padding' is not below the stride")
        return
    for length, kernel, padding, dilation in zip(
        tensor.shape[-spatial:], weight.shape[2:], paddings, dilations, strict=True
    ):
        require(
            dilation * (kernel - 1) < length + 2 * padding,
            f"a kernel of {kernel}, dilation {dilation}, is larger than {length} + 2 * {padding}",
        )


def _transposed_convolution(arguments: CallArguments) -> None:
    _convolution(arguments, transposed=True)


def _pooling(spatial: int) -> Rule:
    counts = (1, spatial)

    def rule(arguments: CallArguments) -> None:
        tensor = tensor_of(arguments, "self")
        require(tensor.dim() in (spatial + 1, spatial + 2), f"'self' has {tensor.dim()} dimensions")
        kernel = spread(numbers_of(arguments, "kernel_size", 1, counts), spatial)
        numbers_of(arguments, "stride", 1, (0, *counts))
        paddings = spread(numbers_of(arguments, "padding", 0, counts), spatial)
        for size, padding in zip(kernel, paddings, strict=True):
            require(2 * padding <= size, f"'padding' {padding} is over half of the kernel {size}")
        if "dilation" in arguments:
            numbers_of(arguments, "dilation", 1, counts)
        if arguments.get("divisor_override") is not None:
            numbers_of(arguments, "divisor_override", 1, (1,))

    return rule


def _adaptive_pooling(spatial: int) -> Rule:
    def rule(arguments: CallArguments) -> None:
        tensor = tensor_of(arguments, "self")
        require(tensor.dim() in (spatial + 1, spatial + 2), f"'self' has {tensor.dim()} dimensions")
        numbers_of(arguments, "output_size", 1, (1, spatial))

    return rule


def _unpooling(arguments: CallArguments) -> None:
    # That each index lies within the result, the kernels check themselves.
    tensor, indices = tensor_of(arguments, "self"), tensor_of(arguments, "indices")
    spatial = len(arguments["output_size"])
    require(tensor.dim() in (spatial + 1, spatial + 2), f"'self' has {tensor.dim()} dimensions")
    require(
        indices.shape == tensor.shape and indices.dtype == torch.int64,
        "'indices' are not of the shape of 'self' and of int64",
    )
    numbers_of(arguments, "output_size", 1, (spatial,))
    for name, least in (("stride", 1), ("padding", 0)):
        if name in arguments:
            numbers_of(arguments, name, least, (spatial,))


def _windows(arguments: CallArguments) -> None:
    """im2col and col2im."""
    tensor_of(arguments, "self")
    for name, least in (("kernel_size", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
        numbers_of(arguments, name, least, (2,))
    if "output_size" in arguments:
        numbers_of(arguments, "output_size", 1, (2,))


def _upsampling(spatial: int) -> Rule:
    """Sizes and factors that say the same: a kernel finds its sources by the factor."""

    def rule(arguments: CallArguments) -> None:
        tensor = tensor_of(arguments, "input", "self")
        require(tensor.dim() == spatial + 2, f"it is given {tensor.dim()} dimensions")
        sizes: list[int] | None = None
        if arguments["output_size"] is not None:
            sizes = numbers_of(arguments, "output_size", 1, (spatial,))
        factors = arguments.get("scale_factors")
        if factors is None:
            names = [name for name in arguments if name.startswith("scales")]
            factors = [arguments[name] for name in names] or [None] * spatial
        elif sizes is not None:
            raise BrokenRuleError("both 'output_size' and 'scale_factors' are given")
        require(len(factors) == spatial, f"it has {len(factors)} factors")
        for place, factor in enumerate(factors):
            if factor is None:
                require(sizes is not None, "neither a size nor a factor is given")
                continue
            require(
                isinstance(factor, (int, float)) and 1 / MAX_STEP <= factor <= MAX_STEP,
                f"a factor is {str(factor)[:40]}",
            )
            length = tensor.shape[2 + place]
            size = sizes[place] if sizes is not None else math.floor(length * factor)
            require(
                size >= 1 and abs(length * factor - size) <= 1,
                f"{length} times {factor} is not {size}",
            )

    return rule


def _grid_sampling(arguments: CallArguments) -> None:
    tensor, grid = tensor_of(arguments, "input"), tensor_of(arguments, "grid")
    spatial = tensor.dim() - 2
    require(
        spatial in (2, 3)
        and grid.dim() == tensor.dim()
        and grid.shape[0] == tensor.shape[0]
        and grid.shape[-1] == spatial,
        f"'grid' has shape {list(grid.shape)}, 'input' {list(tensor.shape)}",
    )
    check_same_dtype(arguments, "input", "grid")
    modes = (0, 1, 2) if spatial == 2 else (0, 1)
    require(arguments["interpolation_mode"] in modes, "'interpolation_mode' is unknown")
    require(arguments["padding_mode"] in (0, 1, 2), "'padding_mode' is unknown")


def _padding(arguments: CallArguments) -> None:
    """Any amount of a constant; of the tensor's own elements no more than there are."""
    tensor = tensor_of(arguments, "self")
    name = "pad" if "pad" in arguments else "padding"
    amounts = list(arguments[name])
    require(
        len(amounts) % 2 == 0 and len(amounts) <= 2 * tensor.dim(), f"{name!r} is of wrong length"
    )
    is_constant = arguments.get("mode", "constant" if "value" in arguments else "") == "constant"
    for place, amount in enumerate(amounts):
        length = tensor.shape[-1 - place // 2]
        least, most = (-length, MAX_STEP) if is_constant else (0, length)
        require(
            type(amount) is int and least <= amount <= most,
            f"{name!r} is {str(amount)[:40]}, expected {least} to {most}",
        )


def _factor(name: str) -> Rule:
    def rule(arguments: CallArguments) -> None:
        tensor = tensor_of(arguments, "self")
        require(tensor.dim() >= 3, f"'self' has {tensor.dim()} dimensions")
        numbers_of(arguments, name, 1, (1,))

    return rule


def _channel_shuffle(arguments: CallArguments) -> None:
    channels = tensor_of(arguments, "self").shape[1:2]
    (groups,) = numbers_of(arguments, "groups", 1, (1,))
    require(bool(channels) and channels[0] % groups == 0, f"{groups} groups do not divide")


def _deformed_convolution(arguments: CallArguments) -> None:
    # That an offset is a number, `cutset.bundles.reading.torch.functions` sees to before each call.
    names = ("input", "weight", "offset", "mask", "bias")
    tensor, weight, offset = (tensor_of(arguments, name) for name in names[:3])
    require(
        all(t.dim() == 4 for t in (tensor, weight, offset)), "it is given other than 4 dimensions"
    )
    for name, least in (("stride", 1), ("pad", 0), ("dilation", 1)):
        for side in ("h", "w"):
            numbers_of(arguments, f"{name}_{side}", least, (1,))
    for name in ("groups", "offset_groups"):
        numbers_of(arguments, name, 1, (1,))
    groups, offset_groups = arguments["groups"], arguments["offset_groups"]
    taps = weight.shape[2] * weight.shape[3] * offset_groups
    require(
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
    require(list(offset.shape) == [rows, 2 * taps, *places], "'offset' is of another shape")
    if arguments["use_mask"]:
        require(list(arguments["mask"].shape) == [rows, taps, *places], "'mask' is too")
    require(list(arguments["bias"].shape) == [weight.shape[0]], "'bias' is of another length")
    check_same_dtype(arguments, *names)


WINDOW_RULES: dict[str, tuple[Rule, ...]] = {
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
}
"""What to check before an operation that looks at windows, by its name."""
