# SPDX-License-Identifier: Apache-2.0
"""ONNX's own operator Gradient to the operators that compute what it asks for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.gradients.backward import Backward
from lnbp_onnx.gradients.dependence import operands
from lnbp_onnx.graphs.constants import fold_lists
from lnbp_onnx.graphs.inference import Functions, infer, subgraphs_of
from lnbp_onnx.graphs.inline import inline_functions
from lnbp_onnx.graphs.names import computed_value, names_in, unique_names
from lnbp_onnx.graphs.operators import name_of, nodes_of, scopes
from lnbp_onnx.graphs.opsets import opset_to_train_in
from lnbp_onnx.graphs.replace import Replacement, replace_nodes
from lnbp_onnx.graphs.writer import FLOATS
from lnbp_onnx.node import TensorInfo

DOMAIN = "ai.onnx.preview.training"


@dataclass
class GradientNodesResult(ir.passes.PassResult):
    """What became of the nodes.

    Attributes:
        expanded: The names of the Gradient nodes, which are other operators now.
    """

    expanded: tuple[str, ...]


class GradientNodesPass(ir.passes.InPlacePass):
    """Replace every Gradient node of ONNX's domain `DOMAIN` by the operators that compute it.

    An output is the gradient of y, of the sum of its elements where it has several, by one of xs, with y as a function
    of xs and zs. Where the node's inputs are the tensors that xs and zs name, forward values are used again; where they
    are others, what leads from xs and zs to y is computed once more, with them. y may come from other Gradient nodes.

    Taken: nodes of the main graph, and of functions, which are inlined; the operators that `GradientPass` takes.

    Refused: nodes in subgraphs; xs and zs that are computed from others of them, which the standard excludes; and what
    `GradientPass` refuses.

    Left alone: other operators of the domain.
    """

    def call(self, model: ir.Model) -> GradientNodesResult:
        """Rewrite the model in place.

        Raises:
            InvalidModelError: Where a node cannot be expanded; the model is left half-rewritten then.
            InvalidNodeError: Where a LayerNormalization is one that LayerNormBackprop does not take.
        """

        def is_gradient(node: ir.Node) -> bool:
            called = node.op_identifier() in model.functions
            return node.domain == DOMAIN and node.op_type == "Gradient" and not called

        found = [(scope.graph, *each) for scope in scopes(model) for each in nodes_of(scope, is_gradient)]
        if not found:
            return GradientNodesResult(model, False, ())
        for graph, node, place in found:
            if node.graph is not graph:
                raise InvalidModelError(
                    f"Gradient node {name_of(node)!r} in {place}: those in subgraphs are not expanded (move it to the "
                    "main graph)."
                )
            with _named(node):
                _bind(node, graph)
        inline_functions(model)
        fold_lists(model.graph, model.opset_imports)
        opset = opset_to_train_in(model)
        expansion = _Expansion(model.graph, model.opset_imports, opset)
        names = expansion.run(is_gradient)
        domains = {node.domain for node in model.graph.all_nodes()}
        if DOMAIN not in domains:
            model.opset_imports.pop(DOMAIN, None)
        if spec.DOMAIN in domains:
            model.opset_imports.setdefault(spec.DOMAIN, spec.OP_VERSION)
        return GradientNodesResult(model, True, names)


@contextlib.contextmanager
def _named(node: ir.Node) -> Iterator[None]:
    """Begin what is said of a node with its name."""
    try:
        yield
    except InvalidModelError as error:
        raise InvalidModelError(f"Gradient node {name_of(node)!r}: {error}") from error


def _bind(node: ir.Node, graph: ir.Graph) -> None:
    """Append the values that a node names to its inputs, so that they stay what they are wherever it comes to stand."""
    xs, zs = (_names(node, name) for name in ("xs", "zs"))
    if not xs or len(node.inputs) != len(xs) + len(zs) or None in node.inputs:
        raise InvalidModelError(
            f"it has {sum(value is not None for value in node.inputs)} inputs, xs names {len(xs)} and zs {len(zs)}; it "
            "needs an input for each name, and xs at least one."
        )
    if len(node.outputs) > len(xs):
        raise InvalidModelError(f"it has {len(node.outputs)} outputs, and xs names {len(xs)} (remove the others).")
    values = {value.name: value for value in (*graph.initializers.values(), *graph.inputs)}
    values |= {output.name: output for each in graph for output in each.outputs}
    for argument, named in (("xs", xs), ("zs", zs)):
        for name in named:
            if name not in values or not name:
                raise InvalidModelError(f"{argument}: the graph has no value {name!r} (correct the name).")
    attribute = node.attributes.get("y")
    if attribute is None or attribute.type != ir.AttributeType.STRING:
        raise InvalidModelError("its attribute y is missing, or no string (add it).")
    bound = [*(values[name] for name in (*xs, *zs)), computed_value(graph, attribute.as_string(), "y")]
    first = len(node.inputs)
    node.resize_inputs(first + len(bound))
    for index, value in enumerate(bound, first):
        node.replace_input_with(index, value)


def _names(node: ir.Node, name: str) -> Sequence[str]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return []
    if attribute.type != ir.AttributeType.STRINGS:
        raise InvalidModelError(f"its attribute {name} is no list of strings (correct it).")
    names = attribute.as_strings()
    if len(set(names)) != len(names):
        raise InvalidModelError(f"its attribute {name} has a name twice: {', '.join(names)} (correct it).")
    return names


class _Expansion:
    """The work on one graph."""

    def __init__(self, graph: ir.Graph, opset_imports: Mapping[str, int], opset: int) -> None:
        self._graph = graph
        self._opset_imports = opset_imports
        self._opset = opset
        self._unique_name = unique_names(names_in(graph))

    def run(self, is_gradient: Callable[[ir.Node], bool]) -> tuple[str, ...]:
        """Expand the nodes, of which each comes after those that its y comes from; return their names."""
        self._sort()
        nodes = [node for node in self._graph if is_gradient(node)]
        for node in nodes:
            with _named(node):
                self._expand(_Request(node, self._graph))
            # What was written is at the end, and nodes before it may read it.
            self._sort()
        return tuple(map(name_of, nodes))

    def _sort(self) -> None:
        try:
            self._graph.sort()
        except ValueError as error:
            raise InvalidModelError(
                "A Gradient node has a y that depends on itself (correct its attribute y)."
            ) from error

    def _expand(self, request: "_Request") -> None:
        node, y, sources = request.node, request.y, request.xs
        if not request.is_in_place():
            y, sources = self._copied(request)
        wanted = [index for index, output in enumerate(node.outputs) if output.name]
        infos = self._infer()
        for index in wanted:
            if infos[sources[index]].element_type not in FLOATS:
                raise InvalidModelError(
                    f"xs: {request.xs[index].name!r} is not known to be of type float, double, float16 or bfloat16, "
                    "and only such tensors have gradients."
                )
        backward = Backward(self._graph, infos, self._opset, self._unique_name)
        y = backward.with_bodies(y, [sources[index] for index in wanted], self._infer)
        names = [self._unique_name(f"{name_of(node)}/{request.xs[index].name}") for index in wanted]
        gradients = backward.write(y, backward.ones(y), [sources[index] for index in wanted], names) if wanted else []
        outputs: list[ir.Value | None] = [None] * len(node.outputs)
        for index, gradient in zip(wanted, gradients, strict=True):
            outputs[index] = gradient
        replace_nodes([Replacement(node, [], outputs)])

    def _infer(self) -> dict[ir.Value, TensorInfo]:
        return infer(self._graph, Functions(()), self._opset_imports)

    def _copied(self, request: "_Request") -> tuple[ir.Value, list[ir.Value]]:
        """Write the nodes that lead to y once more, with the node's inputs for xs and zs; return y and xs of these."""
        node = request.node
        sources = []
        for value, given in zip(request.xs, request.inputs, strict=False):
            # One of its own, for it may be given for several, and be computed from another.
            source = ir.Value(name=self._unique_name(f"{name_of(node)}/{value.name}"), type=value.type)
            self._graph.append(ir.Node("", "Identity", [given], outputs=[source], name=source.name))
            sources.append(source)
        renewed = dict(zip(request.xs, sources, strict=True))
        renewed |= dict(zip(request.zs, request.inputs[len(request.xs) :], strict=True))
        for each in request.leading_to_y():
            if renewed.keys().isdisjoint(operands(each)):
                continue
            if any(subgraphs_of(each)):
                raise InvalidModelError(
                    f"{each.op_type} node {name_of(each)!r} leads to y and holds a graph, so that it is not computed "
                    "for other inputs than those that xs and zs name (give the node these inputs)."
                )
            outputs = [
                ir.Value(name=self._unique_name(f"{name_of(node)}/{output.name}") if output.name else "")
                for output in each.outputs
            ]
            inputs = [None if value is None else renewed.get(value, value) for value in each.inputs]
            name = self._unique_name(f"{name_of(node)}/{name_of(each)}")
            self._graph.append(
                ir.Node(each.domain, each.op_type, inputs, each.attributes.values(), outputs=outputs, name=name)
            )
            renewed |= dict(zip(each.outputs, outputs, strict=True))
        return renewed.get(request.y, request.y), sources


class _Request:
    """What a bound node asks for.

    Attributes:
        node: The node.
        inputs: Its inputs.
        xs: The values that it names as xs.
        zs: The values that it names as zs.
        y: The value that it names as y.
    """

    def __init__(self, node: ir.Node, graph: ir.Graph) -> None:
        self.node = node
        self._graph = graph
        count = len(node.inputs) // 2
        *values, self.y = operands(node)
        self.inputs, named = values[:count], values[count:]
        first = len(_names(node, "xs"))
        self.xs, self.zs = named[:first], named[first:]
        self._refuse_dependent()

    def is_in_place(self) -> bool:
        """Return whether the node's inputs are the tensors that it names."""
        return self.inputs == [*self.xs, *self.zs]

    def leading_to_y(self) -> list[ir.Node]:
        """Return the nodes that compute y from xs and zs, in their order."""
        independent = {*self.xs, *self.zs}
        found: set[ir.Node] = set()
        pending = [self.y]
        while pending:
            value = pending.pop()
            producer = value.producer()
            if value in independent or producer is None or producer in found:
                continue
            found.add(producer)
            pending += operands(producer)
        return [node for node in self._graph if node in found]

    def _refuse_dependent(self) -> None:
        """Refuse xs and zs that are computed from xs."""
        dependent = set(self.xs)
        for node in self._graph:
            if not dependent.isdisjoint(operands(node)):
                for output in node.outputs:
                    if output in self.xs or output in self.zs:
                        raise InvalidModelError(
                            f"{output.name!r} is among xs and zs and is computed from others of them, which ONNX "
                            "excludes (leave it out, or name it in a node of its own)."
                        )
                dependent.update(node.outputs)
