# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for ONNX Runtime's own operators, which ONNX's shape inference does not know and would stop at.

Each is a standard operator whose output has the type, and where it is an ``Identity`` the shape, of the output that it
stands in for. They are seen by shape inference only.
"""

from collections.abc import Container, Iterator
from typing import NamedTuple

from onnx import NodeProto, helper

from lnbp_onnx.graphs.protos import graphs_in

UNKNOWN_SHAPE = "lnbp/unknown_shape"
"""A graph input that a model with stand-ins must have: an int64 vector of unknown length."""


class _Like(NamedTuple):
    """Which input an output is like, in its type and perhaps in its shape."""

    position: int
    in_shape: bool


def _same_as(position: int) -> _Like:
    return _Like(position, in_shape=True)


def _type_of(position: int) -> _Like:
    return _Like(position, in_shape=False)


# For each output, None where nothing tells. InPlaceAccumulatorV2 is not here: its first output is a boolean, which no
# input of it need be.
_LIKE: dict[str, tuple[_Like | None, ...]] = {
    **dict.fromkeys(
        (
            "BiasFastGeluGrad_dX",
            "BiasGelu",
            "BiasGeluGrad_dX",
            "BiasSoftmax",
            "DropoutGrad",
            "FastGelu",
            "FastGeluGrad",
            "Gelu",
            "GeluGrad",
            "InPlaceAccumulator",
            "LeakyReluGrad",
            "LogSoftmaxGrad",
            "LogSoftmaxGrad_13",
            "QuickGelu",
            "QuickGeluGrad",
            "ReluGrad",
            "Scale",
            "SigmoidGrad",
            "SimplifiedLayerNormalization",
            "SoftmaxGrad",
            "SoftmaxGrad_13",
            "TanhGrad",
            "ZeroGradient",
        ),
        (_same_as(0),),
    ),
    "AveragePoolGrad": (_type_of(0),),
    "BatchNormInternal": (_same_as(0), _same_as(3), _same_as(4), _same_as(3), _same_as(3)),
    "BatchNormalizationGrad": (_same_as(1), _same_as(2), _same_as(2)),
    "BroadcastGradientArgs": (_type_of(0), _type_of(0)),
    "ConcatTraining": (_type_of(0),),
    "ConvGrad": (_same_as(1), _same_as(2), _type_of(2)),
    "ConvTransposeGrad": (_same_as(1), _same_as(2), _type_of(2)),
    "DivGrad": (_same_as(1), _same_as(2)),
    "EmbedLayerNormalization": (_type_of(2), None, _type_of(2)),
    "FusedConv": (_type_of(0),),
    "FusedGemm": (_type_of(0),),
    "FusedMatMul": (_type_of(0),),
    "GatherElementsGrad": (_type_of(0),),
    "GatherGrad": (_type_of(2),),
    "GatherNDGrad": (_type_of(2),),
    "InvertibleLayerNormalizationGrad": (_same_as(1), _same_as(2), _same_as(2)),
    "LayerNormalization": (_same_as(0),),
    "LayerNormalizationGrad": (_same_as(1), _same_as(2), _same_as(2)),
    "MaxPoolGrad": (_type_of(0),),
    "ReduceSumTraining": (_type_of(0),),
    "ResizeGrad": (_same_as(1),),
    "SimplifiedLayerNormalizationGrad": (_same_as(1), _same_as(2)),
    "SkipLayerNormalization": (_same_as(0), None, None, _same_as(0)),
    "SkipSimplifiedLayerNormalization": (_same_as(0), None, None, _same_as(0)),
    "SliceGrad": (_type_of(0),),
    "SoftmaxCrossEntropyLossGrad": (_same_as(1),),
    "SoftmaxCrossEntropyLossInternal": (_type_of(0), _same_as(0)),
    "SoftmaxCrossEntropyLossInternalGrad": (_same_as(1),),
    "SplitTraining": (_type_of(0),) * 64,
}
# The opset from which on ONNX has an operator of this name, too.
_SINCE = {"Gelu": 1, "LayerNormalization": 17}


def is_foreign(node: NodeProto, opset: int) -> bool:
    """Return whether the node has stand-ins in an opset of the default domain."""
    if node.op_type not in _LIKE or node.domain not in ("", "com.microsoft"):
        return False
    return node.domain != "" or node.op_type not in _SINCE or opset < _SINCE[node.op_type]


def stand_ins(node: NodeProto) -> Iterator[NodeProto]:
    """Yield the nodes that stand in for a foreign one, one for each output of which something is known."""
    for output, like in zip(node.output, _LIKE[node.op_type], strict=False):
        if not output or like is None or like.position >= len(node.input) or not node.input[like.position]:
            continue
        template = node.input[like.position]
        if like.in_shape:
            yield helper.make_node("Identity", [template], [output])
        else:
            yield helper.make_node("Reshape", [template, UNKNOWN_SHAPE], [output])


def with_stand_ins(nodes: list[NodeProto], functions: Container[tuple[str, str]], opset: int) -> list[NodeProto]:
    """Return the nodes of a graph with stand-ins for the foreign ones, in subgraphs, too; the nodes are changed.

    Args:
        nodes: The nodes.
        functions: The domains and names of the model's functions, whose calls are not foreign.
        opset: The version of the default domain.
    """
    result: list[NodeProto] = []
    for node in nodes:
        has_stand_ins = is_foreign(node, opset) and (node.domain, node.op_type) not in functions
        result += stand_ins(node) if has_stand_ins else [node]
        for graph in graphs_in(node):
            kept = with_stand_ins(list(graph.node), functions, opset)
            del graph.node[:]
            graph.node.extend(kept)
    return result
