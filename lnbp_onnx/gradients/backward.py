# SPDX-License-Identifier: Apache-2.0
"""The walk backwards over a graph."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.gradients import CONSTANT, EXTRA_OUTPUTS, RULES
from lnbp_onnx.gradients.gradient_op import GradientOp, Gradients
from lnbp_onnx.graphs.inference import info_of, subgraphs_of
from lnbp_onnx.graphs.operators import name_of
from lnbp_onnx.node import TensorInfo


class Backward:
    """The gradients of one value of a graph.

    Args:
        graph: The graph, which is given the nodes.
        infos: What is known of its values.
        opset: The version of the default domain.
        unique_name: Turns a name into one that the graph does not have yet.
    """

    def __init__(
        self,
        graph: ir.Graph,
        infos: dict[ir.Value, TensorInfo],
        opset: int,
        unique_name: Callable[[str], str],
    ) -> None:
        self._graph = graph
        self._infos = infos
        self._opset = opset
        self._unique_name = unique_name
        self._nodes: list[ir.Node] = []
        self._constants: dict[tuple[object, ...], ir.Value] = {}
        self._parts: dict[ir.Value, list[ir.Value]] = {}

    def dependent(self, sources: Sequence[ir.Value]) -> set[ir.Value]:
        """Return the values that a gradient leads from to the sources."""
        found = set(sources)
        for node in self._graph:
            if (node.domain == "" and node.op_type in CONSTANT) or found.isdisjoint(operands(node)):
                continue
            found.update(output for output in node.outputs if output.name and self.may_have_gradient(output))
        return found

    def sources_of(self, candidates: Sequence[ir.Value], of: ir.Value) -> list[ir.Value]:
        """Return those of the candidates that a gradient of a value leads to."""
        _, needed = self._passed(self.dependent(candidates), of)
        return [value for value in candidates if value in needed]

    def may_have_gradient(self, value: ir.Value) -> bool:
        """Return whether a value is of a floating type, 8 bits and less included, or of an unknown one."""
        element_type = self._infos[value].element_type
        return element_type is None or ir.DataType(element_type).is_floating_point()

    def nodes_between(self, dependent: set[ir.Value], of: ir.Value) -> list[ir.Node]:
        """Return the nodes that a gradient of `of` passes, last first.

        Raises:
            InvalidModelError: Where some have no rule; all of them are named.
        """
        nodes, _ = self._passed(dependent, of)
        uncovered = [node for node in reversed(nodes) if node.domain != "" or node.op_type not in RULES]
        if uncovered:
            listed = "; ".join(
                f"{node.domain + '::' if node.domain else ''}{node.op_type} node {name_of(node)!r} "
                f"(output {node.outputs[0].name!r})"
                for node in uncovered
            )
            raise InvalidModelError(
                f"The gradient of {of.name!r} passes operators whose gradients are not covered: {listed} (write them "
                "in the operators of docs/training.md, or leave what is before them out of wrt)."
            )
        return nodes

    def write(self, of: ir.Value, seed: ir.Value, sources: Sequence[ir.Value], names: Sequence[str]) -> list[ir.Value]:
        """Write the gradients of the sources into the graph, and return them.

        Args:
            of: The value to differentiate.
            seed: Its own gradient.
            sources: What to differentiate by.
            names: How to call the gradients.

        Raises:
            InvalidModelError: Where a node cannot be differentiated; all such nodes are named.
        """
        dependent = self.dependent(sources)
        nodes = self.nodes_between(dependent, of)
        self._parts[of] = [seed]
        refusals = []
        for node in nodes:
            try:
                self._differentiate(node, dependent)
            except InvalidModelError as error:
                refusals.append(str(error))
        if refusals:
            raise InvalidModelError("\n".join(refusals))
        gradients = []
        for source, name in zip(sources, names, strict=True):
            gradient = self._total(source)
            if gradient is None:
                raise InvalidModelError(
                    f"{of.name!r} does not depend on {source.name!r} in a way that has a gradient (leave it out)."
                )
            gradients.append(self._named(gradient, source, name))
        self._graph.extend(_used(self._nodes, gradients))
        return gradients

    def scalar_one(self, of: ir.Value) -> ir.Value:
        """Return the gradient of a value of one element by itself.

        Raises:
            InvalidModelError: Where it may have more elements.
        """
        shape = self._infos[of].shape
        if shape is None or any(dim != 1 for dim in shape):
            found = "of an unknown shape" if shape is None else f"of shape {list(shape)}"
            raise InvalidModelError(
                f"of: {of.name!r} is {found}; without a seed it must be a scalar (reduce it to one, declare its shape, "
                f"or give seed={str(of.name) + '.seed'!r})."
            )
        op = self._op_at(of)
        return op.constant(np.ones([1] * len(shape)), op.element_type(of))

    def ones(self, of: ir.Value) -> ir.Value:
        """Return the gradient of the sum of a value's elements by the value."""
        op = self._op_at(of)
        one = op.constant(1.0, op.element_type(of))
        return one if self._infos[of].shape == () else op.op("Expand", one, op.shape_of(of))

    def _passed(self, dependent: set[ir.Value], of: ir.Value) -> tuple[list[ir.Node], set[ir.Value]]:
        """Return the nodes that a gradient of `of` passes, last first, and the values that it leads to."""
        needed, nodes = {of}, []
        for node in reversed(self._graph):
            if any(output in needed and output in dependent for output in node.outputs):
                dependent_operands = [value for value in operands(node) if value in dependent]
                if dependent_operands:
                    nodes.append(node)
                    needed.update(dependent_operands)
        return nodes, needed

    def _op_at(self, value: ir.Value) -> GradientOp:
        """Return a writer for what belongs to a value that a node computes."""
        producer = value.producer()
        assert producer is not None
        return self._op(producer, [None] * len(producer.outputs), [])

    def _op(self, node: ir.Node, deltas: Sequence[ir.Value | None], wanted: Sequence[bool]) -> GradientOp:
        op = GradientOp(node, deltas, wanted, self._infos, self._opset, self._unique_name)
        op.nodes, op._constants = self._nodes, self._constants
        return op

    def _differentiate(self, node: ir.Node, dependent: set[ir.Value]) -> None:
        deltas = [self._total(output) for output in node.outputs]
        if all(delta is None for delta in deltas):
            return
        self._complete(node)
        deltas += [None] * (len(node.outputs) - len(deltas))
        wanted = [value is not None and value in dependent for value in node.inputs]
        gradients: Gradients = RULES[node.op_type](self._op(node, deltas, wanted))
        for value, gradient, is_wanted in zip(node.inputs, gradients, wanted, strict=False):
            if value is not None and gradient is not None and is_wanted:
                self._parts.setdefault(value, []).append(gradient)

    def _total(self, value: ir.Value) -> ir.Value | None:
        """Return the sum of a value's gradients."""
        parts = self._parts.get(value, [])
        if len(parts) < 2:
            return parts[0] if parts else None
        total = ir.Value(name=self._unique_name(f"{value.name}.grad_sum"), type=parts[0].type or value.type)
        self._nodes.append(ir.Node("", "Sum", parts, outputs=[total], name=total.name))
        self._parts[value] = [total]
        return total

    def _named(self, gradient: ir.Value, source: ir.Value, name: str) -> ir.Value:
        info = self._infos[source]
        assert info.element_type is not None
        output = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType(info.element_type)),
            shape=None if info.shape is None else ir.Shape(info.shape),
        )
        self._nodes.append(ir.Node("", "Identity", [gradient], outputs=[output], name=name))
        return output

    def _complete(self, node: ir.Node) -> None:
        """Give a forward node the outputs that its rule needs."""
        steps = EXTRA_OUTPUTS.get(node.op_type)
        if steps is None:
            return
        given = len(node.outputs)
        node.resize_outputs(max(given, len(steps) + 1))
        for output, step in zip(node.outputs[1:], steps, strict=False):
            if not output.name:
                output.name = self._unique_name(f"{name_of(node)}/{step}")
        for output in node.outputs[given:]:
            self._infos[output] = info_of(output)


def operands(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads, its subgraphs included."""
    values = [value for value in node.inputs if value is not None]
    for _, subgraphs in subgraphs_of(node):
        for subgraph in subgraphs:
            values += [value for inner in subgraph.all_nodes() for value in inner.inputs if value is not None]
            values += [value for each in (subgraph, *subgraph.subgraphs()) for value in each.outputs]
    return values


def _used(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """Return the nodes that the outputs come from; the others are cut off."""
    needed, used = set(outputs), []
    for node in reversed(nodes):
        if needed.isdisjoint(node.outputs):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        else:
            needed.update(value for value in operands(node))
            used.append(node)
    return used[::-1]
