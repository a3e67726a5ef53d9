"""The operations that a stage program may name, and how a name becomes a function.

A program names its operations by dotted paths below ``torch``, ``_operator`` and ``math``. Whoever
resolves such a path with `getattr` can be made to call anything (``torch.os.system``), and even
within ``torch.ops.aten`` there are operations that open files (``from_file``, ``save``), hand out
memory that was never written (``empty``) or trust their arguments (``_sparse_coo_tensor_unsafe``).
So the names are written out here, and nothing else is ever looked up:

* operations that compute tensors from tensors, without files, random numbers, gradients, raw
  memory or global state, and whose results' shapes depend on shapes alone;
* none that changes a tensor: what an operation writes to might be the caller's input or a weight,
  since operations return their argument's memory without a word in their signature
  (``type_as``, ``broadcast_tensors``). Cutset's exports hold none (`cutset.capture.functionalise`);
* the few functions with which torch writes arithmetic on a batch size.

A name on the list is not enough: what an operation may be called with is said in
`argument_rules`, and `dry_run` sees to it.
"""

from __future__ import annotations

import builtins
import importlib
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from cutset.errors import UnsafeBundle

_ATEN = frozenset(
    """
    __and__ __or__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _convolution
    _euclidean_dist _fft_c2c _fft_c2r _fft_r2c _fused_rms_norm _log_softmax
    _native_batch_norm_legit_no_training _pad_circular _prelu_kernel _safe_softmax
    _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu _shape_as_tensor
    _softmax _to_copy _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm
    _weight_norm_interface abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm
    addcdiv addcmul addmm addmv addr adjoint affine_grid_generator alias all alpha_dropout amax amin
    aminmax any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort
    asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d
    baddbmm batch_norm bilinear bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor block_diag bmm broadcast_tensors broadcast_to bucketize
    cartesian_prod cat cdist ceil celu chain_matmul channel_shuffle chunk clamp clamp_max clamp_min
    clip clone col2im column_stack complex concat concatenate conj conj_physical constant_pad_nd
    contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    copy copysign cos cosh cosine_similarity count_nonzero cross cummax cummin cumprod cumsum
    deg2rad det detach diag diag_embed diagflat diagonal diagonal_copy diagonal_scatter diff digamma
    dist div divide dot dropout dsplit dstack einsum elu embedding eq erf erfc erfinv exp exp2
    expand expand_as expand_copy expm1 eye feature_alpha_dropout feature_dropout fft_fft fft_fft2
    fft_fftn fft_fftshift fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_irfft fft_irfft2 fft_irfftn
    fft_rfft fft_rfft2 fft_rfftn fill fix flatten flip fliplr flipud float_power floor floor_divide
    fmax fmin fmod frac frobenius_norm full full_like gather gcd ge gelu ger glu greater
    greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru gru_cell gt
    hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh heaviside hsplit hstack
    hypot i0 igamma igammac im2col imag index index_add index_copy index_fill index_put index_select
    inner instance_norm inverse isclose isfinite isin isinf isnan isneginf isposinf isreal istft
    kron kthvalue layer_norm ldexp le leaky_relu lerp less less_equal lgamma lift lift_fresh
    lift_fresh_copy linalg_cholesky linalg_cross linalg_det linalg_eigh linalg_inv linalg_matmul
    linalg_matrix_norm linalg_matrix_power linalg_multi_dot linalg_norm linalg_pinv linalg_qr
    linalg_solve linalg_svd linalg_vecdot linalg_vector_norm linear linspace log log10 log1p log2
    log_sigmoid log_softmax logaddexp logaddexp2 logdet logical_and logical_not logical_or
    logical_xor logit logspace logsumexp lstm lstm_cell lt mH mT masked_fill masked_scatter matmul
    matrix_H matrix_exp matrix_power max max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum
    mean median meshgrid min minimum mish mm mode moveaxis movedim msort mul multiply mv nan_to_num
    nanmean nanmedian nanquantile nansum narrow narrow_copy native_batch_norm native_channel_shuffle
    native_group_norm native_layer_norm ne neg negative new_full new_ones new_zeros nextafter norm
    not_equal numel numpy_T one_hot ones ones_like outer pad pad_sequence pairwise_distance permute
    permute_copy pinverse pixel_shuffle pixel_unshuffle polar positive pow prelu prod quantile
    rad2deg ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6
    remainder repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape
    reshape_as resolve_conj resolve_neg rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll
    rot90 round row_stack rrelu rsqrt rsub scalar_tensor scaled_dot_product_attention scatter
    scatter_add scatter_reduce searchsorted select select_copy select_scatter selu sgn sigmoid sign
    signbit silu sin sinc sinh slice slice_copy slice_scatter softmax softplus softshrink sort
    special_entr special_erf special_erfc special_erfinv special_exp2 special_expit special_expm1
    special_gammaln special_i0 special_i1 special_log1p special_log_softmax special_logit
    special_logsumexp special_psi special_round special_sinc special_softmax special_xlog1py
    special_xlogy split split_copy split_with_sizes split_with_sizes_copy sqrt square squeeze
    squeeze_copy stack std std_mean stft sub subtract sum sum_to_size swapaxes swapdims sym_numel
    sym_size t t_copy take take_along_dim tan tanh tensor_split tensordot threshold tile to topk
    trace transpose transpose_copy trapezoid tril tril_indices triu triu_indices true_divide trunc
    type_as unbind unbind_copy unflatten unfold unfold_copy unsafe_chunk unsafe_split
    unsafe_split_with_sizes unsqueeze unsqueeze_copy upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    vander var var_mean vdot view view_as view_as_complex view_as_real view_copy vsplit vstack where
    xlogy zero zeros zeros_like
    """.split()  # noqa: SIM905
)

_TORCHVISION = frozenset({"deform_conv2d"})
"""Operations of torchvision's own library. Those on boxes are not among them: their kernels take
the row that a box belongs to, and its corners, as they come, and read there."""

ASSERTIONS = frozenset(
    {
        "torch.ops.aten._assert_async.default",
        "torch.ops.aten._assert_async.msg",
        "torch.ops.aten._assert_scalar.default",
        "torch.ops.aten._assert_tensor_metadata.default",
        "torch.ops.aten.sym_constrain_range.default",
        "torch.ops.aten.sym_constrain_range_for_size.default",
    }
)
"""Calls that compute nothing: the loader leaves them out, the contracts of a boundary stand in."""

_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")
_NUMBER_OPERATORS = ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", *_COMPARISONS)

_NUMBER_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in _NUMBER_OPERATORS},
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "math.sqrt": math.sqrt,
    "builtins.round": builtins.round,
    "torch.sym_float": torch.sym_float,
    "torch.sym_int": torch.sym_int,
    "torch.sym_ite": torch.sym_ite,
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "torch.sym_not": torch.sym_not,
    "torch._sym_sqrt": math.sqrt,
    "torch.sym_sqrt": math.sqrt,
}
"""Arithmetic on lengths. No power and no shift: ``9**9**9`` would never return."""

_TRUTH_FUNCTIONS = frozenset({"torch.sym_not", *(f"_operator.{name}" for name in _COMPARISONS)})

_KINDS = frozenset(
    f"{kind}Type"
    for kind in (
        *("Tensor", "Number", "Int", "Float", "Bool", "Complex", "SymInt", "SymBool", "String"),
        *("DeviceObj", "ScalarTypeType", "Layout", "MemoryFormat", "Generator"),
    )
)

_TARGET = re.compile(r"torch\.ops\.(aten|torchvision)\.([A-Za-z_]\w{0,63})\.([A-Za-z_]\w{0,63})")


def is_allowed(target: str) -> bool:
    """Whether a program may name `target`, e.g. ``"torch.ops.aten.conv2d.default"``."""
    return not fault_of(target)


def fault_of(target: str) -> str:
    """Why a program may not name `target`; ``""`` if it may."""
    unlisted = "is not on the list of operations that a stage program may use"
    if target in ASSERTIONS or target in _NUMBER_FUNCTIONS:
        return ""
    match = _TARGET.fullmatch(target)
    if match is None:
        return unlisted
    namespace, name, overload = match.groups()
    listed = _TORCHVISION if namespace == "torchvision" else _ATEN
    if name in listed and "out" not in overload.split("_"):
        return ""
    if name.endswith("_") and name[:-1] in listed:
        return (
            f"changes a tensor in place, which a stage program may not do: it might be the "
            f"caller's or a weight; {name[:-1]!r} returns a new one"
        )
    return unlisted


def is_number_function(target: str) -> bool:
    """Whether `target` computes a number from numbers (an operand of a shape), not a tensor."""
    return target in _NUMBER_FUNCTIONS


def is_truth_function(target: str) -> bool:
    """Whether `target` compares numbers; its result is a check, no length."""
    return target in _TRUTH_FUNCTIONS


def resolve_operator(target: str, *, path: str) -> Callable[..., Any]:
    """The function that `target` names.

    Args:
        target: a name as `torch.export` writes it.
        path: the bundle's file that names it, for the error.

    Returns:
        A `torch._ops.OpOverload`, or a function on numbers.

    Raises:
        UnsafeBundle: the name is not on the list above, or this torch has no such operation on
            tensors.
    """
    fault = fault_of(target) or ("computes nothing" if target in ASSERTIONS else "")
    if fault:
        raise UnsafeBundle(
            f"{path}: operation {target!r} {fault}; it was not looked up and nothing was run. If "
            f"the model is your own, capture it without this operation",
            path=path,
        )
    if target in _NUMBER_FUNCTIONS:
        return _NUMBER_FUNCTIONS[target]
    _, _, namespace, name, overload = target.split(".")
    if namespace == "torchvision":
        importlib.import_module("torchvision")  # registers its operations as it is imported
    packet = getattr(getattr(torch.ops, namespace), name, None)
    function = getattr(packet, overload, None)
    if (
        not isinstance(function, torch._ops.OpOverload)
        or function._schema.is_mutable
        or not _is_on_tensors(function)
    ):
        raise UnsafeBundle(
            f"{path}: operation {target!r} is no operation on tensors in torch "
            f"{torch.__version__}; open the bundle with the torch that wrote it (manifest.json, "
            f"created_by)",
            path=path,
        )
    return function


def _is_on_tensors(function: torch._ops.OpOverload) -> bool:
    """Whether it takes or gives tensors, and beside them only numbers, words and the like.

    TorchScript keeps functions on strings, dicts and enumerations under the same names
    (``aten::copy.Dict_str``).
    """
    schema = function._schema
    types = [argument.type for argument in (*schema.arguments, *schema.returns)]
    kinds: set[str] = set()
    while types:
        kind = types[-1].kind()
        if kind in ("OptionalType", "ListType"):
            types.append(types.pop().getElementType())
        else:
            kinds.add(kind)
            types.pop()
    return "TensorType" in kinds and kinds <= _KINDS
