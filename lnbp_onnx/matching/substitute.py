# SPDX-License-Identifier: Apache-2.0
"""Putting the operator in the place of what computes its outputs, and removing what nobody uses any more."""

from collections.abc import Callable, Container, Mapping, Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir
from onnx import AttributeProto

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidNodeError
from lnbp_onnx.graphs.inference import info_of
from lnbp_onnx.graphs.replace import Users, detach_unused, remove_nodes, take_over
from lnbp_onnx.graphs.writer import Writer
from lnbp_onnx.matching.gradient import Gradient
from lnbp_onnx.matching.operands import Statistic
from lnbp_onnx.matching.views import VIEWS
from lnbp_onnx.node import BackpropNode, Dim, TensorInfo, attribute_protos, describe, parse

# What computes a value that is equal to its first operand, where it is known to be equal to it at all.
_KEEPING = frozenset({*VIEWS, "ReduceSum", "ReduceMean", "Transpose"})
# The place of what reads the graph's inputs only.
_BEGINNING = -1


@dataclass(frozen=True, slots=True)
class _Target:
    """A value that an output of the operator replaces.

    Attributes:
        value: The value.
        shape: Its own shape, where that is another one.
        has_seeds: Whether its shape has one more axis, at its end and of length 1.
    """

    value: ir.Value
    shape: tuple[int, ...] | None = None
    has_seeds: bool = False


class Substitution:
    """The changes of one graph.

    Args:
        graph: The graph.
        infos: What is known of its values; what is known of new ones is added.
        owners: For each subgraph of the scope the node that holds it.
        opset: The version of the default domain that the graph is written in.
        unique_name: Makes names unique.
    """

    def __init__(
        self,
        graph: ir.Graph,
        infos: dict[ir.Value, TensorInfo],
        owners: Mapping[ir.Graph, ir.Node],
        opset: int,
        unique_name: Callable[[str], str],
    ) -> None:
        self._graph = graph
        self._infos = infos
        self._owners = owners
        self._opset = opset
        self._unique_name = unique_name
        # Nodes are inserted after one that was there from the beginning, those of a later gradient after the others'.
        self._positions: dict[ir.Node, tuple[int, int]] = {node: (index, 0) for index, node in enumerate(graph)}
        self._places: dict[int, list[ir.Node]] = {index: [node] for index, node in enumerate(graph)}
        self._users = Users()
        self._output_indices: dict[ir.Value, list[int]] = {}
        for index, output in enumerate(graph.outputs):
            self._output_indices.setdefault(output, []).append(index)
        self._removed: set[ir.Node] = set()

    @property
    def removed(self) -> Set[ir.Node]:
        """The nodes that nobody uses any more, which `finish` removes."""
        return self._removed

    def finish(self) -> None:
        """Remove what nobody uses any more: at once, as a removal looks at all of a graph's outputs."""
        remove_nodes(self._removed)
        self._removed.clear()

    def parse(self, gradient: Gradient) -> BackpropNode:
        """Read the node that a gradient would become.

        Raises:
            InvalidNodeError: Where the specification refuses it.
        """
        infos = [None if value is None else self._infos[value] for value in gradient.operands.inputs]
        if gradient.operands.dy_axes is not None or gradient.operands.dy_has_seeds:
            infos[1] = infos[0]
        if infos[2] is not None and gradient.gamma_shape is not None:
            infos[2] = TensorInfo(infos[2].element_type, gradient.gamma_shape)
        affine = gradient.operands.gamma is not None
        return parse(
            describe("", [value.name or "" for values in gradient.outputs.values() for value in values]),
            _attributes(gradient),
            infos,
            (True, affine, affine),
        )

    def apply(self, gradient: Gradient) -> ir.Node | None:
        """Replace what computes a gradient by the operator; return its node, None where nothing is gained."""
        read = (*gradient.operands.inputs, *gradient.addends)
        producers = [value.producer() for value in read if value is not None]
        place = max((self._positions[node][0] for node in producers if node in self._positions), default=_BEGINNING)
        targets = {name: self._targets(gradient, name, place) for name in spec.OUTPUT_NAMES}
        if not targets["input_delta"] and not targets["gamma_delta"]:
            return None

        origin = next(target.value for each in targets.values() for target in each)
        origin_node = origin.producer()
        assert origin_node is not None
        label = origin_node.name or origin.name or spec.OP_TYPE
        writer = self._writer(label, origin_node)
        inputs = (
            gradient.operands.x,
            self._in_order(gradient, writer),
            self._in_shape(gradient, writer),
            gradient.operands.beta,
            self._mean(gradient, writer),
            self._variance(gradient.operands.statistic, writer),
        )
        operator = self._operator(gradient, inputs, writer, targets)
        nodes = writer.nodes
        renewed: dict[ir.Value, ir.Value] = {}
        results = list(operator.outputs)
        for addend in gradient.addends:
            shape = self._infos[addend].shape
            results[0] = writer.op("Add", addend, results[0], name="input_delta_sum", shape=shape)
        for name, output in zip(spec.OUTPUT_NAMES, results, strict=False):
            for target in targets[name]:
                copies = self._writer(target.value.name or label, origin_node)
                renewed[target.value] = self._copy(output, target, output in renewed.values(), copies)
                nodes += copies.nodes
        self._infos.update((value, info_of(value)) for node in nodes for value in node.outputs)
        self._insert(nodes, place)
        self._replace(renewed)
        self._removed.update(detach_unused(renewed, self._users))
        return operator

    def _writer(self, label: str, origin: ir.Node) -> Writer:
        return Writer(
            label,
            self._opset,
            self._unique_name,
            self._infos,
            prefix=f"{label}/",
            error=InvalidNodeError,
            metadata=origin.metadata_props,
        )

    def _targets(self, gradient: Gradient, name: str, place: int) -> list[_Target]:
        """Choose the values to replace, of those that are equal to an output."""
        # Where there is one row, beta_delta is dy.
        equal = [value for value in gradient.outputs.get(name, ()) if value is not gradient.operands.dy]
        wanted = self._reference_shape(gradient, name)
        exact = [value for value in equal if gradient.is_shaped or self._infos[value].shape == wanted]
        chosen: dict[ir.Value, _Target] = {}
        for value in exact:
            if self._is_needed(value, equal) and not _derives_from(value, chosen):
                chosen[value] = _Target(value)
        for value in equal:
            if value in exact or not self._is_needed(value, equal) or _derives_from(value, chosen):
                continue
            # A view of a value with the operator's shape stays a view of it.
            origin = next((each for each in exact if _derives_from(value, [each])), None)
            own = self._infos[value].shape
            shape = _reshape_target(own)
            if origin is not None:
                chosen[origin] = _Target(origin)
            elif own is not None and wanted is not None and own == (*wanted, 1) and None not in own:
                chosen[value] = _Target(value, has_seeds=True)
            elif shape is not None:
                chosen[value] = _Target(value, shape)
        return [target for value, target in chosen.items() if self._is_used_after(value, place)]

    def _is_needed(self, value: ir.Value, equal: Sequence[ir.Value]) -> bool:
        """Return whether something but the computation of other equal values uses a value."""
        return value.is_graph_output() or any(
            output not in equal for node in value.consumers() for output in node.outputs
        )

    def _is_used_after(self, value: ir.Value, place: int) -> bool:
        """Return whether only nodes after those at a place use a value."""
        end = (place, len(self._places.get(place, ())))
        for node in value.consumers():
            user = node
            while user.graph is not self._graph:
                assert isinstance(user.graph, ir.Graph)
                user = self._owners[user.graph]
            if self._positions[user] < end:
                return False
        return True

    def _reference_shape(self, gradient: Gradient, name: str) -> tuple[Dim, ...] | None:
        like = gradient.operands.x if name == "input_delta" else gradient.operands.gamma
        if name == "beta_delta" and gradient.operands.beta is not None:
            like = gradient.operands.beta
            return self._infos[like].shape
        if name != "input_delta" and gradient.gamma_shape is not None:
            return gradient.gamma_shape
        return None if like is None else self._infos[like].shape

    def _in_order(self, gradient: Gradient, writer: Writer) -> ir.Value | None:
        """Return dy with x's axes in their order."""
        dy, order = gradient.operands.dy, gradient.operands.dy_order
        shape = self._infos[gradient.operands.x].shape
        if dy is not None and gradient.operands.dy_has_seeds:
            return writer.squeeze(dy, -1, name="output_delta", shape=shape)
        if dy is None or order is None:
            return dy
        return writer.op("Transpose", dy, name="output_delta", shape=shape, perm=list(order))

    def _in_shape(self, gradient: Gradient, writer: Writer) -> ir.Value | None:
        """Return gamma in a shape that the operator takes."""
        shape = _reshape_target(gradient.gamma_shape)
        if gradient.operands.gamma is None or shape is None:
            return gradient.operands.gamma
        return _reshaped(writer, gradient.operands.gamma, shape, "gamma", gradient.gamma_shape)

    def _mean(self, gradient: Gradient, writer: Writer) -> ir.Value | None:
        """Return the mean, in float where the variance is computed in it: the two must have one type."""
        mean, statistic = gradient.operands.mean, gradient.operands.statistic
        if mean is None or statistic is None or statistic.kind == "variance":
            return mean
        return writer.in_float(mean, name="mean")

    def _variance(self, statistic: Statistic | None, writer: Writer) -> ir.Value | None:
        """Return the variance, computed where only its root is at hand."""
        if statistic is None or statistic.kind == "variance":
            return None if statistic is None else statistic.value
        # The square of a half number is often none.
        value = writer.in_float(statistic.value, name="statistic")
        shape = self._infos[statistic.value].shape
        if statistic.kind == "std":
            return writer.op("Mul", value, value, name="variance", shape=shape)
        squared = writer.op("Mul", value, value, name="rstd_squared", shape=shape)
        return writer.op("Reciprocal", squared, name="variance", shape=shape)

    def _operator(
        self,
        gradient: Gradient,
        inputs: Sequence[ir.Value | None],
        writer: Writer,
        targets: Mapping[str, Sequence[_Target]],
    ) -> ir.Node:
        while inputs[-1] is None:
            inputs = inputs[:-1]
        steps = [name if name == "input_delta" or targets[name] else "" for name in spec.OUTPUT_NAMES]
        while not steps[-1]:
            steps.pop()
        likes = [
            gradient.operands.x if name == "input_delta" else gradient.operands.gamma if name else None
            for name in steps
        ]
        outputs = writer.ops(
            spec.OP_TYPE,
            *inputs,
            outputs=steps,
            element_type=[None if like is None else self._infos[like].element_type for like in likes],
            domain=spec.DOMAIN,
            **{name: ir.serde.deserialize_attribute(proto) for name, proto in _attributes(gradient).items()},
        )
        for name, output in zip(steps, outputs, strict=True):
            shape = self._reference_shape(gradient, name)
            output.shape = None if not name or shape is None else ir.Shape(shape)
        return writer.nodes[-1]

    def _copy(self, output: ir.Value, target: _Target, is_taken: bool, writer: Writer) -> ir.Value:
        """Return what replaces a target: the output itself, once, copies and views of it."""
        shape = self._infos[target.value].shape
        if target.has_seeds:
            return writer.unsqueeze(output, -1, name="copy", shape=shape)
        if target.shape is not None:
            return _reshaped(writer, output, target.shape, "copy", shape)
        return writer.op("Identity", output, name="copy", shape=shape) if is_taken else output

    def _replace(self, renewed: Mapping[ir.Value, ir.Value]) -> None:
        for old, new in renewed.items():
            self._infos[new] = self._infos[old]
            take_over(old, new)
            self._output_indices[new] = self._output_indices.pop(old, [])
            for index in self._output_indices[new]:
                self._graph.outputs[index] = new

    def _insert(self, nodes: Sequence[ir.Node], place: int) -> None:
        there = self._places.setdefault(place, [])
        while there and there[-1].graph is not self._graph:
            there.pop()
        if there:
            self._graph.insert_after(there[-1], nodes)
        else:
            self._graph.insert_before(self._graph[0], nodes)
        for node in nodes:
            self._positions[node] = (place, len(there))
            there.append(node)


def _derives_from(value: ir.Value, origins: Container[ir.Value]) -> bool:
    """Return whether a value is one of `origins`, or a view or conversion of one."""
    current: ir.Value | None = value
    while current is not None:
        if current in origins:
            return True
        node = current.producer()
        current = node.inputs[0] if node is not None and node.inputs and node.op_type in _KEEPING else None
    return False


def _reshaped(
    writer: Writer, value: ir.Value, target: Sequence[int], name: str, shape: Sequence[Dim] | None
) -> ir.Value:
    return writer.op("Reshape", value, writer.ints(*target), name=name, shape=shape)


def _attributes(gradient: Gradient) -> dict[str, AttributeProto]:
    affine, stats = gradient.operands.gamma is not None, gradient.operands.statistic is not None
    return attribute_protos(gradient.axis, affine, gradient.epsilon, stats)


def _reshape_target(shape: tuple[Dim, ...] | None) -> tuple[int, ...] | None:
    """Return what a Reshape to this shape is given, None where it is not known enough."""
    if shape is None or sum(not isinstance(dim, int) for dim in shape) > 1:
        return None
    return tuple(dim if isinstance(dim, int) else -1 for dim in shape)
