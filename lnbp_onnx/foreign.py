# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for ONNX Runtime's own operators, which ONNX's shape inference does not know and would stop at.

Each is a standard operator whose output has the type, and where it is an ``Identity`` the shape, of the output that it
stands in for. They are seen by shape inference only.
"""

from collections.abc import Container, Iterator

from onnx import NodeProto, helper

from lnbp_onnx.protos import graphs_in

UNKNOWN_SHAPE = "lnbp/unknown_shape"
"""A graph input that a model with stand-ins must have: an int64 vector of unknown length."""

# For each output: the input that has its type and shape, or the one that has its type alone, as ~position.
_LIKE: dict[str, tuple[int, ...]] = {
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
        (0,),
    ),
    "AveragePoolGrad": (~0,),
    "BatchNormInternal": (0, 3, 4, 3, 3),
    "BatchNormalizationGrad": (1, 2, 2),
    "BroadcastGradientArgs": (~0, ~0),
    "ConcatTraining": (~0,),
    "ConvGrad": (1, 2, ~2),
    "DivGrad": (1, 2),
    "FusedMatMul": (~0,),
    "GatherElementsGrad": (~0,),
    "GatherGrad": (~2,),
    "GatherNDGrad": (~2,),
    "InvertibleLayerNormalizationGrad": (1, 2, 2),
    "LayerNormalizationGrad": (1, 2, 2),
    "MaxPoolGrad": (~0,),
    "ReduceSumTraining": (~0,),
    "SimplifiedLayerNormalizationGrad": (1, 2),
    "SliceGrad": (~0,),
    "SoftmaxCrossEntropyLossGrad": (1,),
    "SplitTraining": (~0,) * 64,
}
# ONNX has an operator of this name, too.
_NOT_IN_DEFAULT_DOMAIN = ("Gelu",)


def is_foreign(node: NodeProto) -> bool:
    """Return whether the node has stand-ins."""
    in_default_domain = node.domain == "" and node.op_type not in _NOT_IN_DEFAULT_DOMAIN
    return node.op_type in _LIKE and (node.domain == "com.microsoft" or in_default_domain)


def stand_ins(node: NodeProto) -> Iterator[NodeProto]:
    """Yield the nodes that stand in for a foreign one, one for each output of which something is known."""
    for output, like in zip(node.output, _LIKE[node.op_type], strict=False):
        position = like if like >= 0 else ~like
        if not output or position >= len(node.input) or not node.input[position]:
            continue
        if like >= 0:
            yield helper.make_node("Identity", [node.input[position]], [output])
        else:
            yield helper.make_node("Reshape", [node.input[position], UNKNOWN_SHAPE], [output])


def with_stand_ins(nodes: list[NodeProto], functions: Container[tuple[str, str]]) -> list[NodeProto]:
    """Return the nodes of a graph with stand-ins for the foreign ones, in subgraphs, too; the nodes are changed.

    Args:
        nodes: The nodes.
        functions: The domains and names of the model's functions, whose calls are not foreign.
    """
    result: list[NodeProto] = []
    for node in nodes:
        has_stand_ins = is_foreign(node) and (node.domain, node.op_type) not in functions
        result += stand_ins(node) if has_stand_ins else [node]
        for graph in graphs_in(node):
            kept = with_stand_ins(list(graph.node), functions)
            del graph.node[:]
            graph.node.extend(kept)
    return result
