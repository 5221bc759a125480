# SPDX-License-Identifier: Apache-2.0
"""Running a pass on a model so that all it did not touch stays as it was, field by field.

``onnx_ir`` reads a model into objects and writes them out again, and drops what it has no object for
(``training_info``, sparse initializers, trailing names of omitted outputs). So a ModelProto is not written anew: what
a pass added or removed in the objects is carried over to the proto that they were read from.
"""

import contextlib
import copy
import gc
from collections.abc import Iterator
from typing import TypeAlias, TypeVar

import onnx
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError, LnbpError
from lnbp_onnx.faults import fault_of
from lnbp_onnx.inference import subgraphs_of
from lnbp_onnx.protos import graph_nodes

AnyModel = TypeVar("AnyModel", onnx.ModelProto, ir.Model)
GraphOrFunction: TypeAlias = onnx.GraphProto | onnx.FunctionProto

_FUNCTION_VALUE_INFO_IR_VERSION = 10


def apply(rewriting: ir.passes.InPlacePass, model: AnyModel) -> AnyModel:
    """Return `model` with a pass applied; the model itself is left as it was.

    Args:
        rewriting: A pass that adds and removes nodes, functions and imports, removes initializers, appends outputs to
            the main graph, pads a node's inputs, trims its omitted outputs or adds attributes to it, and leaves the
            rest alone.
        model: A ModelProto, whose external data is not looked at, or an ``onnx_ir.Model``.
    """
    if isinstance(model, ir.Model):
        clone: AnyModel = model.clone()
        _name_default_domain(clone)
        with _collection_paused():
            rewriting(clone)
        return clone
    if not isinstance(model, onnx.ModelProto):
        raise InvalidModelError(
            f"The model is of type {type(model).__name__}; it must be an onnx.ModelProto or an onnx_ir.Model (read a "
            "file with onnx.load)."
        )
    copied: AnyModel = copy.deepcopy(model)
    apply_in_place(rewriting, copied)
    return copied


def apply_in_place(rewriting: ir.passes.InPlacePass, proto: onnx.ModelProto) -> ir.passes.PassResult:
    """Apply a pass to `proto` and return its result. An error leaves the proto as it was.

    Raises:
        InvalidModelError: Where the model cannot be read, or has the operator in its training information.
    """
    for training_info in proto.training_info:
        for graph in (training_info.initialization, training_info.algorithm):
            if any(node.domain == spec.DOMAIN for node in graph_nodes(graph.node)):
                raise InvalidModelError(
                    f"The model's training_info holds nodes of domain {spec.DOMAIN!r}, which are not rewritten there "
                    "(move them to the graph, or remove training_info)."
                )
    with _collection_paused(), _blamed_on_model(proto):
        return _apply_in_place(rewriting, proto)


@contextlib.contextmanager
def _blamed_on_model(proto: onnx.ModelProto) -> Iterator[None]:
    """Turn any error that is not meant for the user into one that says what is wrong with the model, if anything is."""
    try:
        yield
    except LnbpError:
        raise
    except Exception as error:
        fault = fault_of(proto)
        if fault is None:
            raise
        raise InvalidModelError(f"The model cannot be rewritten: {fault.rstrip('.')}.") from error


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause the collection of cyclic garbage: with 10,000 nodes it is half of a pass's time, and finds nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _apply_in_place(rewriting: ir.passes.InPlacePass, proto: onnx.ModelProto) -> ir.passes.PassResult:
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir wraps what went wrong in errors of its own
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise InvalidModelError(f"The model cannot be read: {reason}.") from error
    _name_default_domain(model)
    origins: dict[ir.Node, onnx.NodeProto] = {}
    _pair(model.graph, proto.graph, origins)
    functions = dict(zip(model.functions.values(), proto.functions, strict=True))
    for function, function_proto in functions.items():
        _pair(function.graph, function_proto, origins)
    pass_result = rewriting(model)
    if not pass_result.modified:
        return pass_result

    proto.ir_version = model.ir_version or proto.ir_version
    _write_imports(model.opset_imports, proto)
    _write_graph(model.graph, proto.graph, origins)
    added_outputs = model.graph.outputs[len(proto.graph.output) :]
    proto.graph.output.extend(ir.serde.serialize_value(output) for output in added_outputs)
    if not proto.training_info:
        # The graphs of a training_info may use the initializers.
        _remove_initializers(model.graph, proto.graph, origins)
    result = onnx.ModelProto()
    for function in model.functions.values():
        function_proto = functions.get(function)
        if function_proto is None:
            function_proto = ir.serde.serialize_function(function)
        else:
            _write_imports(function.opset_imports, function_proto)
            _write_graph(function.graph, function_proto, origins)
        if proto.ir_version < _FUNCTION_VALUE_INFO_IR_VERSION:
            function_proto.ClearField("value_info")
        result.functions.append(function_proto)
    proto.ClearField("functions")
    proto.MergeFrom(result)
    return pass_result


def _pair(graph: ir.Graph, proto: GraphOrFunction, origins: dict[ir.Node, onnx.NodeProto]) -> None:
    """Note for each node of a graph, subgraphs included, the proto that it was read from."""
    for node, node_proto in zip(graph, proto.node, strict=True):
        origins[node] = node_proto
        for subgraph, subgraph_proto in _subgraph_pairs(node, node_proto):
            _pair(subgraph, subgraph_proto, origins)


def _subgraph_pairs(node: ir.Node, proto: onnx.NodeProto) -> Iterator[tuple[ir.Graph, onnx.GraphProto]]:
    attributes = {attribute.name: attribute for attribute in proto.attribute}
    for name, subgraphs in subgraphs_of(node):
        attribute = attributes[name]
        is_list = attribute.type == onnx.AttributeProto.GRAPHS
        yield from zip(subgraphs, attribute.graphs if is_list else [attribute.g], strict=True)


def _write_imports(opset_imports: dict[str, int], proto: onnx.ModelProto | onnx.FunctionProto) -> None:
    kept = [opset for opset in proto.opset_import if _canonical(opset.domain) in opset_imports]
    for opset in kept:
        opset.version = opset_imports[_canonical(opset.domain)]
    known = {_canonical(opset.domain) for opset in kept}
    added = [onnx.helper.make_opsetid(*item) for item in opset_imports.items() if item[0] not in known]
    result = type(proto)(opset_import=[*kept, *added])
    proto.ClearField("opset_import")
    proto.MergeFrom(result)


def _name_default_domain(model: ir.Model) -> None:
    """Import the default domain under one of its two names, as ``onnx_ir`` does with those of nodes."""
    for opset_imports in (model.opset_imports, *(each.opset_imports for each in model.functions.values())):
        if "ai.onnx" in opset_imports:
            version = opset_imports.pop("ai.onnx")
            opset_imports.setdefault("", version)


def _canonical(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _write_graph(graph: ir.Graph, proto: GraphOrFunction, origins: dict[ir.Node, onnx.NodeProto]) -> None:
    """Make the nodes of `proto` those of `graph`; a node that was read from it is kept as it was read."""
    nodes = [origins.get(node) for node in graph]
    for node, node_proto in zip(graph, nodes, strict=True):
        if node_proto is not None:
            _write_node(node, node_proto)
            for subgraph, subgraph_proto in _subgraph_pairs(node, node_proto):
                _write_graph(subgraph, subgraph_proto, origins)
    if None not in nodes and len(nodes) == len(proto.node):
        return
    result = type(proto)(
        node=[
            ir.serde.serialize_node(node) if node_proto is None else node_proto
            for node, node_proto in zip(graph, nodes, strict=True)
        ]
    )
    outputs = {output for node in result.node for output in node.output}
    removed = {output for node in proto.node for output in node.output} - outputs
    result.value_info.extend(info for info in proto.value_info if info.name not in removed)
    declared = {info.name for info in result.value_info} | {value.name for value in graph.outputs}
    for node, node_proto in zip(graph, nodes, strict=True):
        if node_proto is None:
            result.value_info.extend(
                ir.serde.serialize_value(output)
                for output in node.outputs
                if output.type and output.name not in declared
            )
    proto.ClearField("node")
    proto.ClearField("value_info")
    proto.MergeFrom(result)


def _remove_initializers(graph: ir.Graph, proto: onnx.GraphProto, origins: dict[ir.Node, onnx.NodeProto]) -> None:
    """Remove from `proto` the initializers that `graph` does not have any more, subgraphs included."""
    for index in reversed(range(len(proto.initializer))):
        if proto.initializer[index].name not in graph.initializers:
            del proto.initializer[index]
    for node in graph:
        if node in origins:
            for subgraph, subgraph_proto in _subgraph_pairs(node, origins[node]):
                _remove_initializers(subgraph, subgraph_proto, origins)


def _write_node(node: ir.Node, proto: onnx.NodeProto) -> None:
    """Write what a pass changes of a node that it keeps: the operator, the number of operands, added attributes."""
    proto.op_type = node.op_type
    proto.input.extend([""] * (len(node.inputs) - len(proto.input)))
    del proto.output[len(node.outputs) :]
    written = {attribute.name for attribute in proto.attribute}
    proto.attribute.extend(ir.to_proto(attribute) for name, attribute in node.attributes.items() if name not in written)
