# SPDX-License-Identifier: Apache-2.0
"""The operators of ONNX Runtime training in standard operators: one small rewriting each, by family.

Each function takes a `Writer`, reads the node from it, and returns the values of the node's outputs. Its docstring is
the operator's definition: what it has for inputs and attributes, and what it computes.
"""

from collections.abc import Callable, Container, Mapping
from types import MappingProxyType

import onnx_ir as ir

from lnbp_onnx.graphs.replace import Replacement
from lnbp_onnx.training_ops import (
    accumulation,
    activations,
    broadcasting,
    convolution,
    indexing,
    layer_norm,
    normalization,
    resizing,
    softmax,
)
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp

MICROSOFT_DOMAIN = "com.microsoft"

DOMAINS = ("", MICROSOFT_DOMAIN)
"""Where the operators are: ONNX Runtime moved some of them from the default domain to its own, without a change."""

REWRITINGS: Mapping[str, Callable[[TrainingOp], Outputs]] = MappingProxyType(
    {
        "AveragePoolGrad": convolution.average_pool_grad,
        "BatchNormInternal": normalization.batch_norm_internal,
        "BatchNormalizationGrad": normalization.batch_normalization_grad,
        "BiasFastGeluGrad_dX": activations.bias_fast_gelu_grad,
        "BiasGeluGrad_dX": activations.bias_gelu_grad,
        "BroadcastGradientArgs": broadcasting.broadcast_gradient_args,
        "ConcatTraining": broadcasting.concat_training,
        "ConvGrad": convolution.conv_grad,
        "ConvTransposeGrad": convolution.conv_transpose_grad,
        "DivGrad": broadcasting.div_grad,
        "DropoutGrad": activations.dropout_grad,
        "FastGeluGrad": activations.fast_gelu_grad,
        "GatherElementsGrad": indexing.gather_elements_grad,
        "GatherGrad": indexing.gather_grad,
        "GatherNDGrad": indexing.gather_nd_grad,
        "GeluGrad": activations.gelu_grad,
        "InPlaceAccumulator": accumulation.in_place_accumulator,
        "InPlaceAccumulatorV2": accumulation.in_place_accumulator_v2,
        "InvertibleLayerNormalizationGrad": layer_norm.invertible_layer_normalization_grad,
        "LayerNormalizationGrad": layer_norm.layer_normalization_grad,
        "LeakyReluGrad": activations.leaky_relu_grad,
        "LogSoftmaxGrad": softmax.flat_log_softmax_grad,
        "LogSoftmaxGrad_13": softmax.log_softmax_grad,
        "MaxPoolGrad": convolution.max_pool_grad,
        "QuickGeluGrad": activations.quick_gelu_grad,
        "ReduceSumTraining": broadcasting.reduce_sum_training,
        "ReluGrad": activations.relu_grad,
        "ResizeGrad": resizing.resize_grad,
        "Scale": activations.scale,
        "SigmoidGrad": activations.sigmoid_grad,
        "SimplifiedLayerNormalizationGrad": normalization.simplified_layer_normalization_grad,
        "SliceGrad": indexing.slice_grad,
        "SoftmaxCrossEntropyLossGrad": softmax.softmax_cross_entropy_loss_grad,
        "SoftmaxCrossEntropyLossInternal": softmax.softmax_cross_entropy_loss_internal,
        "SoftmaxCrossEntropyLossInternalGrad": softmax.softmax_cross_entropy_loss_internal_grad,
        "SoftmaxGrad": softmax.flat_softmax_grad,
        "SoftmaxGrad_13": softmax.softmax_grad,
        "SplitTraining": broadcasting.split_training,
        "TanhGrad": activations.tanh_grad,
        "ZeroGradient": accumulation.zero_gradient,
    }
)
"""The operators that are rewritten: the layer-norm gradients to LayerNormBackprop, the others to standard operators."""

NOT_COVERED = frozenset(
    {
        "AdamOptimizer",
        "AdamWOptimizer",
        "AdasumAllReduce",
        "All",
        "BatchScale",
        "BiasSoftmaxDropout",
        "BitmaskDropoutGrad",
        "FakeQuant",
        "FakeQuantGrad",
        "FlattenAndUnpad",
        "GRUGrad",
        "GRUTraining",
        "GistBinarizeDecoder",
        "GistBinarizeEncoder",
        "GistPack16Decoder",
        "GistPack16Encoder",
        "GistPack1Decoder",
        "GistPack1Encoder",
        "GistPack8Decoder",
        "GistPack8Encoder",
        "GistPackMsfp15Decoder",
        "GistPackMsfp15Encoder",
        "Group",
        "InplaceClipGradNorm",
        "IsFinite",
        "LSTMGrad",
        "LSTMTraining",
        "LambOptimizer",
        "MegatronF",
        "MegatronG",
        "MixedPrecisionScale",
        "NcclAllGather",
        "NcclAllReduce",
        "NcclReduceScatter",
        "NegativeLogLikelihoodLossInternal",
        "NegativeLogLikelihoodLossInternal2",
        "PadAndUnflatten",
        "PassThrough",
        "PythonOp",
        "PythonOpGrad",
        "RecordEvent",
        "Recv",
        "ReduceAllL2",
        "SGDOptimizer",
        "SGDOptimizerV2",
        "ScaledSum",
        "Send",
        "ShrunkenGather",
        "SoftmaxCrossEntropy",
        "SoftmaxCrossEntropyGrad",
        "SoftmaxDropoutGrad",
        "SparseSoftmaxCrossEntropy",
        "SparseSoftmaxCrossEntropyGrad",
        "SummaryHistogram",
        "SummaryMerge",
        "SummaryScalar",
        "SummaryText",
        "View",
        "WaitEvent",
        "YieldOp",
    }
)
"""The other operators that onnxruntime-training 1.19.2 registers and the inference packages do not.

Together with `REWRITINGS` it is the difference between the two: a node of every name that
the training library holds was given to both runtimes. What neither list has is left alone.
"""


def is_training_op(node: ir.Node, op_types: Container[str], model: ir.Model) -> bool:
    """Return whether a node is one of these operators of ONNX Runtime training, and no call of the model's own."""
    return node.domain in DOMAINS and node.op_type in op_types and node.op_identifier() not in model.functions


def replacement(op: TrainingOp) -> Replacement:
    """Return what takes the place of a node, which is of `REWRITINGS`.

    Raises:
        InvalidModelError: Where it cannot be rewritten.
        InvalidNodeError: Where it is a layer-norm gradient that LayerNormBackprop does not take.
    """
    if not op.node.outputs:
        op.refuse("it has no outputs")
    outputs = REWRITINGS[op.node.op_type](op)
    return Replacement(op.node, op.nodes, [*outputs][: len(op.node.outputs)])


__all__ = ["DOMAINS", "MICROSOFT_DOMAIN", "NOT_COVERED", "REWRITINGS", "TrainingOp", "is_training_op", "replacement"]
