# SPDX-License-Identifier: Apache-2.0
"""Replacing nodes of the operator by their bodies, in place."""

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.body import build_body
from lnbp_onnx.graphs.names import names_in, unique_names
from lnbp_onnx.graphs.operators import Operator, Scope
from lnbp_onnx.graphs.opsets import import_default_domain
from lnbp_onnx.graphs.templates import Template, named_copy, put
from lnbp_onnx.node import BackpropNode


def expand(operators: Iterable[Operator], scope: Scope, model: ir.Model) -> None:
    """Replace operators of one scope by standard operators.

    Raises:
        InvalidNodeError: Where too little is known of a node, or the opset cannot express it.
        InvalidModelError: Where the scope's opset is too old or unknown.
    """
    opset = import_default_domain(scope.graph, model)
    unique_name = unique_names(names_in(scope.graph))
    templates: dict[tuple[object, ...], Template] = {}
    constants: dict[ir.Graph, dict[tuple[int, ...], str]] = {}
    copies = []
    for operator in operators:
        node = operator.node
        # Operands that are one value share what is computed from them.
        sources = {value: index for index, value in enumerate(node.inputs) if value is not None}
        positions = tuple(None if value is None else sources[value] for value in node.inputs)
        key = (dataclasses.replace(operator.parsed, description=""), positions)
        if key not in templates:
            templates[key] = _template(operator.parsed, positions, opset)
        label = node.name or next(output.name for output in node.outputs if output.name) or spec.OP_TYPE
        assert isinstance(node.graph, ir.Graph)
        shared = constants.setdefault(node.graph, {})
        copies.append(named_copy(templates[key], node, f"{label}/", unique_name, shared))
    put(copies, model)


def _template(parsed: BackpropNode, positions: Sequence[int | None], opset: int) -> Template:
    """Return the body of all nodes of one configuration."""
    operands = {each: ir.Value(name=spec.INPUT_NAMES[each]) for each in positions if each is not None}
    inputs = [None if position is None else operands[position] for position in positions]
    body = build_body(parsed, inputs, opset, lambda step: step)
    return Template(inputs, body.nodes, body.outputs)
