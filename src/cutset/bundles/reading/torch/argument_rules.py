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
from collections.abc import Callable

import torch

from cutset.bundles.reading.torch.argument_checks import (
    CallArguments,
    Rule,
    check_parameters,
    check_same_dtype,
    is_false,
    numbers_of,
    require,
    tensor_of,
)
from cutset.bundles.reading.torch.window_rules import WINDOW_RULES


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
        require(
            _PARTS[name](arguments) == num_results,
            f"it does not return {num_results} tensors",
        )
    for rule in RULES.get(name, ()):
        rule(arguments)


# -- normalisation -----------------------------------------------------------------------------

_STATISTICS = ("running_mean", "running_var")


def _statistics(arguments: CallArguments, *, of_input: bool) -> None:
    """Either they are given, or they are the input's own: those given would be changed by these."""
    for name in _STATISTICS:
        require(
            (arguments[name] is None) is of_input,
            f"{name!r} would be changed with each call" if of_input else f"{name!r} is missing",
        )


def _instance_norm(arguments: CallArguments) -> None:
    tensor = tensor_of(arguments, "input")
    require(tensor.dim() >= 3, "'input' has fewer than three dimensions")
    _statistics(arguments, of_input=arguments["use_input_stats"])
    check_parameters(arguments, ("weight", "bias", *_STATISTICS), tensor, [tensor.shape[1]])


def _batch_norm(arguments: CallArguments) -> None:
    tensor = tensor_of(arguments, "input")
    require(tensor.dim() >= 2, "'input' has fewer than two dimensions")
    require(tensor.is_floating_point(), "'input' is not of floating point")
    _statistics(arguments, of_input=arguments.get("training", False))
    names = ("weight", "bias", *_STATISTICS)
    check_parameters(arguments, names, tensor, [tensor.shape[1]])


def _group_norm(arguments: CallArguments) -> None:
    tensor = tensor_of(arguments, "input")
    require(tensor.dim() >= 2, "'input' has fewer than two dimensions")
    (groups,) = numbers_of(arguments, "group" if "group" in arguments else "num_groups", 1, (1,))
    require(tensor.shape[1] % groups == 0, f"{groups} groups do not divide {tensor.shape[1]}")
    if "HxW" in arguments:
        expected = [*tensor.shape[:2], math.prod(tensor.shape[2:])]
        actual = [arguments["N"], arguments["C"], arguments["HxW"]]
        require(actual == expected, f"N, C, HxW are {actual}, expected {expected}")
    check_parameters(arguments, ("weight", "bias"), tensor, [tensor.shape[1]])


def _layer_norm(arguments: CallArguments) -> None:
    tensor = tensor_of(arguments, "input")
    shape = list(arguments["normalized_shape"])
    require(
        0 < len(shape) <= tensor.dim() and list(tensor.shape[-len(shape) :]) == shape,
        f"'normalized_shape' is {shape[:8]}, and 'input' has shape {list(tensor.shape)}",
    )
    check_parameters(arguments, ("weight", "bias"), tensor, shape)


def _weight_norm(arguments: CallArguments) -> None:
    v, g, dim = tensor_of(arguments, "v"), tensor_of(arguments, "g"), arguments["dim"]
    require(dim in (0, v.dim() - 1), f"'dim' is {dim}, expected the first or the last")
    shape = [length if place == dim else 1 for place, length in enumerate(v.shape)]
    require(list(g.shape) == shape, f"'g' has shape {list(g.shape)}, expected {shape}")
    check_same_dtype(arguments, "v", "g")


# -- attention, recurrence, look-up, Fourier transforms -----------------------------------------


def _attention(arguments: CallArguments, *, is_flash: bool = False) -> None:
    query, key, value = (tensor_of(arguments, name) for name in ("query", "key", "value"))
    check_same_dtype(arguments, "query", "key", "value")
    dims = query.dim()
    require(
        key.dim() == value.dim() == dims and (dims == 4 if is_flash else dims >= 2),
        "query, key and value have different numbers of dimensions",
    )
    outer = [list(tensor.shape[:-2]) for tensor in (query, key, value)]
    if arguments.get("enable_gqa"):
        require(dims >= 3, "heads in groups need a dimension of heads")
        heads = [lengths.pop() for lengths in outer]
        require(heads[0] % heads[1] == 0 == heads[0] % heads[2], "heads do not divide")
    require(
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
        require(
            2 <= len(lengths) <= len(wanted)
            and all(n in (1, w) for n, w in zip(lengths[::-1], wanted[::-1], strict=False)),
            f"'attn_mask' has shape {list(lengths)}, expected {list(wanted)}",
        )
        require(mask.dtype in (torch.bool, query.dtype), f"'attn_mask' is {mask.dtype}")
    require(arguments["dropout_p"] == 0, "'dropout_p' is not 0")


def _flash_attention(arguments: CallArguments) -> None:
    _attention(arguments, is_flash=True)


def _recurrence(gates: int) -> Rule:
    """All weights of all layers: the kernels of a library read them as long as they should be."""

    def rule(arguments: CallArguments) -> None:
        require("batch_sizes" not in arguments, "packed sequences are not permitted")
        is_false("train")(arguments)
        tensor = tensor_of(arguments, "input")
        states = arguments["hx"] if isinstance(arguments["hx"], list) else [arguments["hx"]]
        require(
            tensor.dim() == 3
            and len(states) == (2 if gates == 4 else 1)
            and all(state.dim() == 3 for state in states),
            "'input' and 'hx' are not of three dimensions",
        )
        (layers,) = numbers_of(arguments, "num_layers", 1, (1,))
        directions = 2 if arguments["bidirectional"] else 1
        given, hidden = states[0].shape[2], states[-1].shape[2]
        rows = tensor.shape[0 if arguments["batch_first"] else 1]
        for state, size in zip(states, (given, hidden), strict=False):
            require(
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
            require(len(expected) <= len(arguments["params"]), "weights are missing")
        require(
            [list(weight.shape) for weight in arguments["params"]] == expected,
            f"the weights are not of the shapes {expected[:8]}",
        )
        dtypes = {t.dtype for t in (tensor, *states, *arguments["params"])}
        require(dtypes == {tensor.dtype}, "the weights are of different dtypes")

    return rule


def _embedding(arguments: CallArguments) -> None:
    # That each index lies within the table, the kernel checks itself.
    table = tensor_of(arguments, "weight")
    require(table.dim() == 2, "'weight' is no table")
    require(arguments["indices"].dtype in (torch.int32, torch.int64), "'indices' are no indices")


def _one_hot(arguments: CallArguments) -> None:
    require(arguments["num_classes"] >= 1, "the number of classes would depend on values")


def _without_sorter(arguments: CallArguments) -> None:
    require(arguments.get("sorter") is None, "'sorter' is not permitted")


def _fourier(arguments: CallArguments) -> None:
    tensor, dims = tensor_of(arguments, "self"), arguments["dim"]
    require(
        bool(dims)
        and all(type(dim) is int and 0 <= dim < tensor.dim() for dim in dims)
        and len(set(dims)) == len(dims),
        "'dim' names no dimensions, or one twice",
    )
    if "last_dim_size" in arguments:
        length = arguments["last_dim_size"]
        require(
            length >= 1 and tensor.shape[dims[-1]] == length // 2 + 1,
            f"'last_dim_size' is {length}, and there are {tensor.shape[dims[-1]]} coefficients",
        )


# -- how many tensors come back ------------------------------------------------------------------


def _length_along(arguments: CallArguments, dim: int | None = None) -> int:
    tensor = arguments["self"]
    dim = arguments["dim"] if dim is None else dim
    require(-tensor.dim() <= dim < tensor.dim(), f"'dim' is {dim} of {tensor.dim()} dimensions")
    return tensor.shape[dim]  # type: ignore[no-any-return]


def _num_split(arguments: CallArguments) -> int:
    sizes = arguments["split_sizes" if "split_sizes" in arguments else "split_size"]
    if isinstance(sizes, (list, tuple)):
        return len(sizes)
    require(sizes >= 1, f"the parts are of {sizes}")
    return int(max(1, -(-_length_along(arguments) // sizes)))


def _num_chunks(arguments: CallArguments) -> int:
    require(arguments["chunks"] >= 1, f"'chunks' is {arguments['chunks']}")
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
    require("sections" in arguments, "where it splits would depend on values")
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
    **{name: (is_false("train"),) for name in ("alpha_dropout", "dropout")},
    **{name: (is_false("train"),) for name in ("feature_alpha_dropout", "feature_dropout")},
    "rrelu": (is_false("training"),),
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
    **WINDOW_RULES,
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
