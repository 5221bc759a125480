# SPDX-License-Identifier: Apache-2.0
"""What torch's exporter writes for ATen operators that it does not know, or writes wrongly.

Gradients of convolutions are operators of ONNX Runtime training here; the rewriting of these writes them in standard
operators (`OrtTrainingPass`).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxscript
import torch
from onnx.defs import OpSchema
from onnxscript import opset18 as op

from lnbp_onnx import spec
from lnbp_onnx.interop.torch_random import NORMAL, UNIFORM
from lnbp_onnx.training_ops import MICROSOFT_DOMAIN

_lnbp = onnxscript.values.Opset(spec.DOMAIN, spec.OP_VERSION)


def gradient_translations() -> Mapping[Any, Any]:
    """Return, by ATen operator, what writes operators of ONNX Runtime training, random numbers, and what is missing."""
    return {
        torch.ops.aten.convolution_backward.default: convolution_backward,
        UNIFORM: partial(_random, op.RandomUniform, op.RandomUniformLike),
        NORMAL: partial(_random, op.RandomNormal, op.RandomNormalLike),
        torch.ops.aten.squeeze.dims: squeeze,
        torch.ops.aten.sym_numel.default: size,
        torch.ops.aten.copy.default: copy,
        torch.ops.prims.prod.default: product,
        torch.ops.prims.as_strided_scatter.default: as_strided_scatter,
    }


def squeeze(self: Any, dim: Sequence[int]) -> Any:
    """Translate ``aten.squeeze.dims``, which leaves axes that are longer than 1."""
    axes = [axis for axis in dim if self.shape[axis] == 1]
    return op.Squeeze(self, op.Constant(value_ints=axes)) if axes else op.Identity(self)


def size(self: Any) -> Any:
    """Translate ``aten.sym_numel``."""
    return op.Size(self)


def copy(self: Any, src: Any, non_blocking: bool = False) -> Any:
    """Translate ``aten.copy``; the exporter's own translation does not broadcast."""
    del non_blocking
    if src.dtype != self.dtype:
        src = op.CastLike(src, self)
    return op.Identity(src) if src.shape == self.shape else op.Expand(src, op.Shape(self))


def product(inp: Any, dims: Sequence[int] | None, output_dtype: Any = None) -> Any:
    """Translate ``prims.prod``."""
    axes = [] if dims is None else [op.Constant(value_ints=list(dims))]
    result = op.ReduceProd(inp, *axes, keepdims=0)
    return result if output_dtype is None else op.Cast(result, to=int(output_dtype))


def as_strided_scatter(input: Any, src: Any, size: Sequence[int], stride: Sequence[int], storage_offset: int) -> Any:
    """Translate ``prims.as_strided_scatter`` into [elements], as the gradient of ``as_strided`` has it."""
    if len(input.shape) != 1 or not all(isinstance(each, int) for each in (*size, *stride, storage_offset)):
        raise NotImplementedError("as_strided_scatter into other tensors than those of a gradient of static sizes")
    places = storage_offset + np.tensordot(stride, np.indices(size), 1)
    flat = op.Reshape(src, op.Constant(value_ints=[-1]))
    return op.ScatterElements(input, op.Constant(value_ints=places.flatten().tolist()), flat, axis=0)


def layer_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """Translate ``aten.native_layer_norm``."""
    axis = -len(normalized_shape)
    parameter = bias if weight is None else weight
    if weight is None:
        weight = _ones(normalized_shape, input if parameter is None else parameter)
    if parameter is None or parameter.dtype == input.dtype:
        return op.LayerNormalization(input, weight, bias, axis=axis, epsilon=eps)
    # torch computes in the wider type, that of the parameters.
    y, mean, rstd = op.LayerNormalization(op.CastLike(input, parameter), weight, bias, axis=axis, epsilon=eps)
    return op.CastLike(y, input), mean, rstd


def layer_norm_backward(
    grad_out: Any,
    input: Any,
    normalized_shape: Sequence[int],
    mean: Any,
    rstd: Any,
    weight: Any = None,
    bias: Any = None,
    output_mask: Sequence[bool] = (True, True, True),
) -> Any:
    """Translate ``aten.native_layer_norm_backward``, whose rstd holds the epsilon and is [..., 1] as mean is."""
    if weight is None and bias is not None and output_mask[2]:
        # The operator gives beta's gradient only beside gamma; a gamma of ones is what torch computes with.
        weight = _ones(normalized_shape, bias)
    return _lnbp.LayerNormBackprop(
        input,
        grad_out,
        weight,
        bias,
        mean,
        op.Reciprocal(op.Mul(rstd, rstd)),
        begin_norm_axis=-len(normalized_shape),
        use_affine=int(weight is not None),
        epsilon=0.0,
        use_stats=1,
    )


def _ones(shape: Sequence[int], like: Any) -> Any:
    return op.Expand(op.CastLike(op.Constant(value_float=1.0), like), op.Constant(value_ints=list(shape)))


def _training_op(name: str) -> Any:
    """Return an operator of gradients (dY, X, W) -> (dX, dW, db); the exporter asks for a schema."""
    gradients = [OpSchema.FormalParameter(each, "T") for each in ("dX", "dW", "db")]
    schema = OpSchema(
        name,
        MICROSOFT_DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(each, "T") for each in ("dY", "X", "W")],
        outputs=gradients,
        type_constraints=[("T", ["tensor(float16)", "tensor(bfloat16)", "tensor(float)", "tensor(double)"], "")],
        attributes=[
            OpSchema.Attribute("group", OpSchema.AttrType.INT, required=False),
            *(
                OpSchema.Attribute(each, OpSchema.AttrType.INTS, required=False)
                for each in ("strides", "pads", "dilations", "output_padding")
            ),
        ],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(MICROSOFT_DOMAIN, 1), name, schema)


def _random(of_shape: Any, like: Any, size: Any, dtype: int = 1, device: str = "", pin_memory: bool = False) -> Any:
    """Translate ``aten.rand`` and ``aten.randn``; the exporter's own translation makes a constant of the shape."""
    del device, pin_memory
    if size and all(isinstance(each, int) for each in size):
        return of_shape(shape=list(size), dtype=int(dtype))
    return like(op.ConstantOfShape(size), dtype=int(dtype))


_conv_grad, _conv_transpose_grad = _training_op("ConvGrad"), _training_op("ConvTransposeGrad")


def convolution_backward(
    grad_output: Any,
    input: Any,
    weight: Any,
    _bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    _output_mask: Sequence[bool],
) -> Any:
    """Translate ``aten.convolution_backward``; each of its lists may be of one number for all axes."""
    axes = len(weight.shape) - 2
    strides, pads, dilations, output_padding = (
        list(each) * (axes // len(each)) for each in (stride, padding, dilation, output_padding)
    )
    attributes = {"strides": strides, "pads": [*pads, *pads], "dilations": dilations, "group": groups}
    if transposed:
        return _conv_transpose_grad(grad_output, input, weight, **attributes, output_padding=output_padding)
    return _conv_grad(grad_output, input, weight, **attributes)
