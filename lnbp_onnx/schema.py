# SPDX-License-Identifier: Apache-2.0
"""The operator's schema in ``onnx.defs``, with its type and shape inference."""

import atexit
import contextlib

import onnx
from onnx import TypeProto
from onnx.defs import OpSchema
from onnx.helper import make_attribute

from lnbp_onnx import spec
from lnbp_onnx.node import TensorInfo, describe, parse


def make_schema() -> OpSchema:
    """Return a new OpSchema of the operator."""
    types = [f"tensor({spec.type_name(element_type)})" for element_type in spec.ELEMENT_TYPES]
    options = OpSchema.FormalParameterOption
    parameters = [
        [
            OpSchema.FormalParameter(
                parameter.name,
                parameter.type_variable,
                parameter.doc,
                param_option=options.Optional if parameter.optional else options.Single,
            )
            for parameter in group
        ]
        for group in (spec.INPUTS, spec.OUTPUTS)
    ]
    schema = OpSchema(
        spec.OP_TYPE,
        spec.DOMAIN,
        spec.OP_VERSION,
        doc=spec.DOC,
        inputs=parameters[0],
        outputs=parameters[1],
        type_constraints=[(variable, types, doc) for variable, doc in spec.TYPE_DOCS.items()],
        attributes=[
            OpSchema.Attribute(attribute.name, make_attribute(attribute.name, attribute.default), attribute.doc)
            for attribute in spec.ATTRIBUTES
        ],
    )
    schema.set_type_and_shape_inference_function(_infer)
    return schema


def register_schema() -> None:
    """Register the operator in ``onnx.defs``, once; importing the package does it.

    From then on ``onnx.checker`` and ``onnx.shape_inference`` know the operator, and raise `InvalidNodeError`
    for a node that the specification refuses.

    Example:
        >>> import onnx, lnbp_onnx
        >>> lnbp_onnx.register_schema()
        >>> onnx.defs.get_schema("LayerNormBackprop", 1, "lnbp").since_version
        1
    """
    if not onnx.defs.has(spec.OP_TYPE, spec.DOMAIN):
        onnx.defs.register_schema(make_schema())
        # Until 1.22 onnx lets go of the inference function, which is Python's, after Python's end, and dies of it.
        atexit.register(_deregister_schema)


def _deregister_schema() -> None:
    with contextlib.suppress(onnx.defs.SchemaError):
        onnx.defs.deregister_schema(spec.OP_TYPE, spec.OP_VERSION, spec.DOMAIN)


def _infer(context: onnx.shape_inference.InferenceContext) -> None:
    attributes = {}
    for attribute in spec.ATTRIBUTES:
        proto = context.get_attribute(attribute.name)
        if proto is not None:
            attributes[attribute.name] = proto
    inputs = [
        TensorInfo.from_type_proto(context.get_input_type(index) or TypeProto()) if context.has_input(index) else None
        for index in range(context.get_num_inputs())
    ]
    outputs = [context.has_output(index) for index in range(context.get_num_outputs())]
    # onnx calls a node "node LayerNormBackprop[lnbp] (its name)".
    name = context.get_display_name().partition(" (")[2].removesuffix(")")
    node = parse(describe(name, ()), attributes, inputs, outputs)
    for index in range(context.get_num_outputs()):
        info = node.output_info(spec.OUTPUT_NAMES[index])
        if info.element_type is None:
            continue
        result = TypeProto()
        result.tensor_type.elem_type = info.element_type
        if info.shape is not None:
            result.tensor_type.shape.SetInParent()
            for dim in info.shape:
                proto = result.tensor_type.shape.dim.add()
                if isinstance(dim, int):
                    proto.dim_value = dim
                elif dim:
                    proto.dim_param = dim
        context.set_output_type(index, result)
