# SPDX-License-Identifier: Apache-2.0
"""Nodes that are written many times under other names: as objects, or straight into protos, which is much quicker."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir
from onnx import GraphProto, NodeProto, ValueInfoProto

from lnbp_onnx.graphs.new_protos import NewProtos
from lnbp_onnx.graphs.replace import Replacement, replace_nodes

_COPIES = "lnbp_onnx.copies"


class Template:
    """Nodes that take the place of a node, in many places.

    Args:
        inputs: The values that stand for the inputs of the node.
        nodes: The nodes in topological order, each with one output, both called after their step.
        outputs: The value for each output of the node, None for one that is omitted.

    Attributes:
        nodes: As given.
        values: Their outputs.
        sources: What each of them reads: indices into the node's inputs followed by `values`.
        results: What each output of the node is: an index into `values`.
        constants: For each of them that is a constant, what equal ones have in common.
    """

    def __init__(
        self, inputs: Sequence[ir.Value | None], nodes: Sequence[ir.Node], outputs: Sequence[ir.Value | None]
    ) -> None:
        self.nodes = nodes
        self.values = [node.outputs[0] for node in nodes]
        indices = {value: index for index, value in enumerate((*inputs, *self.values)) if value is not None}
        self.sources = [[None if value is None else indices[value] for value in node.inputs] for node in nodes]
        self.results = [None if value is None else indices[value] - len(inputs) for value in outputs]
        # The writer makes one attribute of equal values, and the nodes keep it.
        self.constants = [
            tuple(map(id, node.attributes.values())) if node.op_type == "Constant" else None for node in nodes
        ]
        self._protos: list[tuple[NodeProto, ValueInfoProto]] = []

    def protos(self, new_protos: NewProtos) -> list[tuple[NodeProto, ValueInfoProto]]:
        """Return each node and its output, without names."""
        if not self._protos:
            self._protos = [
                (new_protos.nameless_node(node), new_protos.nameless_value(value))
                for node, value in zip(self.nodes, self.values, strict=True)
            ]
        return self._protos


@dataclass(frozen=True, slots=True)
class Copy:
    """A template in the place of a node, whose inputs, outputs and metadata it gets.

    Attributes:
        template: The template.
        node: The node.
        names: What each node of the template, and its output, is called here.
        is_new: Whether each is written: some constants are those of another copy.
    """

    template: Template
    node: ir.Node
    names: list[str]
    is_new: list[bool]

    def replacement(self, constants: dict[str, ir.Value]) -> Replacement:
        """Return the copy as objects.

        Args:
            constants: Those that the graph has from other copies; new ones are added.
        """
        template = self.template
        values, nodes = list(self.node.inputs), []
        for index, (original, name) in enumerate(zip(template.nodes, self.names, strict=True)):
            if not self.is_new[index]:
                values.append(constants[name])
                continue
            declared = template.values[index]
            assert declared.dtype is not None
            shape = None if declared.shape is None else declared.shape.copy()
            value = ir.Value(name=name, type=ir.TensorType(declared.dtype), shape=shape)
            if template.constants[index] is not None:
                constants[name] = value
            inputs = [None if source is None else values[source] for source in template.sources[index]]
            values.append(value)
            attributes = original.attributes.values()
            nodes.append(ir.Node("", original.op_type, inputs, attributes, outputs=[value], name=name))
            if self.node.metadata_props:
                nodes[-1].metadata_props.update(self.node.metadata_props)
        own = values[len(self.node.inputs) :]
        return Replacement(self.node, nodes, [None if index is None else own[index] for index in template.results])

    def declare_outputs(self) -> None:
        """Give the outputs of the node what is known of them, where they do not have it."""
        for index, output in self._results().items():
            known = self.template.values[index]
            output.name = output.name or self.names[index]
            output.type = output.type or known.type
            output.shape = output.shape if output.shape is not None else known.shape

    def written_names(self) -> list[str]:
        """Return what the outputs of the template's nodes are called where `declare_outputs` was called."""
        names = list(self.names)
        for index, output in self._results().items():
            names[index] = output.name or ""
        return names

    def write_nodes(self, proto: GraphProto, new_protos: NewProtos) -> None:
        """Write the copy into a graph that the node is left out of."""
        written = self.written_names()
        names = [*("" if value is None else value.name or "" for value in self.node.inputs), *written]
        metadata = sorted(self.node.metadata_props.items())
        for index, (nameless, _) in enumerate(self.template.protos(new_protos)):
            if self.is_new[index]:
                node = proto.node.add()
                node.CopyFrom(nameless)
                node.name = self.names[index]
                node.input.extend(["" if each is None else names[each] for each in self.template.sources[index]])
                node.output.append(written[index])
                for key, value in metadata:
                    node.metadata_props.add(key=key, value=value)

    def write_values(self, proto: GraphProto, declared: Collection[str | None], new_protos: NewProtos) -> None:
        """Write what is known of its values into the graph, but for those that are declared there."""
        results = self._results()
        for index, (name, (_, nameless)) in enumerate(
            zip(self.written_names(), self.template.protos(new_protos), strict=True)
        ):
            if self.is_new[index] and name not in declared:
                info = proto.value_info.add()
                if index in results:
                    new_protos.write_value(results[index], info)
                else:
                    info.CopyFrom(nameless)
                    info.name = name

    def _results(self) -> dict[int, ir.Value]:
        pairs = zip(self.template.results, self.node.outputs, strict=False)
        return {index: output for index, output in pairs if index is not None}


Copies: TypeAlias = dict[ir.Graph, dict[ir.Node, Copy]]


def copies_kept(model: ir.Model, graphs: Iterable[ir.Graph]) -> Copies:
    """Have `put` leave the nodes of some graphs where they are, and return the copies that are to be in their places.

    They are for who writes the graphs; whatever looks at the graphs before that still finds the nodes.
    """
    copies: Copies = {graph: {} for graph in graphs}
    model.meta[_COPIES] = copies
    return copies


def put(copies: Iterable[Copy], model: ir.Model) -> None:
    """Put copies in the places of their nodes, or where `copies_kept` was called for the graph keep them for it."""
    kept: Copies = model.meta.get(_COPIES, {})
    constants: dict[ir.Graph, dict[str, ir.Value]] = {}
    replacements = []
    for copy in copies:
        graph = copy.node.graph
        assert isinstance(graph, ir.Graph)
        if graph in kept:
            copy.declare_outputs()
            kept[graph][copy.node] = copy
        else:
            replacements.append(copy.replacement(constants.setdefault(graph, {})))
    replace_nodes(replacements)


def named_copy(
    template: Template,
    node: ir.Node,
    prefix: str,
    unique_name: Callable[[str], str],
    constants: dict[tuple[int, ...], str],
) -> Copy:
    """Return a copy with names.

    Args:
        template: What to copy.
        node: The node whose place it takes.
        prefix: What names begin with, before the step.
        unique_name: Makes names unique.
        constants: The names of those that the graph has from other copies; new ones are added.
    """
    names, is_new = [], []
    for step, constant in zip(template.nodes, template.constants, strict=True):
        name = None if constant is None else constants.get(constant)
        is_new.append(name is None)
        if name is None:
            name = unique_name(f"{prefix}{step.name}")
            if constant is not None:
                constants[constant] = name
        names.append(name)
    return Copy(template, node, names, is_new)
