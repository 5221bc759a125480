# SPDX-License-Identifier: Apache-2.0
"""Writing nodes and values as protos, many that differ in little."""

import onnx_ir as ir
from onnx import NodeProto, ValueInfoProto


class NewProtos:
    """Writes nodes and values; of those that differ only in names ``onnx_ir`` writes one, and the others are copies."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[object, ...], NodeProto] = {}
        self._values: dict[tuple[object, ...], ValueInfoProto] = {}

    def nameless_node(self, node: ir.Node) -> NodeProto:
        """Return a node without names; what is returned is not to be changed."""
        # Attributes are compared by identity, which is quick: those that the writer makes are shared.
        attributes = map(id, node.attributes.values())
        key = (node.domain, node.op_type, node.overload, *attributes, *node.metadata_props.items())
        nameless = self._nodes.get(key)
        if nameless is None:
            nameless = self._nodes[key] = ir.serde.serialize_node(node)
            for field in ("name", "input", "output"):
                nameless.ClearField(field)
        return nameless

    def nameless_value(self, value: ir.Value) -> ValueInfoProto:
        """Return a tensor without its name; what is returned is not to be changed."""
        dims = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape.dims)
        denotation = None if value.type is None else value.type.denotation
        key = (value.dtype, denotation, dims)
        nameless = self._values.get(key)
        if nameless is None:
            nameless = self._values[key] = ir.serde.serialize_value(value)
            nameless.ClearField("name")
        return nameless

    def write_node(self, node: ir.Node, proto: NodeProto) -> None:
        """Write a node into an empty proto."""
        if node.doc_string or node.device_configurations:
            proto.CopyFrom(ir.serde.serialize_node(node))
            return
        proto.CopyFrom(self.nameless_node(node))
        if node.name:
            proto.name = node.name
        proto.input.extend(["" if value is None else value.name or "" for value in node.inputs])
        outputs = [value.name or "" for value in node.outputs]
        while outputs and not outputs[-1]:
            outputs.pop()
        proto.output.extend(outputs)

    def write_value(self, value: ir.Value, proto: ValueInfoProto) -> None:
        """Write a value into an empty proto."""
        if type(value.type) is not ir.TensorType or value.doc_string or value.metadata_props:
            proto.CopyFrom(ir.serde.serialize_value(value))
            return
        proto.CopyFrom(self.nameless_value(value))
        proto.name = value.name or ""
