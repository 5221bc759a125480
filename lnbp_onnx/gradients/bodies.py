# SPDX-License-Identifier: Apache-2.0
"""Operators without a rule that are defined by others: a node is written out, and the others have rules."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import onnx
import onnx_ir as ir

from lnbp_onnx.body import build_body
from lnbp_onnx.gradients.fused import FUSED
from lnbp_onnx.gradients.recurrent import RECURRENT
from lnbp_onnx.gradients.sampling import grid_sample
from lnbp_onnx.gradients.sequences import SEQUENCES
from lnbp_onnx.graphs.inference import known
from lnbp_onnx.graphs.inline import written_out
from lnbp_onnx.graphs.operators import is_operator, name_of, parse_node
from lnbp_onnx.graphs.replace import Replacement
from lnbp_onnx.node import TensorInfo
from lnbp_onnx.training_ops import MICROSOFT_DOMAIN, TrainingOp
from lnbp_onnx.training_ops.training_op import Outputs

WRITTEN_OUT: Mapping[tuple[str, str], Callable[[TrainingOp], Outputs]] = MappingProxyType(
    {
        **{(MICROSOFT_DOMAIN, op_type): function for op_type, function in FUSED.items()},
        **{("", op_type): function for op_type, function in {**RECURRENT, **SEQUENCES}.items()},
        ("", "GridSample"): grid_sample,
    }
)
"""What writes out the operators that ONNX does not, by domain and operator."""


def body(
    node: ir.Node, infos: Mapping[ir.Value, TensorInfo], opset: int, unique_name: Callable[[str], str]
) -> Replacement | None:
    """Return what a node is defined by: the function of its ONNX schema or an entry of `WRITTEN_OUT`, None without.

    LayerNormBackprop is what `decompose` makes of it. A node that reads a sequence waits for what splits a tensor into
    it.

    Raises:
        InvalidModelError: Where a fused operator, or one on sequences, is in a form that cannot be written out.
        InvalidNodeError: Where a LayerNormBackprop node is one that the specification refuses.
    """
    if is_operator(node):
        label = name_of(node)
        operator = build_body(parse_node(node, infos), node.inputs, opset, lambda step: unique_name(f"{label}/{step}"))
        return Replacement(node, operator.nodes, operator.outputs)
    written_as = WRITTEN_OUT.get((node.domain, node.op_type))
    if written_as is not None:
        if any(_is_split(value) for value in node.inputs):
            return None
        op = TrainingOp(node, infos, opset, unique_name)
        outputs = written_as(op)[: len(node.outputs)]
        for index, (output, value) in enumerate(zip(node.outputs, outputs, strict=False)):
            if value is None and (output.uses() or output.is_graph_output()):
                op.refuse(
                    f"its output {index}, {output.name!r}, is used, which is not covered (use what it stands for)"
                )
        return Replacement(node, op.nodes, outputs)
    function = _schema_function(node, infos, opset) if node.domain == "" else None
    return None if function is None else written_out(node, function, unique_name)


def _is_split(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.domain == "" and node.op_type == "SplitToSequence"


def _schema_function(node: ir.Node, infos: Mapping[ir.Value, TensorInfo], opset: int) -> ir.Function | None:
    try:
        # onnx's stubs lack what follows.
        schema: Any = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        version = _newest(schema.function_opset_versions, opset)
        written = schema.get_function_with_opset_version(version)
        element_types = {known(value, infos).element_type for value in node.inputs if value is not None}
        if element_types != {ir.DataType.FLOAT} and _is_in_float(onnx.FunctionProto.FromString(written)):
            return None
    elif schema.has_context_dependent_function:
        version = _newest(schema.context_dependent_function_opset_versions, opset)
        types = [b"" if value is None else _type_proto(known(value, infos)) for value in node.inputs]
        serialized = ir.serde.serialize_node(node).SerializeToString()
        written = schema.get_context_dependent_function_with_opset_version(version, serialized, types)
    else:
        return None
    proto = onnx.FunctionProto.FromString(written)
    if not proto.node or not all(_means_the_same(each.op_type, version, opset) for each in proto.node):
        return None
    # Defaults are the schema's, and what is not asked for may not be computed.
    defaults = [schema.attributes[name].default_value for name in proto.attribute]
    proto.attribute_proto.extend(default for default in defaults if default.type)
    del proto.attribute[:]
    computed = {name for each in proto.node for name in each.output}
    proto.output[:] = [name if name in computed else proto.output[0] for name in proto.output]
    return ir.serde.deserialize_function(proto)


def _is_in_float(function: onnx.FunctionProto) -> bool:
    """Return whether a function computes with constants in float, so that tensors of other types do not fit."""
    constants = {
        each.output[0]
        for each in function.node
        if each.op_type == "Constant"
        and any(value.name == "value_float" or value.t.data_type == onnx.TensorProto.FLOAT for value in each.attribute)
    }
    # The others take operands of two types.
    used = {name for each in function.node if each.op_type not in {"Cast", "CastLike", "Pow"} for name in each.input}
    return not constants.isdisjoint(used)


def _newest(versions: list[int], opset: int) -> int:
    return max((version for version in versions if version <= opset), default=min(versions))


def _type_proto(info: TensorInfo) -> bytes:
    shape = None if info.shape is None else list(info.shape)
    written: bytes = onnx.helper.make_tensor_type_proto(info.element_type or 0, shape).SerializeToString()
    return written


def _means_the_same(op_type: str, version: int, opset: int) -> bool:
    """Return whether a node that is written for one version is read in the same way in another one.

    Versions differ in more than types where an attribute is gone or has another default, or inputs are others.
    """
    own, read = (onnx.defs.get_schema(op_type, each) for each in (version, opset))
    if own.since_version == read.since_version:
        return True
    attributes = {name: attribute.default_value for name, attribute in own.attributes.items()}
    return (
        all(
            name in read.attributes and read.attributes[name].default_value == default
            for name, default in attributes.items()
        )
        and [each.name for each in own.inputs] == [each.name for each in read.inputs][: len(own.inputs)]
    )
