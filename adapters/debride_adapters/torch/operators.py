"""The operators that a TorchScript archive may use: those that PyTorch's exporter of TorchScript writes as ONNX.

PyTorch has some 2 000 more. A few of them touch files or other machines, and many trust the sizes and indices that they
are given: with the wrong ones they read and write memory that is not theirs. What has no ONNX form is of no use here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# The exporter's table without losses, quantisation, what only it uses, and what trusts the sizes that it is given
# (`_weight_norm` crashes on wrong ones) or hardly checks them (`as_strided`, `embedding_bag`, `lstm`, `grid_sampler`).
_EXPORTED = """
    Delete __and__ __contains__ __derive_index __getitem__ __is__ __isnot__ __lshift__ __not__ __or__ __range_length
    __rshift__ __xor__ _conj _convolution _convolution_mode _log_softmax _set_item abs acos
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d add addcmul addmm affine_grid_generator all alpha_dropout amax amin aminmax any append
    arange argmax argmin argsort as_tensor asin atan atan2 atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d
    avg_pool3d baddbmm batch_norm bernoulli bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bmm broadcast_tensors broadcast_to bucketize cat cdist ceil celu chunk clamp clamp_max
    clamp_min clone conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d convolution cos cosine_similarity cross cumsum detach diagonal dim div dot dropout einsum elu
    embedding empty empty_like eq erf exp expand expand_as eye feature_alpha_dropout feature_dropout fill flatten
    flip floor floor_divide floordiv fmod frobenius_norm full full_like gather ge gelu glu group_norm
    gt hardshrink hardsigmoid hardswish hardtanh hstack im2col index index_add index_copy index_fill index_put
    index_select insert instance_norm is_floating_point isfinite isinf isnan item layer_norm le leaky_relu len lerp
    linalg_cross linalg_matrix_norm linalg_norm linalg_vector_norm linear linspace list log log10 log1p log2
    log_sigmoid log_softmax logical_and logical_not logical_or logical_xor logit logsumexp lt masked_fill
    masked_scatter masked_select matmul max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices
    max_pool3d max_pool3d_with_indices maximum mean meshgrid min minimum mish mm movedim mul mv nan_to_num narrow
    native_layer_norm ne neg new_empty new_full new_ones new_zeros nonzero norm normal numel one_hot ones ones_like
    outer pad pairwise_distance permute pixel_shuffle pixel_unshuffle pop pow prelu prod rand rand_like randint
    randint_like randn randn_like reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder
    repeat replication_pad1d replication_pad2d replication_pad3d reshape reshape_as resolve_conj resolve_neg
    roll round rrelu rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add
    scatter_reduce select selu sigmoid sign silu sin size slice softmax softplus softshrink sort split
    split_with_sizes sqrt square squeeze stack std std_mean sub sum t take tan tanh tensor tensor_split tensordot
    threshold tile to topk transpose tril triu true_divide type_as unbind unflatten unfold unsafe_chunk unsafe_split
    unsafe_split_with_sizes unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean view view_as vstack where zero zeros
    zeros_like
"""
# What scripted code holds besides: lists, texts, branches that a classifier does not take, remarks to the user.
_AROUND = """
    Bool Float FloatImplicit Int IntImplicit ScalarImplicit _native_multi_head_attention _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa _upsample_lanczos2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d absolute clear clip concat copy device extend format get is_autocast_enabled
    is_complex is_contiguous is_grad_enabled is_scripting items keys numpy_T percentFormat ravel result_type
    rms_norm set_grad_enabled str stride swapaxes uniform values warn
"""
_ATEN = frozenset((_EXPORTED + _AROUND).split())
_PRIM_NAMES = """
    NumToTensor RaiseException abs data device dtype is_cuda is_mkldnn is_nested is_quantized is_sparse layout
    max min requires_grad shape type unchecked_unwrap_optional
"""
# What the code says in TorchScript's own words becomes these.
_GRAPH_NAMES = """
    CallFunction CallMethod Constant ConstantChunk CreateObject DictConstruct Enter Exit GetAttr If ListConstruct
    ListUnpack Loop SetAttr TupleConstruct TupleIndex TupleSlice TupleUnpack Uninitialized isinstance tolist
    unchecked_cast
"""
_PRIM, _GRAPH = frozenset(_PRIM_NAMES.split()), frozenset(_GRAPH_NAMES.split())


def allowed(namespace: str, name: str) -> bool:
    """Whether the code of an archive may use the operator; one that ends in "_" is judged like the one that copies."""
    if namespace == "prim":
        return name in _PRIM
    return namespace == "aten" and (name in _ATEN or name.removesuffix("_") in _ATEN)


def usual_scale(number: object) -> bool:
    """Whether a picture may be resized by `number`."""
    return isinstance(number, (int, float)) and 1 / 256 <= number <= 256


def is_operator(name: str) -> bool:
    """Whether PyTorch has an operator `name` that a value could be asked for as if it were its method."""
    import torch

    return bool(torch._C._jit_get_schemas_for_operator(f"aten::{name}"))


def foreign(module: Any) -> Iterator[str]:
    """The operators in the graphs of a TorchScript module and of the modules in it that the archive may not use."""
    for part in module.modules():
        for name in part._c._method_names():
            yield from _foreign(part._c._get_method(name).graph)
        for hook in (*part._c._get_forward_pre_hooks(), *part._c._get_forward_hooks()):
            yield from _foreign(hook.graph)
    yield from _foreign(module._c._get_method("forward").inlined_graph)


def _foreign(block: Any) -> Iterator[str]:
    for node in block.nodes():
        namespace, _, name = node.kind().partition("::")
        if not (allowed(namespace, name) or (namespace == "prim" and name in _GRAPH)):
            yield str(node.kind())
        for inner in node.blocks():
            yield from _foreign(inner)
