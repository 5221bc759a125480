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
from lnbp_onnx.graphs.faults import fault_of
from lnbp_onnx.graphs.inference import subgraphs_of
from lnbp_onnx.graphs.new_protos import NewProtos
from lnbp_onnx.graphs.operators import graphs_of
from lnbp_onnx.graphs.own_functions import own_functions_apart
from lnbp_onnx.graphs.protos import graph_nodes
from lnbp_onnx.graphs.templates import Copies, copies_kept
from lnbp_onnx.graphs.walkable import refuse_unwalkable

AnyModel = TypeVar("AnyModel", onnx.ModelProto, ir.Model)
GraphOrFunction: TypeAlias = onnx.GraphProto | onnx.FunctionProto

_FUNCTION_VALUE_INFO_IR_VERSION = 10


def apply(model: AnyModel, rewriting: ir.passes.InPlacePass) -> AnyModel:
    """Return `model` with a pass applied; the model itself is left as it was.

    Args:
        model: A ModelProto, whose external data is not looked at, or an ``onnx_ir.Model``.
        rewriting: A pass that adds and removes nodes, functions and imports, removes initializers, appends inputs and
            outputs to the main graph, adds initializers to it and removes outputs from it, pads a node's inputs, trims
            its omitted outputs or names them, or adds attributes to it, and leaves the rest alone.
    """
    with blamed_on_model(model), _collection_paused():
        if isinstance(model, ir.Model):
            refuse_unwalkable(model)
            clone: AnyModel = model.clone()
            _rewrite(rewriting, clone)
            return clone
        copied: AnyModel = copy.deepcopy(model)
        apply_in_place(rewriting, copied)
        return copied


def apply_in_place(rewriting: ir.passes.InPlacePass, proto: onnx.ModelProto) -> ir.passes.PassResult:
    """Apply a pass to `proto` and return its result. An error leaves the proto as it was.

    Raises:
        InvalidModelError: Where the model cannot be read, or has the operator in its training information.
    """
    with blamed_on_model(proto), _collection_paused():
        for training_info in proto.training_info:
            for graph in (training_info.initialization, training_info.algorithm):
                if any(node.domain == spec.DOMAIN for node in graph_nodes(graph.node)):
                    raise InvalidModelError(
                        f"The model's training_info holds nodes of domain {spec.DOMAIN!r}, which are not rewritten "
                        "there (move them to the graph, or remove training_info)."
                    )
        return _apply_in_place(rewriting, proto)


@contextlib.contextmanager
def blamed_on_model(model: onnx.ModelProto | ir.Model) -> Iterator[None]:
    """Turn any error that is not meant for the user into one that says what is wrong with the model.

    Raises:
        InvalidModelError: In the place of an error of another kind, where the model has a fault.
        LnbpError: Where none is found in it.
    """
    try:
        yield
    except LnbpError:
        raise
    except Exception as error:
        fault = _fault(model, error)
        if fault is not None:
            raise InvalidModelError(f"The model cannot be used: {fault.rstrip('.')}.") from error
        raise LnbpError(
            f"{type(error).__name__}: {_first_cause(error)} (no fault was found in the model, so this is one of "
            "lnbp-onnx: please report it with the model)."
        ) from error


def _fault(model: onnx.ModelProto | ir.Model, error: Exception) -> str | None:
    if isinstance(error, RecursionError):
        return "its graphs are nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(model, ir.Model):
        try:
            refuse_unwalkable(model)
            model = ir.to_proto(model)
        except LnbpError as fault_found:
            return str(fault_found)
        except Exception as reason:
            return f"onnx_ir cannot write it: {_first_cause(reason)}"
    fault = fault_of(model)
    if fault is None and isinstance(error, ir.serde.SerdeError):
        return f"onnx_ir cannot write it: {_first_cause(error)}"
    return fault


def _first_cause(error: BaseException) -> BaseException:
    """Return what an error comes from: onnx_ir wraps what went wrong in errors of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


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
    except Exception as error:
        raise InvalidModelError(f"The model cannot be read: {_first_cause(error)}.") from error
    origins: dict[ir.Node, onnx.NodeProto] = {}
    _pair(model.graph, proto.graph, origins)
    functions = dict(zip(model.functions.values(), proto.functions, strict=True))
    for function, function_proto in functions.items():
        _pair(function.graph, function_proto, origins)
    # A function that is called like a standard operator is looked for among the new nodes, which then have to be there.
    has_own_operators = any(function.domain == "" for function in model.functions.values())
    copies = copies_kept(model, () if has_own_operators else [graph for graph, _ in graphs_of(model.graph, "graph")])
    pass_result = _rewrite(rewriting, model)
    if not pass_result.modified:
        return pass_result

    proto.ir_version = model.ir_version or proto.ir_version
    _write_imports(model.opset_imports, proto)
    if not proto.training_info:
        # The graphs of a training_info may use the initializers. This comes before the nodes: they are copied where
        # others change.
        _remove_initializers(model.graph, proto.graph, origins)
    new_protos = NewProtos()
    _write_graph(model.graph, proto.graph, origins, copies, new_protos)
    added_inputs = model.graph.inputs[len(proto.graph.input) :]
    proto.graph.input.extend(ir.serde.serialize_value(value) for value in added_inputs)
    names = {tensor.name for tensor in proto.graph.initializer}
    added = [value.const_value for name, value in model.graph.initializers.items() if name not in names]
    proto.graph.initializer.extend(ir.serde.serialize_tensor(tensor) for tensor in added if tensor is not None)
    result = onnx.ModelProto()
    for function in model.functions.values():
        function_proto = functions.get(function)
        if function_proto is None:
            function_proto = ir.serde.serialize_function(function)
            # onnx_ir leaves the default domain out, which the checker wants.
            function_proto.domain = function.domain
        else:
            _write_imports(function.opset_imports, function_proto)
            _write_graph(function.graph, function_proto, origins, copies, new_protos)
        if proto.ir_version < _FUNCTION_VALUE_INFO_IR_VERSION:
            function_proto.ClearField("value_info")
        result.functions.append(function_proto)
    proto.ClearField("functions")
    proto.MergeFrom(result)
    return pass_result


def _rewrite(rewriting: ir.passes.InPlacePass, model: ir.Model) -> ir.passes.PassResult:
    refuse_unwalkable(model)
    _name_default_domain(model)
    with own_functions_apart(model):
        return rewriting(model)


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


def _write_graph(
    graph: ir.Graph,
    proto: GraphOrFunction,
    origins: dict[ir.Node, onnx.NodeProto],
    copies: Copies,
    new_protos: NewProtos,
) -> None:
    """Make the nodes and outputs of `proto` those of `graph`; a node that was read from it is kept as it was read."""
    if isinstance(proto, onnx.GraphProto):
        _write_outputs(graph, proto)
    own_copies = copies.get(graph, {})
    nodes = [(node, None if node in own_copies else origins.get(node)) for node in graph]
    for node, node_proto in nodes:
        if node_proto is not None:
            _write_node(node, node_proto)
            for subgraph, subgraph_proto in _subgraph_pairs(node, node_proto):
                _write_graph(subgraph, subgraph_proto, origins, copies, new_protos)
    new_nodes = [node for node, node_proto in nodes if node_proto is None]
    if not new_nodes and len(nodes) == len(proto.node):
        return
    result = type(proto)()
    for node, node_proto in nodes:
        if node in own_copies:
            own_copies[node].write_nodes(result, new_protos)
        elif node_proto is None:
            new_protos.write_node(node, result.node.add())
        else:
            result.node.add().CopyFrom(node_proto)
    if proto.value_info:
        outputs = {output.name for node, _ in nodes for output in node.outputs}
        removed = {output for node in proto.node for output in node.output} - outputs
        result.value_info.extend(info for info in proto.value_info if info.name not in removed)
    declared = {info.name for info in result.value_info} | {value.name for value in graph.outputs}
    for node in new_nodes:
        if node in own_copies:
            own_copies[node].write_values(result, declared, new_protos)
            continue
        for output in node.outputs:
            if output.type and output.name not in declared:
                new_protos.write_value(output, result.value_info.add())
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


def _write_outputs(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Remove outputs that `graph` does not have any more, which stay values of it, and append those that are new."""
    names = {output.name for output in graph.outputs}
    declared = {info.name for info in proto.value_info}
    kept = [output for output in proto.output if output.name in names]
    removed = [output for output in proto.output if output.name not in names and output.name not in declared]
    added = [ir.serde.serialize_value(output) for output in graph.outputs[len(kept) :]]
    if len(kept) < len(proto.output):
        result = onnx.GraphProto(output=kept, value_info=removed)
        proto.ClearField("output")
        proto.MergeFrom(result)
    proto.output.extend(added)


def _write_node(node: ir.Node, proto: onnx.NodeProto) -> None:
    """Write what a pass changes of a node that it keeps: the operator, how many operands, names, attributes."""
    proto.op_type = node.op_type
    proto.input.extend([""] * (len(node.inputs) - len(proto.input)))
    del proto.output[len(node.outputs) :]
    proto.output.extend([""] * (len(node.outputs) - len(proto.output)))
    for index, output in enumerate(node.outputs):
        if output.name and not proto.output[index]:
            proto.output[index] = output.name
    written = {attribute.name: attribute for attribute in proto.attribute}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.INTS and name in written and not attribute.is_ref():
            written[name].ints[:] = attribute.as_ints()
    added = [attribute for name, attribute in node.attributes.items() if name not in written]
    proto.attribute.extend(map(ir.serde.serialize_attribute, added))
