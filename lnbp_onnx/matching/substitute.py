# SPDX-License-Identifier: Apache-2.0
"""Putting the operator in the place of what computes its outputs, and removing what nobody uses any more."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx import AttributeProto

from lnbp_onnx import spec
from lnbp_onnx.matching.gradient import Gradient, Statistic
from lnbp_onnx.matching.views import VIEWS
from lnbp_onnx.node import BackpropNode, Dim, TensorInfo, attribute_protos, describe, parse

# What computes a value that is equal to its first operand, where it is known to be equal to it at all.
_KEEPING = frozenset({*VIEWS, "ReduceSum", "ReduceMean", "Transpose"})


@dataclass(frozen=True, slots=True)
class _Target:
    """A value that an output of the operator replaces; `shape` is its own where that is another one."""

    value: ir.Value
    shape: tuple[int, ...] | None = None


class Substitution:
    """The changes of one graph.

    Args:
        graph: The graph.
        infos: What is known of its values; what is known of new ones is added.
        owners: For each subgraph of the scope the node that holds it.
        unique_name: Makes names unique.
    """

    def __init__(
        self,
        graph: ir.Graph,
        infos: dict[ir.Value, TensorInfo],
        owners: Mapping[ir.Graph, ir.Node],
        unique_name: Callable[[str], str],
    ) -> None:
        self._graph = graph
        self._infos = infos
        self._owners = owners
        self._unique_name = unique_name
        # A node inserted after another has its position and more, which orders as the nodes do.
        self._positions: dict[ir.Node, tuple[int, ...]] = {node: (index,) for index, node in enumerate(graph)}
        self._insertions = 0

    def parse(self, gradient: Gradient) -> BackpropNode:
        """Read the node that a gradient would become.

        Raises:
            InvalidNodeError: Where the specification refuses it.
        """
        statistic = None if gradient.statistic is None else gradient.statistic.value
        inputs = (gradient.x, gradient.dy, gradient.gamma, gradient.beta, gradient.mean, statistic)
        infos = [None if value is None else self._infos[value] for value in inputs]
        if gradient.dy_order is not None:
            infos[1] = infos[0]
        if infos[2] is not None and gradient.gamma_shape is not None:
            infos[2] = TensorInfo(infos[2].element_type, gradient.gamma_shape)
        affine = gradient.gamma is not None
        return parse(
            describe("", [value.name or "" for values in gradient.outputs.values() for value in values]),
            _attributes(gradient),
            infos,
            (True, affine, affine),
        )

    def apply(self, gradient: Gradient) -> ir.Node | None:
        """Replace what computes a gradient by the operator; return its node, None where nothing is gained."""
        sources = (
            gradient.x,
            gradient.dy,
            gradient.gamma,
            gradient.beta,
            gradient.mean,
            None if gradient.statistic is None else gradient.statistic.value,
        )
        producers = [value.producer() for value in sources if value is not None]
        last = max(
            (node for node in producers if node in self._positions),
            key=lambda node: self._positions[node],
            default=None,
        )
        position = () if last is None else self._positions[last]
        targets = {name: self._targets(gradient, name, position) for name in spec.OUTPUT_NAMES}
        if not targets["input_delta"] and not targets["gamma_delta"]:
            return None

        origin = next(target.value for each in targets.values() for target in each)
        origin_node = origin.producer()
        assert origin_node is not None
        label = origin_node.name or origin.name or spec.OP_TYPE
        nodes: list[ir.Node] = []
        inputs = (
            gradient.x,
            self._in_order(gradient, label, nodes),
            self._in_shape(gradient, label, nodes),
            gradient.beta,
            self._mean(gradient, label, nodes),
            self._variance(gradient.statistic, label, nodes),
        )
        operator = self._operator(gradient, inputs, label, targets)
        nodes.append(operator)
        renewed: dict[ir.Value, ir.Value] = {}
        for name, output in zip(spec.OUTPUT_NAMES, operator.outputs, strict=False):
            renewed.update(self._copies(output, targets[name], nodes))
        for node in nodes:
            node.metadata_props.update(origin_node.metadata_props)
        self._insert(nodes, last, position)
        self._replace(renewed)
        remove_unused(renewed)
        return operator

    def _targets(self, gradient: Gradient, name: str, position: tuple[int, ...]) -> list[_Target]:
        """Choose the values to replace, of those that are equal to an output."""
        # Where there is one row, beta_delta is dy.
        equal = [value for value in gradient.outputs.get(name, ()) if value is not gradient.dy]
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
            shape = _reshape_target(self._infos[value].shape)
            if origin is not None:
                chosen[origin] = _Target(origin)
            elif shape is not None:
                chosen[value] = _Target(value, shape)
        return [target for value, target in chosen.items() if self._is_used_after(value, position)]

    def _is_needed(self, value: ir.Value, equal: Sequence[ir.Value]) -> bool:
        """Return whether something but the computation of other equal values uses a value."""
        return value.is_graph_output() or any(
            output not in equal for node in value.consumers() for output in node.outputs
        )

    def _is_used_after(self, value: ir.Value, position: tuple[int, ...]) -> bool:
        for node in value.consumers():
            user = node
            while user.graph is not self._graph:
                assert isinstance(user.graph, ir.Graph)
                user = self._owners[user.graph]
            if self._positions[user] <= position:
                return False
        return True

    def _reference_shape(self, gradient: Gradient, name: str) -> tuple[Dim, ...] | None:
        like = gradient.x if name == "input_delta" else gradient.gamma
        if name == "beta_delta" and gradient.beta is not None:
            like = gradient.beta
            return self._infos[like].shape
        if name != "input_delta" and gradient.gamma_shape is not None:
            return gradient.gamma_shape
        return None if like is None else self._infos[like].shape

    def _in_order(self, gradient: Gradient, label: str, nodes: list[ir.Node]) -> ir.Value:
        """Return dy with its axes in x's order."""
        if gradient.dy_order is None:
            return gradient.dy
        permutation = ir.AttrInt64s("perm", gradient.dy_order)
        info = self._infos[gradient.x]
        return self._step(nodes, "Transpose", [gradient.dy], f"{label}/output_delta", info, permutation)

    def _in_shape(self, gradient: Gradient, label: str, nodes: list[ir.Node]) -> ir.Value | None:
        """Return gamma in a shape that the operator takes."""
        shape = _reshape_target(gradient.gamma_shape)
        if gradient.gamma is None or shape is None:
            return gradient.gamma
        info = TensorInfo(self._infos[gradient.gamma].element_type, gradient.gamma_shape)
        return self._reshaped(nodes, gradient.gamma, shape, f"{label}/gamma", info)

    def _mean(self, gradient: Gradient, label: str, nodes: list[ir.Node]) -> ir.Value | None:
        """Return the mean, in float where the variance is computed in it: the two must have one type."""
        if gradient.mean is None or gradient.statistic is None or gradient.statistic.kind == "variance":
            return gradient.mean
        return self._in_float(nodes, gradient.mean, f"{label}/mean")

    def _variance(self, statistic: Statistic | None, label: str, nodes: list[ir.Node]) -> ir.Value | None:
        """Return the variance, computed where only its root is at hand."""
        if statistic is None or statistic.kind == "variance":
            return None if statistic is None else statistic.value
        # The square of a half number is often none.
        value = self._in_float(nodes, statistic.value, f"{label}/statistic")
        info = self._infos[value]
        if statistic.kind == "std":
            return self._step(nodes, "Mul", [value, value], f"{label}/variance", info)
        squared = self._step(nodes, "Mul", [value, value], f"{label}/rstd_squared", info)
        return self._step(nodes, "Reciprocal", [squared], f"{label}/variance", info)

    def _in_float(self, nodes: list[ir.Node], value: ir.Value, name: str) -> ir.Value:
        """Return a value of a half type in float, any other one as it is."""
        info = self._infos[value]
        if info.element_type not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            return value
        to = ir.AttrInt64("to", ir.DataType.FLOAT)
        return self._step(nodes, "Cast", [value], name, TensorInfo(ir.DataType.FLOAT, info.shape), to)

    def _reshaped(
        self, nodes: list[ir.Node], value: ir.Value, shape: tuple[int, ...], name: str, info: TensorInfo
    ) -> ir.Value:
        tensor = ir.AttrTensor("value", ir.tensor(np.array(shape, np.int64)))
        vector_info = TensorInfo(ir.DataType.INT64, (len(shape),))
        target = self._step(nodes, "Constant", [], f"{name}_shape", vector_info, tensor)
        return self._step(nodes, "Reshape", [value, target], name, info)

    def _step(
        self,
        nodes: list[ir.Node],
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        info: TensorInfo,
        *attributes: ir.Attr,
    ) -> ir.Value:
        output = self._new_value(self._unique_name(name), info)
        nodes.append(ir.Node("", op_type, inputs, attributes, outputs=[output], name=output.name))
        return output

    def _operator(
        self,
        gradient: Gradient,
        inputs: Sequence[ir.Value | None],
        label: str,
        targets: Mapping[str, Sequence[_Target]],
    ) -> ir.Node:
        while inputs[-1] is None:
            inputs = inputs[:-1]
        outputs = []
        for name in spec.OUTPUT_NAMES:
            if name != "input_delta" and not targets[name]:
                outputs.append(ir.Value(name=""))
                continue
            like = gradient.x if name == "input_delta" else gradient.gamma
            assert like is not None
            info = TensorInfo(self._infos[like].element_type, self._reference_shape(gradient, name))
            outputs.append(self._new_value(self._unique_name(f"{label}/{name}"), info))
        while outputs[-1].name == "":
            outputs.pop()
        attributes = [ir.serde.deserialize_attribute(proto) for proto in _attributes(gradient).values()]
        name = self._unique_name(f"{label}/{spec.OP_TYPE}")
        return ir.Node(spec.DOMAIN, spec.OP_TYPE, inputs, attributes, outputs=outputs, name=name)

    def _copies(self, output: ir.Value, targets: Sequence[_Target], nodes: list[ir.Node]) -> dict[ir.Value, ir.Value]:
        """Return what replaces each target: the output itself, once, copies and views of it."""
        renewed: dict[ir.Value, ir.Value] = {}
        for target in targets:
            name, info = f"{target.value.name}/copy", self._infos[target.value]
            if target.shape is not None:
                renewed[target.value] = self._reshaped(nodes, output, target.shape, name, info)
            elif output in renewed.values():
                renewed[target.value] = self._step(nodes, "Identity", [output], name, info)
            else:
                renewed[target.value] = output
        return renewed

    def _replace(self, renewed: Mapping[ir.Value, ir.Value]) -> None:
        for old, new in renewed.items():
            self._infos[new] = self._infos[old]
            take_over(old, new)
        if not any(old.is_graph_output() for old in renewed):
            return
        for index, output in enumerate(self._graph.outputs):
            if output in renewed:
                self._graph.outputs[index] = renewed[output]

    def _insert(self, nodes: Sequence[ir.Node], last: ir.Node | None, position: tuple[int, ...]) -> None:
        if last is not None:
            self._graph.insert_after(last, nodes)
        else:
            self._graph.insert_before(self._graph[0], nodes)
        self._insertions += 1
        for index, node in enumerate(nodes):
            self._positions[node] = (*position, -self._insertions, index)

    def _new_value(self, name: str, info: TensorInfo) -> ir.Value:
        value = ir.Value(name=name)
        value.type = None if info.element_type is None else ir.TensorType(ir.DataType(info.element_type))
        value.shape = None if info.shape is None else ir.Shape(info.shape)
        self._infos[value] = info
        return value


def _derives_from(value: ir.Value, origins: Container[ir.Value]) -> bool:
    """Return whether a value is one of `origins`, or a view or conversion of one."""
    current: ir.Value | None = value
    while current is not None:
        if current in origins:
            return True
        node = current.producer()
        current = node.inputs[0] if node is not None and node.inputs and node.op_type in _KEEPING else None
    return False


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Give a value's name, and its type and shape where it declares them, to another one, and its users."""
    new.name = old.name
    new.type = old.type or new.type
    new.shape = old.shape if old.shape is not None else new.shape
    for user, index in tuple(old.uses()):
        user.replace_input_with(index, new)


def remove_unused(values: Iterable[ir.Value]) -> None:
    """Remove the nodes of values that nothing uses, and what only they used: nodes and initializers."""
    pending = list(values)
    removed: dict[ir.Graph, list[ir.Node]] = {}
    while pending:
        value = pending.pop()
        if value.uses() or value.is_graph_output():
            continue
        node = value.producer()
        if node is None:
            if value.is_initializer() and not value.is_graph_input() and value.graph is not None:
                value.graph.initializers.pop(value.name or "", None)
            continue
        if not isinstance(node.graph, ir.Graph) or any(each.uses() or each.is_graph_output() for each in node.outputs):
            continue
        pending += [source for source in node.inputs if source is not None]
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        removed.setdefault(node.graph, []).append(node)
    # One removal for all of a graph, as each looks at all of the graph's outputs.
    for graph, nodes in removed.items():
        graph.remove(nodes)


def _attributes(gradient: Gradient) -> dict[str, AttributeProto]:
    return attribute_protos(gradient.axis, gradient.gamma is not None, gradient.epsilon, gradient.statistic is not None)


def _reshape_target(shape: tuple[Dim, ...] | None) -> tuple[int, ...] | None:
    """Return what a Reshape to this shape is given, None where it is not known enough."""
    if shape is None or sum(not isinstance(dim, int) for dim in shape) > 1:
        return None
    return tuple(dim if isinstance(dim, int) else -1 for dim in shape)
