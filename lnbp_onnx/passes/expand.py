# SPDX-License-Identifier: Apache-2.0
"""Replacing nodes of the operator by their bodies, in place."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.body import build_body
from lnbp_onnx.graphs.names import names_in, unique_names
from lnbp_onnx.graphs.operators import Operator, Scope
from lnbp_onnx.graphs.opsets import import_default_domain
from lnbp_onnx.graphs.replace import Replacement, replace_nodes
from lnbp_onnx.node import BackpropNode


def expand(operators: Iterable[Operator], scope: Scope, model: ir.Model) -> None:
    """Replace operators of one scope by standard operators.

    Raises:
        InvalidNodeError: Where too little is known of a node, or the opset cannot express it.
        InvalidModelError: Where the scope's opset is too old or unknown.
    """
    opset = import_default_domain(scope.graph, model)
    unique_name = unique_names(names_in(scope.graph))
    templates: dict[tuple[object, ...], _Template] = {}
    constants: dict[ir.Graph, dict[tuple[int, ...], ir.Value]] = {}
    replacements = []
    for operator in operators:
        node = operator.node
        # Operands that are one value share what is computed from them.
        sources = {value: index for index, value in enumerate(node.inputs) if value is not None}
        positions = tuple(None if value is None else sources[value] for value in node.inputs)
        key = (dataclasses.replace(operator.parsed, description=""), positions)
        if key not in templates:
            templates[key] = _Template(operator.parsed, positions, opset)
        label = node.name or next(output.name for output in node.outputs if output.name) or spec.OP_TYPE
        assert isinstance(node.graph, ir.Graph)
        shared = constants.setdefault(node.graph, {})
        replacements.append(templates[key].replacement(node, f"{label}/", unique_name, shared))
    replace_nodes(replacements)


class _Template:
    """The body of all nodes of one configuration, which is copied for each."""

    def __init__(self, parsed: BackpropNode, positions: Sequence[int | None], opset: int) -> None:
        operands = {position: ir.Value() for position in positions if position is not None}
        self._inputs = [None if position is None else operands[position] for position in positions]
        # Each node has one output; both are called after their step.
        self._body = build_body(parsed, self._inputs, opset, lambda step: step)

    def replacement(
        self,
        node: ir.Node,
        prefix: str,
        unique_name: Callable[[str], str],
        constants: dict[tuple[int, ...], ir.Value],
    ) -> Replacement:
        """Return the body with a node's inputs.

        Args:
            node: The node.
            prefix: What names begin with.
            unique_name: Makes names unique.
            constants: Those that the graph has from nodes before this one, by their attributes; new ones are added.
        """
        copies = {old: new for old, new in zip(self._inputs, node.inputs, strict=True) if old is not None}
        nodes = []
        for template in self._body.nodes:
            [output] = template.outputs
            constant = None
            if template.op_type == "Constant":
                # The writer makes one attribute of equal values, and the templates keep it.
                constant = tuple(map(id, template.attributes.values()))
                if constant in constants:
                    copies[output] = constants[constant]
                    continue
            name = unique_name(f"{prefix}{template.name}")
            assert output.dtype is not None
            copy = ir.Value(
                name=name,
                type=ir.TensorType(output.dtype),
                shape=None if output.shape is None else output.shape.copy(),
            )
            copies[output] = copy
            if constant is not None:
                constants[constant] = copy
            inputs = [None if value is None else copies[value] for value in template.inputs]
            attributes = template.attributes.values()
            nodes.append(ir.Node("", template.op_type, inputs, attributes, outputs=[copy], name=name))
            if node.metadata_props:
                nodes[-1].metadata_props.update(node.metadata_props)
        return Replacement(node, nodes, [None if value is None else copies[value] for value in self._body.outputs])
