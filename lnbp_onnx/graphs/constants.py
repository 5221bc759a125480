# SPDX-License-Identifier: Apache-2.0
"""What is computed of constants alone."""

from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from lnbp_onnx.graphs.inference import constant_tensor
from lnbp_onnx.graphs.replace import Replacement, replace_nodes

# None gives more elements than it takes.
_FOLDED = frozenset({"Cast", "Concat", "Identity", "Reshape", "Squeeze", "Unsqueeze"})

# With more it is no list of axes or lengths.
_MOST_ELEMENTS = 1024


def fold_lists(graph: ir.Graph, opset_imports: Mapping[str, int]) -> None:
    """Make constants of the integers that a graph casts, shapes and joins of constants, such as axes and lengths.

    Exporters write lists so, and little is known of a reduction whose axes are computed.
    """
    sizes: dict[ir.Value, int] = {}
    leaves: dict[ir.Value, ir.TensorProtocol] = {}
    nodes = []
    for node in graph:
        if node.domain != "" or node.op_type not in _FOLDED or len(node.outputs) != 1:
            continue
        operands = [value for value in node.inputs if value is not None]
        for value in operands:
            tensor = None if value in sizes else constant_tensor(value)
            if tensor is None or not tensor.dtype.is_integer():
                continue
            if tensor.size <= _MOST_ELEMENTS:
                sizes[value], leaves[value] = tensor.size, tensor
        size = sum(sizes.get(value, _MOST_ELEMENTS + 1) for value in operands)
        is_cast_to_others = node.op_type == "Cast" and not ir.DataType(node.attributes.get_int("to", 0)).is_integer()
        if operands and size <= _MOST_ELEMENTS and not is_cast_to_others:
            sizes[node.outputs[0]] = size
            nodes.append(node)
    if not nodes:
        return
    values = [node.outputs[0] for node in nodes]
    proto = onnx.GraphProto(
        name="lists",
        node=[ir.serde.serialize_node(node) for node in nodes],
        initializer=[_named(tensor, value) for value, tensor in leaves.items()],
        output=[onnx.ValueInfoProto(name=value.name) for value in values],
    )
    opsets = [onnx.helper.make_opsetid(*each) for each in opset_imports.items()]
    try:
        results = ReferenceEvaluator(onnx.helper.make_model(proto, opset_imports=opsets)).run(None, {})
    except Exception:  # a node that cannot be computed is refused where it is read
        return
    replacements = []
    for node, result in zip(nodes, results, strict=True):
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(result))], name=node.name)
        replacements.append(Replacement(node, [constant], constant.outputs))
    replace_nodes(replacements)


def _named(tensor: ir.TensorProtocol, value: ir.Value) -> onnx.TensorProto:
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = value.name or ""
    return proto
