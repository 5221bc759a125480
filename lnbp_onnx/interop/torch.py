# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules with their gradients as ONNX models that hold LayerNormBackprop nodes.

`export_joint` is for training: a loss and its gradients as one model. `export` is for modules that compute gradients
themselves, as physical models do for forces. `translation_table` is for those who call ``torch.onnx.export``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

try:
    import onnxscript
    import torch
except ImportError as error:
    raise ImportError(
        "lnbp_onnx.interop.torch needs the packages torch and onnxscript (pip install 'lnbp-onnx[torch]')."
    ) from error

from onnx import ModelProto
from onnxscript import opset18 as op

from lnbp_onnx import spec
from lnbp_onnx.interop.torch_onnx import to_onnx
from lnbp_onnx.interop.torch_program import Call, DynamicShapes, forward_outputs, joint_outputs, trace
from lnbp_onnx.model_io import save_model

_lnbp = onnxscript.values.Opset(spec.DOMAIN, spec.OP_VERSION)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what makes ``torch.onnx.export`` write LayerNormBackprop nodes.

    Pass it as ``custom_translation_table``, with ``dynamo=True``. It holds ``native_layer_norm_backward``, which the
    exporter writes as some twenty standard operators without it, and ``native_layer_norm``, which the exporter writes
    wrongly where the input's type is not that of weight and bias, as under ``torch.autocast``.
    """
    return {
        torch.ops.aten.native_layer_norm.default: _layer_norm,
        torch.ops.aten.native_layer_norm_backward.default: _layer_norm_backward,
    }


def export_joint(
    module: Any,
    args: tuple[Any, ...],
    path: str | Path | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = None,
    input_gradients: Sequence[str] = (),
) -> ModelProto:
    """Export a module's loss and the gradients of the loss as one ONNX model.

    The module returns the loss, a scalar: as a tensor, as the first element of a tuple or list, or as ``"loss"`` of a
    mapping. What else it returns becomes outputs too, under the mapping's keys or as ``output.1``, ``output.2``, ...

    The model's inputs are the tensors among the arguments, under the names of the parameters of ``module.forward``
    (a tensor inside a list or dict: ``name.0``, ``name.key``), then the module's parameters that require a gradient,
    under their names in ``module.named_parameters()``. The latter have their present values as initializers, so
    that a runtime uses these unless it is fed others. Parameters without a gradient and buffers are constants. The
    outputs are ``loss``, the other outputs, ``NAME.grad`` for each parameter that requires a gradient and
    ``NAME.grad`` for each of `input_gradients`. A parameter that the loss does not depend on has zeros, one that is
    shared between modules has one gradient, under its first name.

    Args:
        module: A ``torch.nn.Module``. It is traced as it is: in evaluation mode or without dropout.
        args: Example positional arguments of ``module.forward``. What is not a tensor is a constant of the model.
        path: Where to write the model, whole or not at all; with external data beside it from 2 GB on, which the
            returned model then refers to.
        kwargs: Example keyword arguments.
        dynamic_shapes: As for ``torch.export.export``, with a name in place of a ``torch.export.Dim`` where wanted:
            ``{"ids": {0: "batch"}, "targets": {0: "batch"}}``. Without it every size is that of the example.
        input_gradients: Names of inputs whose gradients are wanted too.

    Returns:
        The model; onnx's checker has passed it, if it is below 2 GB.

    Raises:
        InvalidModelError: Where the module cannot be exported as asked, or `path` cannot be written.
    """
    call = Call(module, args, kwargs)
    program = trace(call, partial(joint_outputs, input_gradients=input_gradients), dynamic_shapes)
    return _written(to_onnx(program, translation_table(), list(call.trainable)), path)


def export(
    module: Any,
    args: tuple[Any, ...],
    path: str | Path | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = None,
    output_names: Sequence[str] | None = None,
) -> ModelProto:
    """Export a module as it is, where it may call ``torch.autograd.grad`` in its ``forward``.

    The gradients that it computes become part of the model, those of layer norms as LayerNormBackprop nodes. Inputs
    are the tensors among the arguments, named as by `export_joint`; parameters and buffers are constants.

    Args:
        module: A ``torch.nn.Module``. It is traced as it is: in evaluation mode or without dropout.
        args: As for `export_joint`.
        path: As for `export_joint`.
        kwargs: As for `export_joint`.
        dynamic_shapes: As for `export_joint`.
        output_names: Names of the output tensors. By default ``output`` for one tensor, ``output.0``, ``output.1``,
            ... for a tuple or list, the keys for a mapping.

    Returns:
        The model; onnx's checker has passed it, if it is below 2 GB.

    Raises:
        InvalidModelError: Where the module cannot be exported as asked, or `path` cannot be written.
    """
    program = trace(Call(module, args, kwargs), partial(forward_outputs, output_names=output_names), dynamic_shapes)
    return _written(to_onnx(program, translation_table(), []), path)


def _written(model: ModelProto, path: str | Path | None) -> ModelProto:
    if path is not None:
        save_model(model, Path(path), Path(path))
    return model


def _layer_norm(
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


def _layer_norm_backward(
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
