# SPDX-License-Identifier: Apache-2.0
"""Forward values that the backward part computes again, so that they need not be kept until then."""

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError, argument
from lnbp_onnx.gradients.dependence import is_random
from lnbp_onnx.graphs.inference import subgraphs_of
from lnbp_onnx.graphs.inline import nodes_in
from lnbp_onnx.graphs.names import listed, matches
from lnbp_onnx.graphs.operators import name_of
from lnbp_onnx.graphs.writer import Writer


def with_own_statistics(node: ir.Node, unique_name: Callable[[str], str]) -> list[ir.Node]:
    """Let a copy of a BatchNormalization in training read running statistics of its own, and return what makes these.

    ONNX Runtime writes the new ones over those that are read, where they are no output of the graph: the first node's
    would be changed, and those of the next run. What such a node gives beside them does not depend on them.
    """
    if node.domain != "" or node.op_type != "BatchNormalization" or not node.attributes.get_int("training_mode", 0):
        return []
    made = []
    for index, value in enumerate(node.inputs[3:], 3):
        assert value is not None
        name = unique_name(f"{value.name}.again")
        own = ir.Value(name=name, type=value.type, shape=value.shape)
        made.append(ir.Node("", "Neg", [value], outputs=[own], name=name))
        node.replace_input_with(index, own)
    return made


class Recomputation:
    """The work on one graph.

    What reads a chosen value in the backward part reads a copy of it, which copies of the forward nodes compute from
    the nearest values that are not chosen. They wait for the gradient that is at hand where the first of them is read,
    and for what was computed of copies before: one value that they begin with gets its own shape again, by a Reshape,
    plus a zero that is computed of these. Without that a runtime would find that both nodes compute the same, and keep
    the first one's result; or it would compute the copies as soon as it can, and what reads them as late as it can, and
    keep all of them. Reshape copies nothing.

    Args:
        graph: The forward part.
        patterns: The names of the chosen values, as the shell's patterns.
        waits: For nodes of the backward part the gradient that they use.
        writer: Begins to write, with a prefix for names.
        unique_name: Turns a name into one that the graph does not have yet.
    """

    def __init__(
        self,
        graph: ir.Graph,
        patterns: Sequence[str],
        waits: Mapping[ir.Node, ir.Value],
        writer: Callable[[str], Writer],
        unique_name: Callable[[str], str],
    ) -> None:
        self._places = {node: place for place, node in enumerate(graph)}
        self._patterns = patterns
        self._waits = waits
        self._writer = writer
        self._unique_name = unique_name
        self._chosen = {
            value
            for node in graph
            for value in node.outputs
            if value.name and self._is_computed(value) and not value.is_graph_output() and self._matches(value)
        }
        self._copies: dict[ir.Value, ir.Value] = {}
        self._zeros: dict[ir.Value, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._of_copies = set[ir.Value]()
        self._leading = set[ir.Node]()
        self._looked_at = 0

    def run(self, backward: Sequence[ir.Node]) -> list[ir.Node]:
        """Return the backward part with what it computes again.

        Raises:
            InvalidModelError: Where a pattern matches nothing that the backward part reads and a node computes, or
                what cannot be computed again.
        """
        self._refuse_unmatched(backward)
        done = set[ir.Value]()
        for node in backward:
            wait = self._waits.get(node)
            for reader in nodes_in([node]):
                for index, value in enumerate(reader.inputs):
                    if value in self._chosen:
                        # A constant, or what is computed only now, is none to wait for.
                        if value not in self._copies and wait in done:
                            assert wait is not None
                            self._copy(value, wait)
                        reader.replace_input_with(index, self._copies.get(value, value))
            self._nodes.append(node)
            done.update(node.outputs)
        return self._nodes

    def _matches(self, value: ir.Value) -> bool:
        return any(matches(str(value.name), pattern) for pattern in self._patterns)

    def _refuse_unmatched(self, backward: Sequence[ir.Node]) -> None:
        read = [
            str(value.name)
            for value in dict.fromkeys(value for node in nodes_in(backward) for value in node.inputs)
            if value is not None and self._is_computed(value)
        ]
        for pattern in self._patterns:
            if not any(matches(name, pattern) for name in read):
                raise InvalidModelError(
                    f"{argument('recompute')}: {pattern!r} matches none of the values that nodes compute and the "
                    f"gradients read; those are {listed(read)} (correct the pattern)."
                )

    def _is_computed(self, value: ir.Value) -> bool:
        """Return whether a forward node computes a value; what it has no inputs for is a constant, or is drawn."""
        node = value.producer()
        return node in self._places and (any(each is not None for each in node.inputs) or is_random(node))

    def _copy(self, value: ir.Value, wait: ir.Value) -> None:
        """Write what computes a chosen value again, and the chosen ones that it needs."""
        needed: dict[ir.Node, None] = {}
        pending = [value]
        while pending:
            producer = pending.pop().producer()
            if producer is not None and producer not in needed:
                needed[producer] = None
                pending += [each for each in producer.inputs if each in self._chosen and each not in self._copies]
        for node in sorted(needed, key=self._places.__getitem__):
            self._refuse(node)
            inputs = [None if each is None else self._copies.get(each, each) for each in node.inputs]
            if inputs == list(node.inputs):
                place = next(place for place, each in enumerate(inputs) if each is not None)
                inputs[place] = self._waiting(inputs[place], wait)
            outputs = [
                ir.Value(name=self._unique_name(f"{each.name}.again") if each.name else "", type=each.type)
                for each in node.outputs
            ]
            name = self._unique_name(f"{name_of(node)}.again")
            copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), outputs=outputs, name=name)
            self._nodes += [*with_own_statistics(copy, self._unique_name), copy]
            self._copies |= dict(zip(node.outputs, outputs, strict=True))
            self._of_copies.update(outputs)

    @staticmethod
    def _refuse(node: ir.Node) -> None:
        reason = None
        if is_random(node):
            reason = "it draws random numbers, and would draw others"
        elif any(subgraphs_of(node)):
            reason = "it holds a graph, which is not copied"
        elif "Sequence" in node.op_type or "Optional" in node.op_type:
            reason = "it takes or gives what is no tensor"
        if reason is not None:
            raise InvalidModelError(
                f"{argument('recompute')}: {node.op_type} node {name_of(node)!r} cannot be computed again: {reason} "
                f"(write patterns that leave out its output {node.outputs[0].name!r})."
            )

    def _waiting(self, value: ir.Value | None, wait: ir.Value) -> ir.Value:
        """Return a value that is there only after a gradient is, and what was computed of copies before."""
        assert value is not None
        if wait not in self._zeros:
            w = self._writer(f"{wait.name}/")
            firsts = [
                w.cast(w.part(w.flat(each), 0, 1), ir.DataType.FLOAT)
                for each in (wait, *self._computed_of_copies(wait))
            ]
            total = w.op("ReduceSum", w.joined(*firsts), keepdims=0)
            # No number is less than itself, which a runtime does not know.
            self._zeros[wait] = w.cast(w.compare("Less", total, total), ir.DataType.INT64)
            self._nodes += w.nodes
        w = self._writer(f"{value.name}.again/")
        result = w.op("Reshape", value, w.op("Add", w.shape(value), self._zeros[wait]))
        self._nodes += w.nodes
        return result

    def _computed_of_copies(self, wait: ir.Value) -> list[ir.Value]:
        """Return what was computed of copies since this was asked before, the last of it, but for what leads to `wait`.

        Nodes are looked at once, so that the time grows with their number.
        """
        pending = [wait]
        while pending:
            producer = pending.pop().producer()
            if producer is not None and producer not in self._leading:
                self._leading.add(producer)
                pending += [each for each in producer.inputs if each is not None]
        ends = dict[ir.Node, ir.Value]()
        for node in self._nodes[self._looked_at :]:
            read = [each for each in node.inputs if each in self._of_copies]
            if not read:
                continue
            self._of_copies.update(node.outputs)
            if node not in self._leading:
                ends[node] = node.outputs[0]
                for producer in (each.producer() for each in read):
                    if producer is not None:
                        ends.pop(producer, None)
        self._looked_at = len(self._nodes)
        return list(ends.values())
