# SPDX-License-Identifier: Apache-2.0
"""Branches and loops: the gradient of a branch is a branch, that of a loop one that goes the other way.

What their graphs compute is computed again; of a loop only what it carries is kept, for each iteration. So memory
grows with the number of iterations by the states alone.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import onnx_ir as ir

from lnbp_onnx.gradients.dependence import (
    Iteration,
    Slices,
    State,
    branches_of,
    captured,
    dependent,
    dependent_in,
    is_random,
    iteration_of,
    passed,
    passed_in,
    used,
)
from lnbp_onnx.gradients.gradient_op import GradientOp
from lnbp_onnx.gradients.recomputation import with_own_statistics
from lnbp_onnx.graphs.inference import subgraphs_of
from lnbp_onnx.graphs.inline import nodes_in, rename
from lnbp_onnx.graphs.operators import name_of
from lnbp_onnx.node import TensorInfo, format_shape

Parts = Sequence[tuple[ir.Value, ir.Value]]
"""Values, each with a gradient of it, of which it may have others."""


class Walk(Protocol):
    """The walk backwards over a graph."""

    infos: dict[ir.Value, TensorInfo]
    nodes: list[ir.Node]

    def unique_name(self, name: str) -> str:
        """Return a name that the model does not have yet."""

    def nested(self, graph: ir.Graph) -> "Walk":
        """Begin the walk over a subgraph."""

    def gradients(self, seeds: Parts, sources: Sequence[ir.Value]) -> list[ir.Value | None]:
        """Write the gradients of sources by those of other values."""

    def op(self, node: ir.Node, deltas: Sequence[ir.Value | None], wanted: Sequence[bool]) -> GradientOp:
        """Return the writer of the gradients of a node."""


class _Copy:
    """A copy of a subgraph, to which gradients are added."""

    def __init__(self, g: GradientOp, walk: Walk, graph: ir.Graph) -> None:
        self.graph = graph.clone(allow_outer_scope_values=True)
        self._copies = dict(_pairs(graph, self.graph))
        rename(self.graph, walk.unique_name)
        self.walk = walk.nested(self.graph)
        for value, copy in self._copies.items():
            self.walk.infos[copy] = g.info(value)
        self.writer = self.walk.op(g.node, [], [])

    def of(self, value: ir.Value) -> ir.Value:
        """Return the copy of a value."""
        return self._copies[value]

    def input(self, like: ir.Value) -> ir.Value:
        """Return a new input for the gradient of a value."""
        info = self.writer.info(like)
        value = ir.Value(
            name=self.walk.unique_name(f"{self.writer.node.name or self.writer.node.op_type}/{like.name}_delta"),
            type=ir.TensorType(self.writer.element_type(like)),
            shape=None if info.shape is None else ir.Shape(info.shape),
        )
        self.walk.infos[value] = info
        return value

    def gradients(self, seeds: Parts, sources: Sequence[ir.Value]) -> list[ir.Value]:
        """Return the gradients of sources, zeros for one that has none."""
        found = self.walk.gradients(seeds, sources)
        return [
            self.writer.zeros_like(source) if gradient is None else gradient
            for source, gradient in zip(sources, found, strict=True)
        ]

    def finish(self, results: Sequence[ir.Value], sources: Sequence[ir.Value]) -> None:
        """Make results the outputs, with the types and shapes of their sources, and remove what they do not need."""
        outputs = []
        for result, source in zip(results, sources, strict=True):
            # ONNX Runtime's Scan must know the ranks, also behind operators that it knows nothing of.
            info = self.writer.info(source)
            outputs.append(self.writer.op("Identity", result, shape=info.shape, element_type=info.element_type))
        forward = list(self.graph)
        self.graph.outputs.clear()
        self.graph.remove(forward)
        self.graph.extend(used([*forward, *self.walk.nodes], outputs))
        self.graph.outputs.extend(outputs)
        for node in tuple(nodes_in(self.graph)):
            if is_random(node):
                self.writer.refuse(
                    f"its {node.op_type} node {name_of(node)!r} draws random numbers, and would draw others where the "
                    "gradient computes it again (draw them outside)"
                )
            if isinstance(node.graph, ir.Graph):
                node.graph.insert_before(node, with_own_statistics(node, self.walk.unique_name))


def _pairs(graph: ir.Graph, copy: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the values of a graph, each with that of the copy."""
    yield from zip(graph.inputs, copy.inputs, strict=True)
    yield from zip(graph.initializers.values(), copy.initializers.values(), strict=True)
    for node, twin in zip(graph, copy, strict=True):
        yield from zip(node.outputs, twin.outputs, strict=True)
        for (_, inner), (_, inner_copies) in zip(subgraphs_of(node), subgraphs_of(twin), strict=True):
            for each, inner_copy in zip(inner, inner_copies, strict=True):
                yield from _pairs(each, inner_copy)


def if_gradient(g: GradientOp, walk: Walk, found: set[ir.Value]) -> Parts:
    """Return the gradients of what the branches of an If read, by an If over the branches' gradients.

    Args:
        g: The If.
        walk: The walk over the graph that it is in.
        found: The values that a gradient leads from.
    """
    led_to = set[ir.Value]()
    for branch in branches_of(g.node):
        results = [value for value, delta in zip(branch.outputs, g.deltas, strict=True) if delta is not None]
        led_to |= passed(branch, dependent(branch, found, walk.infos), results, walk.infos)[1]
    sources = [value for value in dict.fromkeys(captured(g.node)) if value in led_to and value in found]
    branches = []
    for branch in branches_of(g.node):
        copy = _Copy(g, walk, branch)
        deltas = zip(copy.graph.outputs, g.deltas, strict=True)
        seeds = [(value, delta) for value, delta in deltas if delta is not None]
        copy.finish(copy.gradients(seeds, sources), sources)
        branches.append(copy.graph)
    outputs = g.ops(
        "If",
        g.input(0),
        outputs=len(sources),
        element_type=[g.element_type(source) for source in sources],
        then_branch=branches[0],
        else_branch=branches[1],
    )
    return list(zip(sources, outputs, strict=True))


def loop_gradient(g: GradientOp, walk: Walk, found: set[ir.Value]) -> Parts:
    """Return the gradients of what a Loop or a Scan reads, by one of the same kind from the last iteration on.

    Args:
        g: The Loop or Scan, which is given further outputs.
        walk: The walk over the graph that it is in.
        found: The values that a gradient leads from.
    """
    iteration = iteration_of(g.node)
    deltas = {output: delta for output, delta in zip(g.node.outputs, g.deltas, strict=True) if delta is not None}
    inner = dependent_in(iteration, found, walk.infos)
    _, led_to, states = passed_in(iteration, inner, set(deltas), walk.infos)
    for state in states:
        _refuse_changing_shape(g, state)
    outside = [value for value in dict.fromkeys(captured(g.node)) if value in led_to and value in found]
    taken = [each for each in iteration.taken if each.value in led_to & inner]
    given = [each for each in iteration.given if each.whole in deltas and each.value in inner]

    copy = _Copy(g, walk, iteration.body)
    state_deltas = [copy.input(state.before) for state in states]
    totals = [copy.input(value) for value in outside]
    given_deltas = [copy.input(each.value) for each in given]
    seeds = [(copy.of(state.after), delta) for state, delta in zip(states, state_deltas, strict=True)]
    seeds += [(copy.of(each.value), delta) for each, delta in zip(given, given_deltas, strict=True)]
    sources = [
        *(copy.of(state.before) for state in states),
        *outside,
        *(copy.of(each.value) for each in taken),
    ]
    results = copy.gradients(seeds, sources)
    for index, total in enumerate(totals, len(states)):
        results[index] = copy.writer.op("Add", total, results[index])
    copy.finish(results, sources)

    read = _read_again(g, walk, iteration, copy)
    read += [each.backwards(delta, deltas[each.whole]) for each, delta in zip(given, given_deltas, strict=True)]
    begin = [deltas.get(state.result) or g.zeros_like(state.operand) for state in states]
    begin += [g.zeros_like(value) for value in outside]
    wholes = [*(state.operand for state in states), *outside, *(each.whole for each in taken)]
    carried = [*state_deltas, *totals]
    if g.node.op_type == "Loop":
        outputs = _loop(g, walk, copy, carried, begin, read)
    else:
        outputs = _scan(g, copy, carried, begin, read, taken)
    return [(value, output) for value, output in zip(wholes, outputs, strict=True) if value in found]


def _refuse_changing_shape(g: GradientOp, state: State) -> None:
    before, after = g.info(state.before).shape, g.info(state.after).shape
    if before is None or after is None:
        return
    changes = len(before) != len(after) or any(
        isinstance(old, int) and isinstance(new, int) and old != new for old, new in zip(before, after, strict=True)
    )
    if changes:
        g.refuse(
            f"what it carries as {state.before.name!r} changes its shape from {format_shape(before)} to "
            f"{format_shape(after)}; it must keep it (carry it in its final shape)"
        )


def _scan(
    g: GradientOp,
    copy: _Copy,
    carried: Sequence[ir.Value],
    begin: Sequence[ir.Value],
    read: Sequence[Slices],
    taken: Sequence[Slices],
) -> Sequence[ir.Value]:
    copy.graph.inputs.clear()
    copy.graph.inputs.extend([*carried, *(each.value for each in read)])
    return g.ops(
        "Scan",
        *begin,
        *(each.whole for each in read),
        outputs=len(begin) + len(taken),
        element_type=[g.element_type(value) for value in (*begin, *(each.whole for each in taken))],
        body=copy.graph,
        num_scan_inputs=len(read),
        scan_input_axes=[each.axis for each in read],
        scan_input_directions=[each.direction for each in read],
        scan_output_axes=[each.axis for each in taken] or None,
        scan_output_directions=[1 - each.direction for each in taken] or None,
    )


def _loop(
    g: GradientOp,
    walk: Walk,
    copy: _Copy,
    carried: Sequence[ir.Value],
    begin: Sequence[ir.Value],
    read: Sequence[Slices],
) -> Sequence[ir.Value]:
    # Not Scan, which ONNX Runtime does not run without iterations.
    count = g.squeeze(g.part(g.shape(read[0].whole), 0, 1), 0)
    last = g.op("Sub", count, g.constant(1, ir.DataType.INT64))
    number, condition, *_ = copy.graph.inputs
    inner = walk.nested(copy.graph).op(g.node, [], [])
    reversed_number, true = copy.input(number), inner.constant(True, ir.DataType.BOOL)
    place = inner.op("Sub", last, reversed_number)
    for value, replacement in ((number, place), (condition, true)):
        value.replace_all_uses_with(replacement)
    for each in read:
        if each.value.uses():
            each.value.replace_all_uses_with(inner.op("Gather", each.whole, place, axis=0))
    goes_on = inner.op("Identity", true)
    results = list(copy.graph.outputs)
    nodes = list(copy.graph)
    copy.graph.outputs.clear()
    copy.graph.remove(nodes)
    copy.graph.extend([*inner.nodes, *nodes])
    copy.graph.inputs.clear()
    boolean = ir.TensorType(ir.DataType.BOOL)
    ignored = ir.Value(name=walk.unique_name(f"{condition.name}_ignored"), type=boolean, shape=ir.Shape([]))
    copy.graph.inputs.extend([reversed_number, ignored, *carried])
    copy.graph.outputs.extend([goes_on, *results])
    types = [g.element_type(value) for value in begin]
    true = g.constant(True, ir.DataType.BOOL)
    return g.ops("Loop", count, true, *begin, outputs=len(begin), element_type=types, body=copy.graph)


def _read_again(g: GradientOp, walk: Walk, iteration: Iteration, copy: _Copy) -> list[Slices]:
    """Return what the iterations backwards read of what those forwards did; one at least, which tells their number."""
    taken = {each.value: each for each in iteration.taken}
    inputs = iteration.body.inputs[2:] if g.node.op_type == "Loop" else iteration.body.inputs
    read = [value for value in inputs if copy.of(value).uses()] or [iteration.body.inputs[-1 if taken else 0]]
    return [
        taken[value].backwards(copy.of(value), taken[value].whole)
        if value in taken
        else Slices(copy.of(value), _stacked(g, walk, iteration, value), 0, 1)
        for value in read
    ]


def _stacked(g: GradientOp, walk: Walk, iteration: Iteration, value: ir.Value) -> ir.Value:
    """Return what a loop carries at the begin of each iteration, as a further output of the loop."""
    name = walk.unique_name(f"{value.name}.stacked")
    identity = ir.Node("", "Identity", [value], name=walk.unique_name(f"{name}/each"))
    identity.outputs[0].name, identity.outputs[0].type = identity.name, value.type
    iteration.body.append(identity)
    iteration.body.outputs.append(identity.outputs[0])
    node = g.node
    node.resize_outputs(len(iteration.body.outputs) - (node.op_type == "Loop"))
    for output in node.outputs:
        output.name = output.name or walk.unique_name(name)
    for attribute in ("scan_output_axes", "scan_output_directions"):
        if attribute in node.attributes:
            node.attributes[attribute] = ir.AttrInt64s(attribute, [*node.attributes[attribute].as_ints(), 0])
    info = g.info(value)
    result = node.outputs[-1]
    walk.infos[result] = TensorInfo(info.element_type, None if info.shape is None else (None, *info.shape))
    return result
