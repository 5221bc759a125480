# SPDX-License-Identifier: Apache-2.0
"""Functions that hold the operator, one copy for each way they are called.

A function's body has no types, and its nodes may refer to attributes that the caller sets; the operator can be
read only once both are known. So a function that holds the operator, itself or through functions that it calls,
is replaced by a copy for each combination of operand types, shapes and attributes that it is called with. The first
copy keeps the name.
"""

import itertools
from collections.abc import Mapping
from typing import NoReturn

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.graphs.inference import Functions, declare, infer, known
from lnbp_onnx.graphs.inline import resolve_references
from lnbp_onnx.graphs.operators import OPERATOR_ID, Operator, find_operators, is_operator, scopes
from lnbp_onnx.graphs.walkable import refuse_unwalkable
from lnbp_onnx.node import TensorInfo

_MOST_COPIES = 256


def specialise_functions(model: ir.Model) -> None:
    """Replace the functions that hold the operator, in place; one that is never called is removed.

    Raises:
        InvalidModelError: Where one is called with too many inputs, or they are called in too many ways.
        InvalidNodeError: Where the specification refuses a node.
    """
    holders = _holders(model)
    if holders:
        _Specialiser(model, holders).run()


def specialised_operators(model: ir.Model) -> list[Operator]:
    """Specialise the functions, in place, and find the operator's nodes in all of the model.

    Raises:
        InvalidModelError: Where one is called with too many inputs, or they are called in too many ways.
        InvalidNodeError: Where the specification refuses a node.
    """
    refuse_unwalkable(model)
    specialise_functions(model)
    functions = Functions(model.functions.values())
    return [operator for scope in scopes(model) for operator in find_operators(scope, functions)]


def _holders(model: ir.Model) -> dict[ir.OperatorIdentifier, ir.Function]:
    """Return the functions that hold the operator, themselves or through functions that they call."""
    callers: dict[ir.OperatorIdentifier, dict[ir.OperatorIdentifier, None]] = {}
    pending: list[ir.OperatorIdentifier] = []
    for key, function in model.functions.items():
        if key == OPERATOR_ID:
            continue
        for node in function.all_nodes():
            callers.setdefault(node.op_identifier(), {})[key] = None
            if is_operator(node):
                pending.append(key)
    found: set[ir.OperatorIdentifier] = set()
    while pending:
        key = pending.pop()
        if key not in found:
            found.add(key)
            pending += callers.get(key, ())
    return {key: function for key, function in model.functions.items() if key in found}


def _content(attribute: ir.Attr) -> bytes:
    content: bytes = ir.serde.serialize_attribute(attribute).SerializeToString()
    return content


class _Specialiser:
    def __init__(self, model: ir.Model, holders: Mapping[ir.OperatorIdentifier, ir.Function]) -> None:
        self._model = model
        self._holders = holders
        self._functions = Functions(model.functions.values())
        self._taken = set(model.functions) - set(holders)
        self._copies: dict[tuple[object, ...], str] = {}

    def run(self) -> None:
        for key in self._holders:
            del self._model.functions[key]
        # Each needs a copy at least; to infer what its calls are like would take long where there are many.
        if len(self._called_holders()) > _MOST_COPIES:
            self._refuse_number()
        self._rewrite_calls(self._model.graph, self._model.opset_imports)

    def _called_holders(self) -> set[ir.OperatorIdentifier]:
        called: set[ir.OperatorIdentifier] = set()
        pending = [self._model.graph]
        while pending:
            for node in pending.pop().all_nodes():
                key = node.op_identifier()
                if key in self._holders and key not in called:
                    called.add(key)
                    pending.append(self._holders[key].graph)
        return called

    def _refuse_number(self) -> NoReturn:
        raise InvalidModelError(
            f"The functions that hold {OPERATOR_ID[1]} are called in more than {_MOST_COPIES} ways, each of which "
            "needs a copy (give calls the same types, shapes and attributes, or inline the functions with "
            "onnx.inliner)."
        )

    def _rewrite_calls(self, graph: ir.Graph, opset_imports: Mapping[str, int]) -> None:
        calls = [node for node in graph.all_nodes() if node.op_identifier() in self._holders]
        if not calls:
            return
        infos = infer(graph, self._functions, opset_imports)
        for node in calls:
            identifier = node.op_identifier()
            function = self._holders[identifier]
            if len(node.inputs) > len(function.inputs):
                raise InvalidModelError(
                    f"Node {node.name or identifier[1]!r} calls the function {identifier[0]}::{identifier[1]} with "
                    f"{len(node.inputs)} inputs; the function has {len(function.inputs)} (remove the others)."
                )
            operands = tuple(None if value is None else known(value, infos) for value in node.inputs)
            attributes = self._referenced(function, node)
            values = tuple((name, attribute and _content(attribute)) for name, attribute in attributes.items())
            key = (identifier, operands, values)
            if key not in self._copies:
                if len(self._copies) == _MOST_COPIES:
                    self._refuse_number()
                self._copies[key] = self._copy(function, operands, attributes)
            node.op_type = self._copies[key]

    def _referenced(self, function: ir.Function, call: ir.Node) -> dict[str, ir.Attr | None]:
        """Return the attributes that nodes of a function refer to, with their values at a call.

        Any of them may say what shape the operator gets.
        """
        names = {
            attribute.ref_attr_name
            for node in function.all_nodes()
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
            resolve_references(node, attributes)
        self._rewrite_calls(copy.graph, copy.opset_imports)
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
