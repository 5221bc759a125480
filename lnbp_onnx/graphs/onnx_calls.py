# SPDX-License-Identifier: Apache-2.0
"""Every call of onnx's checker and shape inference: what ends them, or never ends, is kept from them.

They run inside this process, and some models that they are asked about end it: an attribute that is cut to 32 bits, an
operand without a type that is looked at all the same. Trying each operator of onnx 1.20 to 1.23 with extreme attributes
and operands showed which. A model that no runtime can take is refused; a node that only inference stumbles over is
hidden from it, and its outputs have the types that the model declares.
"""

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import onnx
import onnx.inliner
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.graphs.dependencies import CircleError, dependencies_first
from lnbp_onnx.graphs.protos import graph_nodes, initializers, model_nodes, nested_graphs, proto_name

_Key = TypeVar("_Key", bound=Hashable)

# onnx's checker has the same limit in 1.23.
_MOST_FUNCTIONS = 10_000
# onnx's own limit from 1.21 on; older ones run out of stack.
_DEEPEST_CALLS = 100
_MOST_CALLED_NODES = 200_000
# For each call onnx copies its table of the functions, which makes inference of many calls of many functions endless.
_MOST_FUNCTIONS_INFERRED = 64

# The version that introduced functions in models.
_IR_VERSION_OF_FUNCTIONS = 8

_HIDDEN_DOMAIN = "lnbp.hidden"

# They look at the type of an operand that may have none, or at a shape of the wrong rank.
_HIDDEN = frozenset({"MaxUnpool", "RegexFullMatch"})
_HIDDEN_DOMAINS = frozenset({"ai.onnx.ml"})

# Where any integer is an integer: numbers that are data, and ends that stand for "to the end".
_ANY_INTEGER = frozenset({"Constant", "Slice"})
_INT32 = range(-(2**31), 2**31)
# The smallest and the largest value of what inference multiplies, allocates by or counts to.
_RANGES = {"batch_dims": (0, 64), "blocksize": (1, 2**15 - 1)}

# A longer vector of integers is no shape.
_LONGEST_SHAPE = 64
# With data propagation, inference makes a dimension for each element of a vector that goes in or comes out.
_PROPAGATING = frozenset(
    {
        *("Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Size", "Slice"),
        *("Squeeze", "Sub", "Unsqueeze", "Reshape", "Expand", "ConstantOfShape"),
    }
)
# The element types of shapes and their parts; of what comes from an operator that onnx does not know nothing is known.
_OF_SHAPES = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.UNDEFINED})
_SHAPED_BY = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}
_LENGTH_IS_MADE_UP = 2**40


def check_model(model: ModelProto) -> None:
    """Check a model with onnx's checker and strict inference.

    Raises:
        InvalidModelError: Where they refuse it, or it would end them.
    """
    refuse_runaway_calls(model)
    _refuse_attributes(model)
    checked = model
    if model.functions and model.ir_version < _IR_VERSION_OF_FUNCTIONS:
        # Of a model that says so onnx's checker would pass over the functions.
        checked = copy.deepcopy(model)
        checked.ir_version = _IR_VERSION_OF_FUNCTIONS
    try:
        onnx.checker.check_model(checked)
        onnx.shape_inference.infer_shapes(_made_safe(_calls_written_out(model)), check_type=True, strict_mode=True)
    except Exception as error:  # onnx has two exceptions of its own, and lets others through
        raise InvalidModelError(f"onnx refuses the model: {str(error).rstrip('.')}.") from error


def infer_shapes(model: ModelProto) -> ModelProto:
    """Return a model with the types and shapes that follow from its inputs and from shapes that it computes.

    Vectors too long for a shape are not followed by their elements. Of the outputs of calls nothing is inferred where
    many functions cannot be written out in the graph, since they import other operator sets than the model.

    Raises:
        InvalidModelError: Where the model would end onnx.
    """
    refuse_runaway_calls(model)
    _refuse_attributes(model)
    inferred = onnx.shape_inference.infer_shapes(_made_safe(_calls_written_out(model)))
    if not _computes_shapes(inferred):
        return inferred
    functions = {(function.domain, function.name) for function in inferred.functions}
    lengths = _long_vectors(inferred.graph)
    for node in graph_nodes(inferred.graph.node):
        if (node.domain, node.op_type) in functions or (
            node.op_type in _PROPAGATING and any(name in lengths for name in (*node.input, *node.output))
        ):
            node.domain = _HIDDEN_DOMAIN
    _forget_made_up_symbols(inferred.graph, _symbols(model.graph))
    inferred.ClearField("functions")
    _import_hidden_domain(inferred)
    return onnx.shape_inference.infer_shapes(inferred, data_prop=True)


def refuse_runaway_calls(model: ModelProto) -> None:
    """Refuse functions that call each other in a circle, too deeply, or in so many ways that nothing follows them.

    Raises:
        InvalidModelError: Where there are such.
    """
    if not model.functions:
        return
    calls = {
        (function.domain, function.name): [(node.domain, node.op_type) for node in graph_nodes(function.node)]
        for function in model.functions
    }
    refuse_runaway(calls, [(node.domain, node.op_type) for node in graph_nodes(model.graph.node)])


def refuse_runaway(calls: Mapping[_Key, Sequence[_Key]], main: Sequence[_Key]) -> None:
    """Refuse such functions, of either kind of model.

    Args:
        calls: The operators of the nodes of each function; functions are known by the operators that call them.
        main: The operators of the nodes of the main graph.

    Raises:
        InvalidModelError: Where there are such.
    """
    if len(calls) > _MOST_FUNCTIONS:
        raise InvalidModelError(
            f"The model has {len(calls)} functions; at most {_MOST_FUNCTIONS} are followed (remove those that nothing "
            "calls, or inline some, with onnx.inliner)."
        )
    try:
        sizes = sizes_written_out(calls)
    except CircleError as error:
        names = " -> ".join(map(_name, error.circle))
        raise InvalidModelError(f"Functions call each other in a circle: {names} (break the circle).") from error
    depths: dict[_Key, int] = {}
    for key in sizes:
        depths[key] = 1 + max((depths.get(each, 0) for each in calls[key]), default=0)
    deepest = max(depths, key=depths.__getitem__, default=None)
    if deepest is not None and depths[deepest] > _DEEPEST_CALLS:
        raise InvalidModelError(
            f"The function {_name(deepest)} calls others {depths[deepest]} deep; {_DEEPEST_CALLS} are followed "
            "(inline some, with onnx.inliner)."
        )
    total = sum(sizes.values()) + sum(sizes.get(each, 0) for each in main)
    if total > _MOST_CALLED_NODES:
        raise InvalidModelError(
            f"The model's functions and their calls hold {total} nodes when each call is written out; "
            f"{_MOST_CALLED_NODES} are followed (remove functions, or calls of them)."
        )


def sizes_written_out(calls: Mapping[_Key, Sequence[_Key]]) -> dict[_Key, int]:
    """Return how many nodes each function holds, calls and what they stand for included, those that it calls first.

    Args:
        calls: As for `refuse_runaway`.

    Raises:
        CircleError: Where functions call each other in a circle.
    """
    sizes: dict[_Key, int] = {}
    for key in dependencies_first(calls, lambda key: (each for each in calls[key] if each in calls)):
        sizes[key] = sum(1 + sizes.get(each, 0) for each in calls[key])
    return sizes


def _name(key: object) -> str:
    return f"{key[0]}::{key[1]}" if isinstance(key, tuple) else str(key)


def _calls_written_out(model: ModelProto) -> ModelProto:
    """Return the model, or a copy of it with the bodies of functions in the place of their calls.

    The values of the graph keep their names. Calls stay of what onnx has a schema of, which goes before the function.
    """
    if not model.functions:
        return model
    kept = [
        (function.domain, function.name)
        for function in model.functions
        if onnx.defs.has(function.name, function.domain)
    ]
    try:
        written = onnx.inliner.inline_selected_functions(model, kept, exclude=True)
    except Exception:  # it raises RuntimeErrors of its own for calls that do not fit their function
        written = ModelProto()
        written.CopyFrom(model)
    if len(written.functions) > _MOST_FUNCTIONS_INFERRED:
        written.ClearField("functions")
    return written


def _refuse_attributes(model: ModelProto) -> None:
    for node in model_nodes(model):
        if node.domain not in ("", "ai.onnx") or node.op_type in _ANY_INTEGER:
            continue
        for attribute in node.attribute:
            if attribute.type == AttributeProto.INT and attribute.i not in _INT32:
                allowed = "[-rank, rank - 1] (the last axis is -1)" if attribute.name == "axis" else "32 bits"
                raise InvalidModelError(
                    f"{node.op_type} node {proto_name(node)!r}: attribute {attribute.name!r} is {attribute.i}; it "
                    f"must be in {allowed}."
                )


def _made_safe(model: ModelProto) -> ModelProto:
    """Return the model, or a copy of it with what ends inference, or leads it astray, hidden."""
    shapes = {value.name: _dims(value) for value in _values(model.graph)}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in initializers(model.graph)}
    has_made_up_length = any(
        not 0 <= dim < _LENGTH_IS_MADE_UP for dims in shapes.values() if dims is not None for dim in dims
    )
    has_reference = any(attribute.ref_attr_name for node in model_nodes(model) for attribute in node.attribute)

    def is_unsafe(node: NodeProto) -> bool:
        return (
            _is_unsafe(node, shapes)
            or _has_open_attribute(node)
            or (node.op_type == "GatherND" and has_made_up_length)
            or (node.op_type == "Range" and has_reference)
        )

    if not any(is_unsafe(node) for node in model_nodes(model)):
        return model
    safe = ModelProto()
    safe.CopyFrom(model)
    for node in model_nodes(safe):
        if not is_unsafe(node):
            continue
        if node.op_type == "EyeLike" and not _has_open_attribute(node):
            # The type and shape are those of a Cast.
            to = next(attribute.i for attribute in node.attribute if attribute.name == "dtype")
            node.CopyFrom(onnx.helper.make_node("Cast", node.input, node.output, name=node.name, to=to))
        else:
            node.domain = _HIDDEN_DOMAIN
    _import_hidden_domain(safe)
    return safe


def _has_open_attribute(node: NodeProto) -> bool:
    """Return whether types or shapes may depend on a function's attribute: inference would take 0 for its value.

    Of the operators that have a float, only Range computes a length with it.
    """
    return any(attribute.ref_attr_name and attribute.type != AttributeProto.FLOAT for attribute in node.attribute)


def _is_unsafe(node: NodeProto, shapes: Mapping[str, tuple[int, ...] | None]) -> bool:
    if node.domain in _HIDDEN_DOMAINS:
        return True
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in _HIDDEN:
        return True
    attributes = {attribute.name: attribute for attribute in node.attribute}
    for name, (low, high) in _RANGES.items():
        if name in attributes and not low <= attributes[name].i <= high:
            return True
    match node.op_type:
        case "EyeLike":
            return "dtype" in attributes
        case "Split":
            return not node.output or ("num_outputs" in attributes and attributes["num_outputs"].i != len(node.output))
        case "Scan":
            return "num_scan_inputs" in attributes and not 0 <= attributes["num_scan_inputs"].i <= len(node.input)
        case "GRU" | "LSTM" | "RNN":
            return any(shapes.get(name, (0, 0, 0)) == () for name in node.input[:1])
        case "ConstantOfShape" | "Expand" | "Reshape":
            position = _SHAPED_BY[node.op_type]
            return any(_is_long(shapes.get(name)) for name in node.input[position : position + 1])
    return False


def _import_hidden_domain(model: ModelProto) -> None:
    for importer in (model, *model.functions):
        importer.opset_import.add(domain=_HIDDEN_DOMAIN, version=1)


def _computes_shapes(model: ModelProto) -> bool:
    """Return whether the shapes that a graph computes may tell more of its values than is known.

    That takes integers that nodes compute, and values of which something is not known.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in _values(model.graph)}
    if not any(
        types.get(name, TensorProto.UNDEFINED) in _OF_SHAPES
        for node in graph_nodes(model.graph.node)
        if node.op_type != "Constant"
        for name in node.output
        if name
    ):
        return False
    if any(node.domain == _HIDDEN_DOMAIN for node in graph_nodes(model.graph.node)):
        return True
    known = {value.name for value in _values(model.graph) if _is_static(value)}
    known.update(tensor.name for tensor in initializers(model.graph))
    return any(name and name not in known for node in graph_nodes(model.graph.node) for name in node.output)


def _symbols(graph: GraphProto) -> set[str]:
    return {dim.dim_param for value in _values(graph) for dim in value.type.tensor_type.shape.dim}


def _forget_made_up_symbols(graph: GraphProto, symbols: set[str]) -> None:
    """Forget the names that inference gave to lengths, which would stand in the way of what it knows them to be next.

    What comes from a hidden node is not inferred again, and keeps them.
    """
    hidden = {name for node in graph_nodes(graph.node) if node.domain == _HIDDEN_DOMAIN for name in node.output}
    for value in _values(graph):
        if value.name not in hidden:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param not in symbols:
                    dim.ClearField("dim_param")


def _is_static(value: ValueInfoProto) -> bool:
    tensor_type = value.type.tensor_type
    return tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor_type.shape.dim)


def _long_vectors(graph: GraphProto) -> set[str]:
    return {value.name for value in _values(graph) if _is_long(_dims(value))} | {
        tensor.name for tensor in initializers(graph) if _is_long(tuple(tensor.dims))
    }


def _is_long(dims: tuple[int, ...] | None) -> bool:
    return dims is not None and len(dims) == 1 and dims[0] > _LONGEST_SHAPE


def _dims(value: ValueInfoProto) -> tuple[int, ...] | None:
    """Return a value's declared shape, with 0 for a length that is not known; None where there is none."""
    tensor_type = value.type.tensor_type
    return tuple(dim.dim_value for dim in tensor_type.shape.dim) if tensor_type.HasField("shape") else None


def _values(graph: GraphProto) -> Iterator[ValueInfoProto]:
    for each in nested_graphs(graph):
        yield from each.input
        yield from each.value_info
        yield from each.output
