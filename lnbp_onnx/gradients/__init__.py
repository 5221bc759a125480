# SPDX-License-Identifier: Apache-2.0
"""The gradients of ONNX operators in standard operators and LayerNormBackprop: a small rule each, by family.

A rule takes a `GradientOp`, the forward node with the gradients of its outputs, and returns the gradients of its
inputs. Its docstring is the definition. What ONNX Runtime training has an operator for is written by `training_ops`.
"""

from collections.abc import Container, Mapping
from types import MappingProxyType

import onnx_ir as ir

from lnbp_onnx.gradients import elementwise, layers, products, reductions, shapes
from lnbp_onnx.gradients.gradient_op import Rule
from lnbp_onnx.training_ops import MICROSOFT_DOMAIN

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Abs": elementwise.absolute,
        "Acos": elementwise.acos,
        "Acosh": elementwise.acosh,
        "Add": elementwise.add,
        "Asin": elementwise.asin,
        "Asinh": elementwise.asinh,
        "Atan": elementwise.atan,
        "Atanh": elementwise.atanh,
        "AveragePool": layers.average_pool,
        "BatchNormalization": layers.batch_normalization,
        "Cast": elementwise.cast,
        "Celu": elementwise.celu,
        "Clip": elementwise.clip,
        "Concat": shapes.concat,
        "Conv": layers.conv,
        "ConvTranspose": layers.conv_transpose,
        "Cos": elementwise.cos,
        "Cosh": elementwise.cosh,
        "CumSum": reductions.cumulative_sum,
        "DepthToSpace": shapes.depth_to_space,
        "Div": elementwise.div,
        "Dropout": elementwise.dropout,
        "Einsum": products.einsum,
        "Elu": elementwise.elu,
        "Erf": elementwise.erf,
        "Exp": elementwise.exp,
        "Expand": shapes.expand,
        "Flatten": shapes.reshape,
        "Gather": shapes.gather,
        "GatherElements": shapes.gather_elements,
        "GatherND": shapes.gather_nd,
        "Gelu": elementwise.gelu,
        "Gemm": products.gemm,
        "GlobalAveragePool": layers.global_average_pool,
        "GlobalMaxPool": layers.global_max_pool,
        "GroupNormalization": layers.group_normalization,
        "HardSigmoid": elementwise.hard_sigmoid,
        "HardSwish": elementwise.hard_swish,
        "Identity": elementwise.identity,
        "InstanceNormalization": layers.instance_normalization,
        "LayerNormalization": layers.layer_normalization,
        "LeakyRelu": elementwise.leaky_relu,
        "Log": elementwise.log,
        "LogSoftmax": reductions.log_softmax,
        "LpNormalization": reductions.lp_normalization,
        "MatMul": products.matmul,
        "Max": elementwise.extreme,
        "MaxPool": layers.max_pool,
        "Mean": elementwise.mean,
        "Min": elementwise.extreme,
        "Mish": elementwise.mish,
        "Mul": elementwise.mul,
        "Neg": elementwise.neg,
        "NegativeLogLikelihoodLoss": reductions.negative_log_likelihood_loss,
        "PRelu": elementwise.prelu,
        "Pad": shapes.pad,
        "Pow": elementwise.power,
        "RMSNormalization": layers.rms_normalization,
        "Reciprocal": elementwise.reciprocal,
        "ReduceL1": reductions.reduce_l1,
        "ReduceL2": reductions.reduce_l2,
        "ReduceLogSum": reductions.reduce_log_sum,
        "ReduceLogSumExp": reductions.reduce_log_sum_exp,
        "ReduceMax": reductions.reduce_extreme,
        "ReduceMean": reductions.reduce_mean,
        "ReduceMin": reductions.reduce_extreme,
        "ReduceProd": reductions.reduce_prod,
        "ReduceSum": reductions.reduce_sum,
        "ReduceSumSquare": reductions.reduce_sum_square,
        "Relu": elementwise.relu,
        "Reshape": shapes.reshape,
        "Resize": layers.resize,
        "ReverseSequence": shapes.reverse_sequence,
        "ScatterElements": shapes.scatter_elements,
        "ScatterND": shapes.scatter_nd,
        "Selu": elementwise.selu,
        "Sigmoid": elementwise.sigmoid,
        "Sin": elementwise.sin,
        "Sinh": elementwise.sinh,
        "Slice": shapes.cut,
        "SimplifiedLayerNormalization": layers.simplified_layer_normalization,
        "Softmax": reductions.softmax,
        "SoftmaxCrossEntropyLoss": reductions.softmax_cross_entropy_loss,
        "Softplus": elementwise.softplus,
        "Softsign": elementwise.softsign,
        "SpaceToDepth": shapes.space_to_depth,
        "Split": shapes.split,
        "Sqrt": elementwise.sqrt,
        "Squeeze": shapes.reshape,
        "Sub": elementwise.sub,
        "Sum": elementwise.add,
        "Tan": elementwise.tan,
        "Tanh": elementwise.tanh,
        "Tile": shapes.tile,
        "TopK": reductions.top_k,
        "Transpose": shapes.transpose,
        "Trilu": shapes.trilu,
        "Unsqueeze": shapes.reshape,
        "Where": elementwise.choice,
    }
)
"""The operators of the default domain that have a gradient."""

FIRST_INPUT_RULES: Mapping[str, Rule] = MappingProxyType({"RotaryEmbedding": layers.rotary_embedding})
"""Operators that are defined by others, with a gradient of their own where only that of their first input is wanted."""

MICROSOFT_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "BiasGelu": elementwise.bias_gelu,
        "FastGelu": elementwise.fast_gelu,
        "Gelu": elementwise.gelu,
        "QuickGelu": elementwise.quick_gelu,
    }
)
"""The operators of the domain com.microsoft that have a gradient."""

EXTRA_OUTPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Dropout": ("mask",),
        "LayerNormalization": ("mean", "inv_std_dev"),
        "MaxPool": ("indices",),
        "SimplifiedLayerNormalization": ("inv_std",),
        "TopK": ("indices",),
    }
)
"""The outputs after the first one that a rule needs of the forward node, and how they are named where it has none."""

CONSTANT = frozenset(
    {
        *("ArgMax", "ArgMin", "NonZero", "Shape", "Size", "Sign", "Floor", "Ceil", "Round", "EyeLike"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf"),
        *("ConstantOfShape", "RandomNormalLike", "RandomUniformLike", "Bernoulli"),
    }
)
"""Operators through which no gradient passes, by their nature: as in torch, what comes out of them is a constant."""

CONSTANT_INPUTS: Mapping[str, tuple[int, ...]] = MappingProxyType({"Dropout": (1, 2), "Resize": (1, 2)})
"""Inputs of a floating type that no gradient passes, by their nature."""


def rule_of(node: ir.Node, found: Container[ir.Value]) -> Rule | None:
    """Return the rule of a node, None where it has none; gradients lead to the values that are `found`."""
    if node.domain == MICROSOFT_DOMAIN:
        return MICROSOFT_RULES.get(node.op_type)
    if node.domain != "":
        return None
    if node.op_type in FIRST_INPUT_RULES and not any(value in found for value in node.inputs[1:] if value is not None):
        return FIRST_INPUT_RULES[node.op_type]
    return RULES.get(node.op_type)


__all__ = [
    "CONSTANT",
    "CONSTANT_INPUTS",
    "EXTRA_OUTPUTS",
    "FIRST_INPUT_RULES",
    "MICROSOFT_RULES",
    "RULES",
    "Rule",
    "rule_of",
]
