# SPDX-License-Identifier: Apache-2.0
"""The walk backwards over a graph."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError, argument, written
from lnbp_onnx.gradients import EXTRA_OUTPUTS, rule_of
from lnbp_onnx.gradients.bodies import body
from lnbp_onnx.gradients.control_flow import Parts, if_gradient, loop_gradient
from lnbp_onnx.gradients.dependence import (
    branches_of,
    dependent,
    dependent_in,
    is_control_flow,
    iteration_of,
    passed,
    passed_in,
    used,
)
from lnbp_onnx.gradients.gradient_op import GradientOp, Gradients
from lnbp_onnx.gradients.recomputation import Recomputation
from lnbp_onnx.graphs.inference import declare, info_of, known
from lnbp_onnx.graphs.inline import nodes_in
from lnbp_onnx.graphs.operators import name_of
from lnbp_onnx.graphs.replace import replace_nodes
from lnbp_onnx.graphs.writer import Writer
from lnbp_onnx.node import TensorInfo


def _remove_unused(nodes: Iterable[ir.Node]) -> None:
    """Remove nodes of one output that nothing uses."""
    for node in nodes:
        if node.graph is not None and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            node.graph.remove(node, safe=True)


class Backward:
    """The gradients of values of a graph.

    Args:
        graph: The graph, which is given the nodes.
        infos: What is known of its values; what is added is added to it.
        opset: The version of the default domain.
        unique_name: Turns a name into one that the graph does not have yet.

    Attributes:
        infos: As given.
        unique_name: As given.
        nodes: What was written, in topological order.
    """

    def __init__(
        self,
        graph: ir.Graph,
        infos: dict[ir.Value, TensorInfo],
        opset: int,
        unique_name: Callable[[str], str],
    ) -> None:
        self._graph = graph
        self.infos = infos
        self._opset = opset
        self.unique_name = unique_name
        self.nodes: list[ir.Node] = []
        self._constants: dict[tuple[object, ...], ir.Value] = {}
        self._parts: dict[ir.Value, list[ir.Value]] = {}
        self._deltas: dict[ir.Node, ir.Value] = {}

    def sources_of(self, candidates: Sequence[ir.Value], of: ir.Value) -> list[ir.Value]:
        """Return those of the candidates that a gradient of a value leads to."""
        _, needed = passed(self._graph, dependent(self._graph, candidates, self.infos), [of], self.infos)
        return [value for value in candidates if value in needed]

    def with_bodies(
        self, of: ir.Value, sources: Sequence[ir.Value], infer: Callable[[], dict[ir.Value, TensorInfo]]
    ) -> ir.Value:
        """Write out the nodes without a rule that a gradient passes, as far as others define them.

        Args:
            of: The value to differentiate.
            sources: What it is differentiated by.
            infer: Returns what is known of the graph's values.

        Returns:
            The value to differentiate, which may come from another node now.
        """
        assumed: dict[ir.Value, TensorInfo] = {}
        sequences: dict[ir.Node, None] = {}
        while True:
            found = dependent(self._graph, sources, self.infos)
            nodes, _ = passed(self._graph, found, [of], self.infos)
            known_before = len(assumed)
            assumed |= self._shapes_kept(nodes_in(nodes))
            without_rule = self._uncovered(self._graph, found, [of])
            bodies = [body(node, self.infos, self._opset, self.unique_name) for node in without_rule]
            replacements = [each for each in bodies if each is not None]
            if not replacements and len(assumed) == known_before:
                _remove_unused(sequences)
                return of
            read = (value.producer() for each in replacements for value in each.node.inputs if value is not None)
            sequences.update(dict.fromkeys(each for each in read if each and each.op_type == "SequenceConstruct"))
            renewed = {
                old: new for each in replacements for old, new in zip(each.node.outputs, each.outputs, strict=False)
            }
            replace_nodes(replacements)
            of = renewed.get(of) or of
            declared = {value: info_of(value) for value in assumed}
            for value, info in assumed.items():
                declare(value, info)
            self.infos.update(infer())
            for value, info in declared.items():
                declare(value, info)

    def _shapes_kept(self, nodes: Iterable[ir.Node]) -> dict[ir.Value, TensorInfo]:
        """Return what loops do not declare of the shapes that they carry, which stay as they are at the begin."""
        found: dict[ir.Value, TensorInfo] = {}
        for node in nodes:
            if node.domain == "" and node.op_type == "Loop":
                for state in iteration_of(node).states:
                    info = known(state.operand, self.infos)
                    if known(state.before, self.infos).shape is None and info.shape is not None:
                        found[state.before] = info
        return found

    def write(
        self,
        of: ir.Value,
        seed: ir.Value,
        sources: Sequence[ir.Value],
        names: Sequence[str],
        recompute: Sequence[str] = (),
    ) -> list[ir.Value]:
        """Write the gradients of the sources into the graph, and return them.

        Args:
            of: The value to differentiate.
            seed: Its own gradient.
            sources: What to differentiate by.
            names: How to call the gradients.
            recompute: The names of values to compute again, as the shell's patterns.

        Raises:
            InvalidModelError: Where a node cannot be differentiated; all such nodes are named. Where `recompute` names
                what cannot be computed again.
        """
        uncovered = self._uncovered(self._graph, dependent(self._graph, sources, self.infos), [of])
        if uncovered:
            listed = "; ".join(
                f"{node.domain + '::' if node.domain else ''}{node.op_type} node {name_of(node)!r} "
                f"(output {node.outputs[0].name!r})"
                for node in uncovered
            )
            raise InvalidModelError(
                f"The gradient of {of.name!r} passes operators whose gradients are not covered: {listed} (write them "
                f"in the operators of docs/training.md, or leave what is before them out of {argument('wrt')})."
            )
        gradients, found = [], self.gradients([(of, seed)], sources)
        own = {output for node in self.nodes for output in node.outputs}
        for source, name, gradient in zip(sources, names, found, strict=True):
            if gradient is None:
                raise InvalidModelError(
                    f"{of.name!r} does not depend on {source.name!r} in a way that has a gradient (leave it out)."
                )
            gradients.append(self._named(gradient, source, name, own))
        nodes = used(self.nodes, gradients)
        if recompute:
            nodes = Recomputation(self._graph, recompute, self._deltas, self._writer, self.unique_name).run(nodes)
        self._graph.extend(nodes)
        return gradients

    def _writer(self, prefix: str) -> Writer:
        return Writer(
            "What is computed again", self._opset, self.unique_name, self.infos, prefix=prefix, error=InvalidModelError
        )

    def gradients(self, seeds: Parts, sources: Sequence[ir.Value]) -> list[ir.Value | None]:
        """Write the gradients of sources by those of other values, and return them; None for one that has none.

        Raises:
            InvalidModelError: Where a node cannot be differentiated; all such nodes are named.
        """
        found = dependent(self._graph, sources, self.infos)
        nodes, _ = passed(self._graph, found, [value for value, _ in seeds], self.infos)
        self._add(seeds)
        refusals = []
        for node in nodes:
            try:
                self._differentiate(node, found)
            except InvalidModelError as error:
                refusals.append(str(error))
        if refusals:
            raise InvalidModelError("\n".join(refusals))
        return [self._total(source) for source in sources]

    def nested(self, graph: ir.Graph) -> "Backward":
        """Return the walk over a subgraph."""
        return Backward(graph, self.infos, self._opset, self.unique_name)

    def scalar_one(self, of: ir.Value) -> ir.Value:
        """Return the gradient of a value of one element by itself.

        Raises:
            InvalidModelError: Where it may have more elements.
        """
        shape = self.infos[of].shape
        if shape is None or any(dim != 1 for dim in shape):
            found = "of an unknown shape" if shape is None else f"of shape {list(shape)}"
            seed = f"{of.name}.seed"
            raise InvalidModelError(
                f"{argument('of')}: {of.name!r} is {found}; without a seed it must be a scalar (reduce it to one, "
                f"declare its shape, or give {written(f'seed={seed!r}', f'--seed {seed}')})."
            )
        op = self._op_at(of)
        return op.constant(np.ones([1] * len(shape)), op.element_type(of))

    def ones(self, of: ir.Value) -> ir.Value:
        """Return the gradient of the sum of a value's elements by the value."""
        op = self._op_at(of)
        one = op.constant(1.0, op.element_type(of))
        return one if self.infos[of].shape == () else op.op("Expand", one, op.shape_of(of))

    def _op_at(self, value: ir.Value) -> GradientOp:
        """Return a writer for what belongs to a value that a node computes."""
        producer = value.producer()
        assert producer is not None
        return self.op(producer, [None] * len(producer.outputs), [])

    def op(self, node: ir.Node, deltas: Sequence[ir.Value | None], wanted: Sequence[bool]) -> GradientOp:
        """Return the writer of the gradients of a node's inputs."""
        op = GradientOp(node, deltas, wanted, self.infos, self._opset, self.unique_name)
        op.nodes, op.constants = self.nodes, self._constants
        return op

    def _uncovered(self, graph: ir.Graph, found: set[ir.Value], results: Iterable[ir.Value]) -> list[ir.Node]:
        """Return the nodes without a rule that gradients of results pass, in subgraphs, too."""
        nodes, needed = passed(graph, found, results, self.infos)
        uncovered: list[ir.Node] = []
        for node in reversed(nodes):
            if not is_control_flow(node):
                uncovered += [node] if rule_of(node, found) is None else []
            elif node.op_type == "If":
                for branch in branches_of(node):
                    pairs = zip(node.outputs, branch.outputs, strict=True)
                    inner = dependent(branch, found, self.infos)
                    uncovered += self._uncovered(branch, inner, [value for output, value in pairs if output in needed])
            else:
                iteration = iteration_of(node)
                inner = dependent_in(iteration, found, self.infos)
                _, led_to, _ = passed_in(iteration, inner, needed, self.infos)
                uncovered += self._uncovered(iteration.body, inner, led_to)
        return uncovered

    def _differentiate(self, node: ir.Node, found: set[ir.Value]) -> None:
        deltas = [self._total(output) for output in node.outputs]
        if all(delta is None for delta in deltas):
            return
        first = len(self.nodes)
        self._complete(node)
        deltas += [None] * (len(node.outputs) - len(deltas))
        wanted = [value is not None and value in found for value in node.inputs]
        op = self.op(node, deltas, wanted)
        if is_control_flow(node):
            self._add((if_gradient if node.op_type == "If" else loop_gradient)(op, self, found))
        else:
            rule = rule_of(node, found)
            assert rule is not None
            gradients: Gradients = rule(op)
            self._add(
                [
                    (value, gradient)
                    for value, gradient, is_wanted in zip(node.inputs, gradients, wanted, strict=False)
                    if value is not None and gradient is not None and is_wanted
                ]
            )
        delta = next(delta for delta in deltas if delta is not None)
        self._deltas.update(dict.fromkeys(self.nodes[first:], delta))

    def _add(self, parts: Parts) -> None:
        for value, gradient in parts:
            self._parts.setdefault(value, []).append(self._like(gradient, value))

    def _like(self, gradient: ir.Value, value: ir.Value) -> ir.Value:
        """Return a gradient, which has the type and the shape of its value, with these known."""
        info = known(value, self.infos)
        if gradient.dtype is None and info.element_type is not None:
            gradient.type = ir.TensorType(ir.DataType(info.element_type))
        self.infos.setdefault(gradient, info)
        return gradient

    def _total(self, value: ir.Value) -> ir.Value | None:
        """Return the sum of a value's gradients."""
        parts = self._parts.get(value, [])
        if len(parts) < 2:
            return parts[0] if parts else None
        total = ir.Value(name=self.unique_name(f"{value.name}.grad_sum"), type=parts[0].type)
        self.nodes.append(ir.Node("", "Sum", parts, outputs=[total], name=total.name))
        self._parts[value] = [self._like(total, value)]
        return total

    def _named(self, gradient: ir.Value, source: ir.Value, name: str, own: set[ir.Value]) -> ir.Value:
        """Return a source's gradient under a name; `own` are the values that can be given one."""
        info = self.infos[source]
        assert info.element_type is not None
        if gradient in own:
            own.remove(gradient)
            output = gradient
        else:
            node = ir.Node("", "Identity", [gradient], name=name)
            self.nodes.append(node)
            output = node.outputs[0]
        output.name = name
        output.type = ir.TensorType(ir.DataType(info.element_type))
        output.shape = None if info.shape is None else ir.Shape(info.shape)
        return output

    def _complete(self, node: ir.Node) -> None:
        """Give a forward node the outputs that its rule needs."""
        steps = EXTRA_OUTPUTS.get(node.op_type)
        if steps is None or (node.op_type == "Dropout" and len(node.inputs) < 3):
            return
        given = len(node.outputs)
        node.resize_outputs(max(given, len(steps) + 1))
        for output, step in zip(node.outputs[1:], steps, strict=False):
            if not output.name:
                output.name = self.unique_name(f"{name_of(node)}/{step}")
        for output in node.outputs[given:]:
            self.infos[output] = info_of(output)
