# SPDX-License-Identifier: Apache-2.0
"""Which values a gradient leads from and to, through branches and loops."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx.gradients import CONSTANT, CONSTANT_INPUTS
from lnbp_onnx.graphs.inference import constant_tensor, known, subgraphs_of
from lnbp_onnx.node import TensorInfo

Infos = Mapping[ir.Value, TensorInfo]
LOOPS = ("Loop", "Scan")
CONTROL_FLOW = ("If", *LOOPS)

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_QUANTIZING = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear"}
)


@dataclass(frozen=True, slots=True)
class State:
    """What a loop carries: what it begins with, what an iteration gets and gives, and what it ends as."""

    operand: ir.Value
    before: ir.Value
    after: ir.Value
    result: ir.Value


@dataclass(frozen=True, slots=True)
class Slices:
    """What the iterations get or give, as slices of a whole: along an axis, in a direction, 1 from the end."""

    value: ir.Value
    whole: ir.Value
    axis: int
    direction: int

    def backwards(self, value: ir.Value, whole: ir.Value) -> "Slices":
        """Return other slices along the same axis from the other end."""
        return Slices(value, whole, self.axis, 1 - self.direction)


@dataclass(frozen=True, slots=True)
class Iteration:
    """The body of a Loop or a Scan.

    Attributes:
        body: The graph.
        states: What it carries.
        taken: What an iteration gets of inputs.
        given: What an iteration gives to results.
    """

    body: ir.Graph
    states: Sequence[State]
    taken: Sequence[Slices]
    given: Sequence[Slices]


def is_control_flow(node: ir.Node) -> bool:
    """Return whether a node is a branch or a loop."""
    return node.domain == "" and node.op_type in CONTROL_FLOW


def is_random(node: ir.Node) -> bool:
    """Return whether a node draws numbers, others each time."""
    if node.domain != "" or node.op_type != "Dropout":
        return node.domain == "" and node.op_type in _RANDOM
    is_training = node.inputs[2] if len(node.inputs) > 2 else None
    constant = None if is_training is None else constant_tensor(is_training)
    return is_training is not None and (constant is None or bool(constant.numpy()))


def iteration_of(node: ir.Node) -> Iteration:
    """Read a Loop or a Scan."""
    body = node.attributes["body"].as_graph()
    if node.op_type == "Loop":
        operands, inputs, outputs, scanned = node.inputs[2:], body.inputs[2:], body.outputs[1:], 0
    else:
        operands, inputs, outputs = node.inputs, body.inputs, body.outputs
        scanned = node.attributes["num_scan_inputs"].as_int()
    count = len(operands) - scanned
    states = [
        State(operand, *values)
        for operand, *values in zip(operands[:count], inputs, outputs, node.outputs, strict=False)
        if operand is not None
    ]
    return Iteration(
        body,
        states,
        list(_slices(node, "input", inputs[count:], operands[count:])),
        list(_slices(node, "output", outputs[count:], node.outputs[count:])),
    )


def _slices(
    node: ir.Node, kind: str, values: Sequence[ir.Value], wholes: Sequence[ir.Value | None]
) -> Iterator[Slices]:
    axes, directions = (
        node.attributes[name].as_ints() if name in node.attributes else [0] * len(values)
        for name in (f"scan_{kind}_axes", f"scan_{kind}_directions")
    )
    for value, whole, axis, direction in zip(values, wholes, axes, directions, strict=False):
        if whole is not None:
            yield Slices(value, whole, axis, direction)


def branches_of(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs of an If."""
    return [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]


def may_have_gradient(value: ir.Value, infos: Infos) -> bool:
    """Return whether a value is of a floating type, 8 bits and less included, or of an unknown one."""
    element_type = known(value, infos).element_type
    return element_type is None or ir.DataType(element_type).is_floating_point()


def dependent(graph: Iterable[ir.Node], sources: Iterable[ir.Value], infos: Infos) -> set[ir.Value]:
    """Return the values of a graph that a gradient leads from to the sources, which may be outside of it."""
    found = set(sources)
    for node in graph:
        outputs = [output for output in _dependent_outputs(node, found, infos) if output.name]
        if outputs and not _is_quantized(node, found, infos):
            outputs = [output for output in outputs if may_have_gradient(output, infos)]
        found.update(outputs)
    return found


def _is_quantized(node: ir.Node, found: set[ir.Value], infos: Infos) -> bool:
    """Return whether a node's integers stand for floating numbers: those have gradients, others have none."""
    if node.domain == "" and node.op_type in _QUANTIZING:
        return True
    return any(value in found and not may_have_gradient(value, infos) for value in node.inputs if value is not None)


def _dependent_outputs(node: ir.Node, found: set[ir.Value], infos: Infos) -> Iterator[ir.Value]:
    if not is_control_flow(node):
        if not (node.domain == "" and node.op_type in CONSTANT) and not found.isdisjoint(operands(node)):
            yield from node.outputs
        return
    if node.op_type == "If":
        for branch in branches_of(node):
            inner = dependent(branch, found, infos)
            yield from (result for result, value in zip(node.outputs, branch.outputs, strict=True) if value in inner)
        return
    iteration = iteration_of(node)
    inner = dependent_in(iteration, found, infos)
    yield from (state.result for state in iteration.states if not inner.isdisjoint((state.before, state.after)))
    yield from (each.whole for each in iteration.given if each.value in inner)


def dependent_in(iteration: Iteration, found: set[ir.Value], infos: Infos) -> set[ir.Value]:
    """Return the values in the body of a loop that a gradient leads from, to values outside that are `found`."""
    sources = {each.value for each in iteration.taken if each.whole in found}
    sources.update(state.before for state in iteration.states if state.operand in found)
    sources = {value for value in sources if may_have_gradient(value, infos)} | found
    while True:
        inner = dependent(iteration.body, sources, infos)
        more = {state.before for state in iteration.states if state.after in inner} - sources
        if not more:
            return inner
        sources |= more


def passed(
    graph: Sequence[ir.Node] | ir.Graph, dependent: set[ir.Value], results: Iterable[ir.Value], infos: Infos
) -> tuple[list[ir.Node], set[ir.Value]]:
    """Return the nodes that gradients of results pass, last first, and the values that they lead to.

    Args:
        graph: The nodes.
        dependent: The values that a gradient leads from.
        results: The values that are differentiated.
        infos: What is known of the values.
    """
    needed, nodes = set(results), []
    for node in reversed(graph):
        if any(output in needed and output in dependent for output in node.outputs):
            sources = _needed_operands(node, dependent, needed, infos)
            if sources:
                nodes.append(node)
                needed.update(sources)
    return nodes, needed


def _needed_operands(node: ir.Node, found: set[ir.Value], needed: set[ir.Value], infos: Infos) -> set[ir.Value]:
    if not is_control_flow(node):
        return found.intersection(operands(node))
    if node.op_type == "If":
        sources = set[ir.Value]()
        for branch in branches_of(node):
            results = [value for result, value in zip(node.outputs, branch.outputs, strict=True) if result in needed]
            sources |= passed(branch, dependent(branch, found, infos), results, infos)[1] & found
        return sources
    iteration = iteration_of(node)
    inner = dependent_in(iteration, found, infos)
    _, led_to, active = passed_in(iteration, inner, needed, infos)
    sources = {state.operand for state in active} | {each.whole for each in iteration.taken if each.value in led_to}
    return (sources | led_to) & found


def passed_in(
    iteration: Iteration, inner: set[ir.Value], needed: set[ir.Value], infos: Infos
) -> tuple[list[ir.Node], set[ir.Value], list[State]]:
    """Return what `passed` does for the body of a loop, and the states that gradients go through.

    Args:
        iteration: The loop.
        inner: What `dependent_in` returned.
        needed: The results of the loop that are differentiated, among others.
        infos: What is known of the values.
    """
    results = {each.value for each in iteration.given if each.whole in needed and each.value in inner}
    active = [
        state
        for state in iteration.states
        if state.result in needed and not inner.isdisjoint((state.before, state.after))
    ]
    while True:
        nodes, led_to = passed(iteration.body, inner, results | {state.after for state in active}, infos)
        more = [state for state in iteration.states if state not in active and state.before in led_to & inner]
        if not more:
            return nodes, led_to, [state for state in iteration.states if state in active]
        active += more


def operands(node: ir.Node) -> list[ir.Value]:
    """Return what a gradient may lead from a node to, values that its subgraphs read included."""
    constant = CONSTANT_INPUTS.get(node.op_type, ()) if node.domain == "" else ()
    if node.op_type == "BatchNormalization" and "training_mode" in node.attributes:
        training = node.attributes["training_mode"]
        constant = (3, 4) if training.is_ref() or training.as_int() else ()
    read = [value for index, value in enumerate(node.inputs) if value is not None and index not in constant]
    return read + captured(node)


def captured(node: ir.Node) -> list[ir.Value]:
    """Return the values that the subgraphs of a node read, also their own."""
    values: list[ir.Value] = []
    for _, subgraphs in subgraphs_of(node):
        for subgraph in subgraphs:
            values += [value for inner in subgraph.all_nodes() for value in inner.inputs if value is not None]
            values += [value for each in (subgraph, *subgraph.subgraphs()) for value in each.outputs]
    return values


def used(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """Return the nodes that the outputs come from; the others are cut off."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.isdisjoint(node.outputs):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        else:
            needed.update(value for value in node.inputs if value is not None)
            needed.update(captured(node))
            kept.append(node)
    return kept[::-1]
