# SPDX-License-Identifier: Apache-2.0
"""Element types and shapes of a graph's values, as far as declarations and ONNX's shape inference know them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from lnbp_onnx.errors import LnbpError
from lnbp_onnx.graphs import foreign, onnx_calls
from lnbp_onnx.graphs.new_protos import NewProtos
from lnbp_onnx.graphs.protos import graph_nodes, graphs_in
from lnbp_onnx.node import TensorInfo

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


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer that no caller can replace, or of a Constant node.

    External data is not looked at: a tensor that has its elements there is none.
    """
    node = value.producer()
    tensor: ir.TensorProtocol | None = None
    if node is not None and node.op_type == "Constant" and node.domain == "":
        attribute = next(iter(node.attributes.values()), None)
        if attribute is None or attribute.is_ref():
            return None
        if attribute.type == ir.AttributeType.TENSOR:
            # as_tensor() would check each member of the protocol, which for thousands of constants takes long.
            tensor = attribute.value
        elif attribute.name in ("value_float", "value_floats"):
            tensor = ir.tensor(np.array(attribute.value, np.float32))
        elif attribute.name in ("value_int", "value_ints"):
            tensor = ir.tensor(np.array(attribute.value, np.int64))
    elif value.is_initializer() and not value.is_graph_input():
        tensor = value.const_value
    return None if isinstance(tensor, ir.ExternalTensor) else tensor


class Functions:
    """The functions that graphs may call. Each is written once, however many graphs call it."""

    def __init__(self, functions: Iterable[ir.Function]) -> None:
        self._functions = {function.identifier(): function for function in functions}
        self._protos: dict[ir.OperatorIdentifier, onnx.FunctionProto] = {}
        self._callees: dict[ir.OperatorIdentifier, list[ir.OperatorIdentifier]] = {}

    def called_by(self, graph: ir.Graph) -> list[onnx.FunctionProto]:
        """Return the functions that a graph calls, itself or through others."""
        called: dict[ir.OperatorIdentifier, onnx.FunctionProto] = {}
        pending = self._called(graph)
        while pending:
            identifier = pending.pop()
            if identifier in called:
                continue
            if identifier not in self._protos:
                function = self._functions[identifier]
                self._protos[identifier] = ir.serde.serialize_function(function)
                self._callees[identifier] = self._called(function.graph)
            called[identifier] = self._protos[identifier]
            pending += self._callees[identifier]
        return list(called.values())

    def _called(self, graph: ir.Graph) -> list[ir.OperatorIdentifier]:
        identifiers = dict.fromkeys(node.op_identifier() for node in graph.all_nodes())
        return [identifier for identifier in identifiers if identifier in self._functions]


def infer(
    graph: ir.Graph,
    functions: Functions,
    opset_imports: Mapping[str, int],
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
        InvalidModelError: Where the model would end onnx.
    """
    infos = {value: info_of(value) for value in _values(graph)}
    skeleton = _skeleton(graph, functions, opset_imports)
    try:
        inferred = onnx_calls.infer_shapes(skeleton)
    except LnbpError:
        raise
    except Exception:  # onnx raises plain RuntimeErrors for models it cannot infer
        return infos
    _collect(graph, inferred.graph, infos)
    return infos


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for each in (graph, *graph.subgraphs()):
        yield from each.inputs
        yield from each.initializers.values()
        for node in each:
            # Of what comes from nowhere, as a sparse initializer does for onnx_ir, something may be declared.
            yield from (value for value in node.inputs if value is not None and value.producer() is None)
            yield from node.outputs


def _skeleton(graph: ir.Graph, functions: Functions, opset_imports: Mapping[str, int]) -> onnx.ModelProto:
    """Return a model to infer: the graph with stand-ins for foreign operators.

    Its large initializers, and those that a caller may replace, are inputs only.
    """
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    model.opset_import.extend(onnx.helper.make_opsetid(*each) for each in opset_imports.items())
    proto, protos = model.graph, NewProtos()
    proto.name = graph.name or "graph"
    for value in graph.inputs:
        protos.write_value(value, proto.input.add())
    for value in graph.initializers.values():
        tensor = constant_tensor(value)
        if tensor is not None and tensor.nbytes <= _LARGEST_TENSOR_KEPT:
            proto.initializer.append(ir.serde.serialize_tensor(tensor))
            proto.initializer[-1].name = value.name or ""
        elif not value.is_graph_input():
            protos.write_value(value, proto.input.add())
    for node in graph:
        protos.write_node(node, proto.node.add())
        for output in node.outputs:
            if output.name and (output.type is not None or output.shape is not None) and not output.is_graph_output():
                protos.write_value(output, proto.value_info.add())
    for value in graph.outputs:
        protos.write_value(value, proto.output.add())
    model.functions.extend(functions.called_by(graph))
    opset = opset_imports.get("", 0)
    if any(foreign.is_foreign(node, opset) for node in graph_nodes(model.graph.node)):
        own = {(function.domain, function.name) for function in model.functions}
        nodes = foreign.with_stand_ins(list(model.graph.node), own, opset)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        shape = onnx.helper.make_tensor_value_info(foreign.UNKNOWN_SHAPE, onnx.TensorProto.INT64, [None])
        model.graph.input.append(shape)
    return model


def _collect(graph: ir.Graph, proto: onnx.GraphProto, infos: dict[ir.Value, TensorInfo]) -> None:
    """Add what the inferred `proto` of `graph` says to `infos`."""
    inferred = {info.name: info for group in (proto.input, proto.value_info, proto.output) for info in group}
    for value in (*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)):
        info = inferred.get(value.name or "")
        if info is not None:
            infos[value] = _merge(infos[value], TensorInfo.from_type_proto(info.type))
    # Foreign operators and calls of functions may have become more nodes or fewer.
    holders = {tuple(node.output): node for node in proto.node if any(graphs_in(node))}
    for node in graph:
        holder = holders.get(tuple(output.name or "" for output in node.outputs))
        if holder is None:
            continue
        attributes = {attribute.name: attribute for attribute in holder.attribute}
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
