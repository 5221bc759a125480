# SPDX-License-Identifier: Apache-2.0
"""Operators that ONNX Runtime's optimiser fuses others into, in these others."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp


def fused_matmul(w: TrainingOp) -> Outputs:
    """(A, B; alpha, transA, transB): alpha A' B'."""
    a, b = w.inputs("A", "B")
    for name in ("transBatchA", "transBatchB"):
        if w.attribute(name, 0):
            w.refuse(f"its attribute {name} is 1; 0 is covered")
    a, b = (_flipped(w, value) if w.attribute(name, 0) else value for value, name in ((a, "transA"), (b, "transB")))
    product = w.op("MatMul", a, b)
    alpha = w.attribute("alpha", 1.0)
    return [product if alpha == 1.0 else w.op("Mul", product, w.scalar_like(alpha, a))]


def _flipped(w: TrainingOp, value: ir.Value) -> ir.Value:
    shape = w.info(value).shape
    if shape is None:
        w.refuse(f"the rank of {value.name!r} is not known; it must be (add its value_info to the model)")
    rank = len(shape)
    return value if rank < 2 else w.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def fused_gemm(w: TrainingOp) -> Outputs:
    """(A, B, C; the attributes of Gemm, activation and its numbers): the activation of Gemm."""
    a, b = w.inputs("A", "B")
    attributes = {name: w.attribute(name, None) for name in ("alpha", "beta", "transA", "transB")}
    result = w.op("Gemm", a, b, w.optional_input(2), **attributes)
    numbers = {
        name.removeprefix("activation_"): w.attribute(name, None)
        for name in ("activation_alpha", "activation_beta", "activation_gamma")
    }
    return [w.op(w.attribute("activation", "Identity"), result, **numbers)]


def fused_conv(w: TrainingOp) -> Outputs:
    """(X, W, B, Z; the attributes of Conv, activation, activation_params): the activation of Conv plus Z."""
    x, weights = w.inputs("X", "W")
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    result = w.op("Conv", x, weights, w.optional_input(2), **{name: w.attribute(name, None) for name in names})
    added = w.optional_input(3)
    if added is not None:
        result = w.op("Add", result, added)
    activation, numbers = w.attribute("activation", "Identity"), w.attribute("activation_params", None) or []
    if activation == "Clip":
        return [w.op("Clip", result, *(w.scalar_like(number, result) for number in numbers))]
    parameters = dict(zip(_PARAMETERS.get(activation, ()), numbers, strict=False))
    return [w.op(activation, result, **parameters)]


_PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",)}


def skip_layer_normalization(w: TrainingOp) -> Outputs:
    """(input, skip, gamma, beta, bias; epsilon): LayerNormalization of their sum, which is the fourth output."""
    gamma = w.inputs("input", "skip", "gamma")[2]
    total = _skipped(w, 4)
    y, mean, inv_std = _layer_normalization(w, total, gamma, w.optional_input(3))
    return [y, mean, inv_std, total]


def skip_simplified_layer_normalization(w: TrainingOp) -> Outputs:
    """(input, skip, gamma, bias; epsilon): SimplifiedLayerNormalization of their sum, which is the fourth output."""
    gamma = w.inputs("input", "skip", "gamma")[2]
    total = _skipped(w, 3)
    epsilon = w.attribute("epsilon", 1e-5)
    y, inv_std = w.ops("SimplifiedLayerNormalization", total, gamma, outputs=2, axis=-1, epsilon=epsilon, stash_type=1)
    return [y, None, inv_std, total]


def _skipped(w: TrainingOp, bias: int) -> ir.Value:
    """Return the sum of input, skip and the bias, if there is one."""
    x, skip = w.inputs("input", "skip")
    added = w.optional_input(bias)
    return w.op("Add", x if added is None else w.op("Add", x, added), skip)


def _layer_normalization(
    w: TrainingOp, x: ir.Value, gamma: ir.Value, beta: ir.Value | None
) -> tuple[ir.Value, ir.Value, ir.Value]:
    # What runs fused operators has LayerNormalization in older opsets than ONNX.
    epsilon = w.attribute("epsilon", 1e-5)
    types = [w.element_type(x), ir.DataType.FLOAT, ir.DataType.FLOAT]
    y, mean, inv_std = w.ops(
        "LayerNormalization", x, gamma, beta, outputs=3, element_type=types, axis=-1, epsilon=epsilon
    )
    return y, mean, inv_std


def embed_layer_normalization(w: TrainingOp) -> Outputs:
    """(ids, segments, word, position, segment, gamma, beta, mask, position ids): LayerNormalization of embeddings.

    They are picked and added up; the sum is the third output, the length of each row of the mask the second one.
    """
    ids, words, positions = (w.optional_input(index) for index in (0, 2, 3))
    segments, segment_rows, gamma = (w.optional_input(index) for index in (1, 4, 5))
    if ids is None or words is None or positions is None or gamma is None:
        w.refuse("it needs its inputs input_ids, word_embedding, position_embedding and gamma")
    length = w.part(w.shape(ids), 1, 2)
    position_ids = w.optional_input(8)
    if position_ids is None:
        picked = w.op("Slice", positions, w.ints(0), length, w.ints(0))
    else:
        picked = w.op("Gather", positions, position_ids, axis=0)
    total = w.op("Add", w.op("Gather", words, ids, axis=0), picked)
    if segments is not None and segment_rows is not None:
        total = w.op("Add", total, w.op("Gather", segment_rows, segments, axis=0))
    y, _, _ = _layer_normalization(w, total, gamma, w.optional_input(6))
    mask_index = None
    if w.is_wanted(1):
        mask = w.optional_input(7)
        if mask is None:
            mask_index = w.filled(w.part(w.shape(ids), 0, 1), 0, ir.DataType.INT32)
        else:
            mask_index = w.reduce("ReduceSum", mask, [1], keepdims=False)
    return [y, mask_index, total]


FUSED: Mapping[str, Callable[[TrainingOp], Outputs]] = MappingProxyType(
    {
        "EmbedLayerNormalization": embed_layer_normalization,
        "FusedConv": fused_conv,
        "FusedGemm": fused_gemm,
        "FusedMatMul": fused_matmul,
        "SkipLayerNormalization": skip_layer_normalization,
        "SkipSimplifiedLayerNormalization": skip_simplified_layer_normalization,
    }
)
"""The operators of the domain com.microsoft that are written out."""
