# SPDX-License-Identifier: Apache-2.0
"""The layer-norm gradients of ONNX Runtime training, by LayerNormBackprop."""

import onnx_ir as ir
from onnx import AttributeProto

from lnbp_onnx import spec
from lnbp_onnx.graphs.writer import compute_type
from lnbp_onnx.node import TensorInfo, attribute_protos, parse
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp

OP_TYPES = ("LayerNormalizationGrad", "InvertibleLayerNormalizationGrad")


def layer_normalization_grad(w: TrainingOp) -> Outputs:
    """(Y_grad, X, scale, mean, inv_std_var; axis = -1)."""
    dy, x, gamma, mean, inv_std = _inputs(w)
    _check(w, x, dy, gamma, mean, inv_std)
    # The variance is float; the operator's two statistics have one type.
    return _operator(w, x, dy, gamma, w.in_float(mean, name="mean_cast"), _variance(w, inv_std))


def invertible_layer_normalization_grad(w: TrainingOp) -> Outputs:
    """(Y_grad, Y, scale, bias, inv_std_var; axis = -1): X less its mean is (Y - bias) / scale / inv_std_var."""
    dy, y, gamma, beta, inv_std = _inputs(w)
    _check(w, y, dy, gamma, inv_std, inv_std)
    x = _input_of(w, y, gamma, beta, inv_std)
    rows_shape = w.op("Shape", inv_std, name="rows_shape", element_type=ir.DataType.INT64)
    statistic = _info_in_float(w, inv_std)
    mean = w.filled(
        rows_shape, 0, statistic.element_type or ir.DataType.FLOAT, name="mean", known_shape=statistic.shape
    )
    return _operator(w, x, dy, gamma, mean, _variance(w, inv_std))


def _inputs(w: TrainingOp) -> list[ir.Value]:
    values = [value for value in w.node.inputs if value is not None]
    if len(values) != 5:
        w.refuse(f"it has {len(values)} of its 5 inputs (connect the others, or remove what is too much)")
    return values


def _check(w: TrainingOp, x: ir.Value, dy: ir.Value, gamma: ir.Value, mean: ir.Value, variance: ir.Value) -> None:
    """Refuse what the operator would."""
    infos = [w.info(x), w.info(dy), w.info(gamma), None, _info_in_float(w, mean), _info_in_float(w, variance)]
    parse(w.subject, _attributes(w), infos, [True] * len(spec.OUTPUT_NAMES))


def _operator(w: TrainingOp, x: ir.Value, dy: ir.Value, gamma: ir.Value, mean: ir.Value, variance: ir.Value) -> Outputs:
    # The operator always has the first output.
    wanted = [index == 0 or w.is_wanted(index) for index in range(len(w.node.outputs))]
    steps = [name if is_wanted else "" for name, is_wanted in zip(spec.OUTPUT_NAMES, wanted, strict=False)]
    attributes = {name: ir.serde.deserialize_attribute(attribute) for name, attribute in _attributes(w).items()}
    outputs = w.ops(
        spec.OP_TYPE,
        *(x, dy, gamma, None, mean, variance),
        outputs=steps,
        element_type=[None] * len(steps),
        domain=spec.DOMAIN,
        **attributes,
    )
    w.nodes[-1].name = w.node.name or w.nodes[-1].name
    return [output if step else None for output, step in zip(outputs, steps, strict=True)]


def _attributes(w: TrainingOp) -> dict[str, AttributeProto]:
    # The statistics hold epsilon already.
    return attribute_protos(w.attribute("axis", -1), True, 0.0, True)


def _variance(w: TrainingOp, inv_std: ir.Value) -> ir.Value:
    inv_std = w.in_float(inv_std, name="inv_std_cast")
    shape = w.info(inv_std).shape
    squared = w.op("Mul", inv_std, inv_std, name="inv_std_squared", shape=shape)
    return w.op("Reciprocal", squared, name="variance", shape=shape)


def _input_of(w: TrainingOp, y: ir.Value, gamma: ir.Value, beta: ir.Value, inv_std: ir.Value) -> ir.Value:
    """Return what the normalisation had for input, less its mean; half types are computed in float."""
    info = w.info(y)
    y, gamma, beta, inv_std = (w.in_float(value, name="cast") for value in (y, gamma, beta, inv_std))
    if info.element_type == ir.DataType.DOUBLE:
        gamma, beta, inv_std = (
            w.cast(value, ir.DataType.DOUBLE, name="cast", shape=w.info(value).shape)
            for value in (gamma, beta, inv_std)
        )
    value = w.op("Sub", y, beta, name="unshifted", shape=info.shape)
    value = w.op("Div", value, gamma, name="xhat", shape=info.shape)
    value = w.op("Div", value, inv_std, name="centred", shape=info.shape)
    if info.element_type is None:
        return value
    return w.cast(value, info.element_type, name="centred_cast", shape=info.shape)


def _info_in_float(w: TrainingOp, value: ir.Value) -> TensorInfo:
    info = w.info(value)
    if info.element_type is None:
        return info
    return TensorInfo(compute_type(ir.DataType(info.element_type)), info.shape)
