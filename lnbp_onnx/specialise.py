# SPDX-License-Identifier: Apache-2.0
"""Functions that hold the operator, one copy for each way they are called.

A function's body has no types, and its nodes may refer to attributes that the caller sets; the operator can be
read only once both are known. So a function that holds the operator, itself or through functions that it calls,
is replaced by a copy for each combination of operand types, shapes and attributes that it is called with. The first
copy keeps the name.
"""

import itertools
from collections.abc import Container, Mapping

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.inference import declare, infer, known
from lnbp_onnx.node import TensorInfo
from lnbp_onnx.operators import OPERATOR_ID, Operator, find_operators, is_operator, scopes


def specialise_functions(model: ir.Model) -> None:
    """Replace the functions that hold the operator, in place; one that is never called is removed.

    Raises:
        InvalidModelError: Where functions call each other in a circle, or one is called with too many inputs.
        InvalidNodeError: Where the specification refuses a node.
    """
    holders = _holders(model)
    if holders:
        _Specialiser(model, holders).run()


def specialised_operators(model: ir.Model) -> list[Operator]:
    """Specialise the functions, in place, and find the operator's nodes in all of the model.

    Raises:
        InvalidModelError: Where functions call each other in a circle, or one is called with too many inputs.
        InvalidNodeError: Where the specification refuses a node.
    """
    specialise_functions(model)
    functions = list(model.functions.values())
    return [operator for scope in scopes(model) for operator in find_operators(scope, functions)]


def _holders(model: ir.Model) -> dict[ir.OperatorIdentifier, ir.Function]:
    """Return the functions that hold the operator, themselves or through functions that they call."""
    holders: dict[ir.OperatorIdentifier, ir.Function] = {}
    functions = {key: function for key, function in model.functions.items() if key != OPERATOR_ID}
    grown = True
    while grown:
        grown = False
        for key, function in functions.items():
            if key not in holders and any(_depends_on_call(node, holders) for node in function.all_nodes()):
                holders[key] = function
                grown = True
    return holders


def _depends_on_call(node: ir.Node, holders: Container[ir.OperatorIdentifier]) -> bool:
    return is_operator(node) or node.op_identifier() in holders


class _Specialiser:
    def __init__(self, model: ir.Model, holders: Mapping[ir.OperatorIdentifier, ir.Function]) -> None:
        self._model = model
        self._holders = holders
        self._functions = list(model.functions.values())
        self._taken = set(model.functions) - set(holders)
        self._copies: dict[tuple[object, ...], str] = {}
        self._active: list[ir.OperatorIdentifier] = []

    def run(self) -> None:
        for key in self._holders:
            del self._model.functions[key]
        self._rewrite_calls(self._model.graph, self._model.opset_imports)

    def _rewrite_calls(self, graph: ir.Graph, opset_imports: Mapping[str, int]) -> None:
        calls = [node for node in graph.all_nodes() if node.op_identifier() in self._holders]
        if not calls:
            return
        infos = infer(graph, self._functions, opset_imports)
        for node in calls:
            identifier = node.op_identifier()
            function = self._holders[identifier]
            if identifier in self._active:
                circle = " -> ".join(name for _, name, _ in (*self._active, identifier))
                raise InvalidModelError(f"Functions call each other in a circle: {circle} (break the circle).")
            if len(node.inputs) > len(function.inputs):
                raise InvalidModelError(
                    f"Node {node.name or identifier[1]!r} calls the function {identifier[0]}::{identifier[1]} with "
                    f"{len(node.inputs)} inputs; the function has {len(function.inputs)} (remove the others)."
                )
            operands = tuple(None if value is None else known(value, infos) for value in node.inputs)
            attributes = self._referenced(function, node)
            values = tuple((name, attribute and str(attribute.value)) for name, attribute in attributes.items())
            key = (identifier, operands, values)
            if key not in self._copies:
                self._copies[key] = self._copy(function, operands, attributes)
            node.op_type = self._copies[key]

    def _referenced(self, function: ir.Function, call: ir.Node) -> dict[str, ir.Attr | None]:
        """Return the function's attributes that the operator in it depends on, with their values at a call."""
        names = {
            attribute.ref_attr_name
            for node in function.all_nodes()
            if _depends_on_call(node, self._holders)
            for attribute in node.attributes.values()
            if attribute.is_ref()
        }
        return {
            name: call.attributes.get(name) or function.attributes.get(name)
            for name in sorted(name for name in names if name is not None)
        }

    def _copy(
        self,
        function: ir.Function,
        operands: tuple[TensorInfo | None, ...],
        attributes: Mapping[str, ir.Attr | None],
    ) -> str:
        """Add a copy of the function for one way of calling it; return its name."""
        copy = function.clone()
        copy.name = self._unused_name(function)
        for value, info in itertools.zip_longest(copy.inputs, operands):
            if info is not None:
                declare(value, info)
                continue
            for user, index in value.uses():
                user.replace_input_with(index, None)
        for node in copy.all_nodes():
            if _depends_on_call(node, self._holders):
                _resolve(node, attributes)
        self._active.append(function.identifier())
        self._rewrite_calls(copy.graph, copy.opset_imports)
        self._active.pop()
        # After the functions that it calls: ONNX's reference evaluator reads them in order.
        self._model.functions[copy.identifier()] = copy
        return copy.name

    def _unused_name(self, function: ir.Function) -> str:
        for name in itertools.chain([function.name], (f"{function.name}_{n}" for n in itertools.count(2))):
            identifier = (function.domain, name, function.overload)
            if identifier not in self._taken:
                self._taken.add(identifier)
                return name
        raise AssertionError("unreachable")


def _resolve(node: ir.Node, attributes: Mapping[str, ir.Attr | None]) -> None:
    """Replace a node's references to the function's attributes by their values."""
    for name, attribute in list(node.attributes.items()):
        if not attribute.is_ref():
            continue
        value = attributes[attribute.ref_attr_name or ""]
        if value is None or value.value is None:
            del node.attributes[name]
        else:
            node.attributes[name] = ir.Attr(name, value.type, value.value)
