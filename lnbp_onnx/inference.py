# SPDX-License-Identifier: Apache-2.0
"""Element types and shapes of a graph's values, as far as declarations and ONNX's shape inference know them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from lnbp_onnx import foreign
from lnbp_onnx.errors import InvalidModelError, LnbpError
from lnbp_onnx.node import TensorInfo
from lnbp_onnx.protos import graph_nodes, graphs_in, model_nodes

# Larger tensors carry no shape information and would be copied for nothing.
_LARGEST_TENSOR_KEPT = 1024


def info_of(value: ir.Value) -> TensorInfo:
    """Return what the value itself declares."""
    element_type = None if value.dtype is None else int(value.dtype)
    shape = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return TensorInfo(element_type or None, shape)


def known(value: ir.Value, infos: Mapping[ir.Value, TensorInfo]) -> TensorInfo:
    """Return what is known of a value; of one that comes from nowhere in the graph, what it declares."""
    return infos.get(value) or info_of(value)


def declare(value: ir.Value, info: TensorInfo) -> None:
    """Make the value declare what is known of it."""
    value.type = None if info.element_type is None else ir.TensorType(ir.DataType(info.element_type))
    value.shape = None if info.shape is None else ir.Shape(info.shape)


def infer(
    graph: ir.Graph, functions: Iterable[ir.Function], opset_imports: Mapping[str, int]
) -> dict[ir.Value, TensorInfo]:
    """Infer the element types and shapes of a graph's values, subgraphs included.

    Args:
        graph: The graph, which is left as it is; its inputs carry what is known of them.
        functions: Those that the graph may call.
        opset_imports: The operator sets that the graph's nodes belong to.

    Returns:
        What is known of each value; where inference fails, what the values themselves declare.

    Raises:
        InvalidNodeError: Where the graph holds a LayerNormBackprop node that the specification refuses.
        InvalidModelError: Where a forward normalisation has an axis that would end onnx.
    """
    infos = {value: info_of(value) for value in _values(graph)}
    skeleton = _skeleton(graph, functions, opset_imports)
    _refuse_axes_that_end_onnx(skeleton)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except LnbpError:
        raise
    except Exception:  # onnx raises plain RuntimeErrors for models it cannot infer
        return infos
    _collect(graph, inferred.graph, infos)
    return infos


def _refuse_axes_that_end_onnx(model: onnx.ModelProto) -> None:
    # onnx 1.23 cuts the axis of LayerNormalization to 32 bits, and writes beside the shape where that is negative.
    for node in model_nodes(model):
        for attribute in node.attribute:
            if node.op_type == "LayerNormalization" and attribute.name == "axis" and attribute.i >= 2**31:
                name = node.name or "".join(node.output[:1])
                raise InvalidModelError(
                    f"LayerNormalization node {name!r}: attribute 'axis' is {attribute.i}; "
                    "it must be in [-rank, rank - 1] (the last axis is -1)."
                )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for each in (graph, *graph.subgraphs()):
        yield from each.inputs
        yield from each.initializers.values()
        for node in each:
            yield from node.outputs


def _skeleton(graph: ir.Graph, functions: Iterable[ir.Function], opset_imports: Mapping[str, int]) -> onnx.ModelProto:
    """Return a model to infer: the graph with its large initializers as inputs, and stand-ins for foreign operators."""
    clone = graph.clone(allow_outer_scope_values=True)
    clone.opset_imports.update(opset_imports)
    for name, value in list(clone.initializers.items()):
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.nbytes > _LARGEST_TENSOR_KEPT:
            del clone.initializers[name]
            if value not in clone.inputs:
                clone.inputs.append(value)
    clones = [function.clone() for function in _called(graph, functions)]
    model = ir.to_proto(ir.Model(clone, ir_version=onnx.IR_VERSION, functions=clones))
    if any(foreign.is_foreign(node) for node in graph_nodes(model.graph.node)):
        own = {(function.domain, function.name) for function in model.functions}
        nodes = foreign.with_stand_ins(list(model.graph.node), own)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        shape = onnx.helper.make_tensor_value_info(foreign.UNKNOWN_SHAPE, onnx.TensorProto.INT64, [None])
        model.graph.input.append(shape)
    return model


def _called(graph: ir.Graph, functions: Iterable[ir.Function]) -> list[ir.Function]:
    """Return the functions that a graph calls, itself or through others."""
    by_identifier = {function.identifier(): function for function in functions}
    called: dict[ir.OperatorIdentifier, ir.Function] = {}
    graphs = [graph]
    while graphs:
        for node in graphs.pop().all_nodes():
            identifier = node.op_identifier()
            if identifier in by_identifier and identifier not in called:
                called[identifier] = by_identifier[identifier]
                graphs.append(by_identifier[identifier].graph)
    return list(called.values())


def _collect(graph: ir.Graph, proto: onnx.GraphProto, infos: dict[ir.Value, TensorInfo]) -> None:
    """Add what the inferred `proto` of `graph` says to `infos`."""
    inferred = {
        info.name: TensorInfo.from_type_proto(info.type)
        for group in (proto.input, proto.value_info, proto.output)
        for info in group
    }
    for value in (*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)):
        info = inferred.get(value.name or "")
        if info is not None:
            infos[value] = _merge(infos[value], info)
    # Foreign operators, which have no subgraphs, may have become more nodes or fewer.
    holders = [node for node in graph if any(subgraphs_of(node))]
    holder_protos = [node for node in proto.node if any(graphs_in(node))]
    for node, node_proto in zip(holders, holder_protos, strict=True):
        attributes = {attribute.name: attribute for attribute in node_proto.attribute}
        for name, subgraphs in subgraphs_of(node):
            attribute = attributes[name]
            protos = attribute.graphs if attribute.graphs else [attribute.g]
            for subgraph, subgraph_proto in zip(subgraphs, protos, strict=True):
                _collect(subgraph, subgraph_proto, infos)


def subgraphs_of(node: ir.Node) -> Iterator[tuple[str, Sequence[ir.Graph]]]:
    """Yield the attributes of a node that hold graphs: their names and the graphs."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield name, attribute.as_graphs()


def _merge(declared: TensorInfo, inferred: TensorInfo) -> TensorInfo:
    shape = declared.shape
    if shape is None:
        shape = inferred.shape
    elif inferred.shape is not None and len(shape) == len(inferred.shape):
        shape = tuple(b if isinstance(b, int) or a is None else a for a, b in zip(shape, inferred.shape, strict=True))
    return TensorInfo(declared.element_type or inferred.element_type, shape)
