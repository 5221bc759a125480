# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules with their gradients as ONNX models that hold LayerNormBackprop nodes.

`export_joint` is for training: a loss and its gradients as one model. `export` is for modules that compute gradients
themselves, as physical models do for forces. `translation_table` is for those who call ``torch.onnx.export``.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

try:
    import onnxscript  # noqa: F401
    import torch
except ImportError as error:
    raise ImportError(
        "lnbp_onnx.interop.torch needs the packages torch and onnxscript (run pip install '.[torch]' in the source "
        "folder, or pip install 'lnbp-onnx[torch]' where a package index has lnbp-onnx)."
    ) from error

from onnx import ModelProto

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.files.model_io import save_model
from lnbp_onnx.files.new_files import kind_of
from lnbp_onnx.interop.torch_call import Call, NamedTensors
from lnbp_onnx.interop.torch_check import check as check_model
from lnbp_onnx.interop.torch_check import forward_results, joint_results
from lnbp_onnx.interop.torch_onnx import to_onnx
from lnbp_onnx.interop.torch_outputs import forward_outputs, joint_outputs
from lnbp_onnx.interop.torch_program import DynamicShapes, Function, trace
from lnbp_onnx.interop.torch_terminal import progress
from lnbp_onnx.interop.torch_translations import layer_norm, layer_norm_backward


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what makes ``torch.onnx.export`` write LayerNormBackprop nodes.

    Pass it as ``custom_translation_table``, with ``dynamo=True``. It holds ``native_layer_norm_backward``, which the
    exporter writes as some twenty standard operators without it, and ``native_layer_norm``, which the exporter writes
    wrongly where the input's type is not that of weight and bias, as under ``torch.autocast``.
    """
    return {
        torch.ops.aten.native_layer_norm.default: layer_norm,
        torch.ops.aten.native_layer_norm_backward.default: layer_norm_backward,
    }


def export_joint(
    module: Any,
    args: tuple[Any, ...] = (),
    path: str | Path | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    loss: Callable[..., Any] | None = None,
    loss_inputs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = None,
    input_gradients: Sequence[str] = (),
    seed: int | None = None,
    check: bool = True,
) -> ModelProto:
    """Export a module's loss and the gradients of the loss as one ONNX model.

    The module returns the loss, a scalar: as a tensor, as the first element of a tuple or list, or as ``"loss"`` of a
    mapping. What else it returns becomes outputs too, under the mapping's keys or as ``output.1``, ``output.2``, ...
    Of a module that returns none, `loss` computes it; then all that the module returns becomes outputs, named as by
    `export`.

    The model's inputs are the tensors among the arguments, under the names of the parameters of ``module.forward``
    (a tensor inside a list or dict: ``name.0``, ``name.key``), then the module's parameters that require a gradient,
    under their names in ``module.named_parameters()``, and the buffers that the module updates. These two have their
    present values as initializers, so that a runtime uses these unless it is fed others. Parameters without a
    gradient and other buffers are constants. The outputs are ``loss``, the other outputs, ``NAME.grad`` for each
    parameter that requires a gradient and each of `input_gradients`, and ``NAME.updated`` for each buffer that is
    updated. A parameter that the loss does not depend on has zeros, one that is shared between modules has one
    gradient, under its first name.

    Args:
        module: A ``torch.nn.Module``. It is traced as it is: in training mode what it drops, and all else that is
            random, is drawn at each run.
        args: Example positional arguments of ``module.forward``. What is not a tensor is a constant of the model.
        path: Where to write the model, whole or not at all; with external data beside it from 2 GB on, which the
            returned model then refers to.
        kwargs: Example keyword arguments.
        loss: Computes the loss, as ``loss(outputs, **loss_inputs)`` with what ``module.forward`` returns. Tensors that
            it has itself, such as weights of classes, are constants.
        loss_inputs: Example inputs of `loss` by name, such as targets. Those that are tensors are inputs of the model
            under these names, which `dynamic_shapes` may have, too.
        dynamic_shapes: As for ``torch.export.export``, with a name in place of a ``torch.export.Dim`` where wanted:
            ``{"ids": {0: "batch"}, "targets": {0: "batch"}}``. Without it every size is that of the example.
        input_gradients: Names of inputs whose gradients are wanted too.
        seed: What makes the random numbers of a session the same each time it is made; by default they are others.
        check: Whether to compare the model, before it is written, with ``loss.backward()`` of the module itself on
            the arguments. A warning says so where no runtime runs the model.

    Returns:
        The model; onnx's checker has passed it, if it is below 2 GB.

    Raises:
        InvalidModelError: Where the module cannot be exported as asked, the model does not compute what the module
            does, or `path` cannot be written.

    Example:
        >>> import torch
        >>> from lnbp_onnx.interop.torch import export_joint
        >>> class Loss(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm = torch.nn.LayerNorm(8)
        ...     def forward(self, x):
        ...         return self.norm(x).square().mean()
        >>> model = export_joint(Loss(), (torch.randn(2, 8),), dynamic_shapes={"x": {0: "batch"}})
        >>> [output.name for output in model.graph.output]
        ['loss', 'norm.weight.grad', 'norm.bias.grad']
    """
    target = _target(path, check, seed)
    call = Call(module, args, kwargs, loss, loss_inputs)
    function = partial(joint_outputs, input_gradients=input_gradients)
    results = partial(joint_results, input_gradients=input_gradients) if check else None
    return _written(_model(call, function, call.trainable, dynamic_shapes, seed, results), target)


def export(
    module: Any,
    args: tuple[Any, ...] = (),
    path: str | Path | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = None,
    output_names: Sequence[str] | None = None,
    seed: int | None = None,
    check: bool = True,
) -> ModelProto:
    """Export a module as it is, where it may call ``torch.autograd.grad`` in its ``forward``.

    The gradients that it computes become part of the model, those of layer norms as LayerNormBackprop nodes. Inputs
    are the tensors among the arguments and the buffers that the module updates, named as by `export_joint`, as are
    the outputs of their new values; parameters and other buffers are constants.

    Args:
        module: A ``torch.nn.Module``. It is traced as it is: in training mode what it drops, and all else that is
            random, is drawn at each run.
        args: As for `export_joint`.
        path: As for `export_joint`.
        kwargs: As for `export_joint`.
        dynamic_shapes: As for `export_joint`.
        output_names: Names of the output tensors. By default ``output`` for one tensor, ``output.0``, ``output.1``,
            ... for a tuple or list, the keys for a mapping.
        seed: As for `export_joint`.
        check: Whether to compare the model, before it is written, with the module itself on the arguments. A warning
            says so where no runtime runs the model.

    Returns:
        The model; onnx's checker has passed it, if it is below 2 GB.

    Raises:
        InvalidModelError: Where the module cannot be exported as asked, the model does not compute what the module
            does, or `path` cannot be written.

    Example:
        >>> import torch
        >>> from lnbp_onnx.interop.torch import export
        >>> class Slope(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.autograd.grad(torch.layer_norm(x, [8]).pow(3).sum(), x)
        >>> model = export(Slope(), (torch.randn(2, 8, requires_grad=True),), output_names=["slope"])
        >>> [output.name for output in model.graph.output]
        ['slope']
    """
    target = _target(path, check, seed)
    call = Call(module, args, kwargs)
    function = partial(forward_outputs, output_names=output_names)
    results = partial(forward_results, output_names=output_names) if check else None
    return _written(_model(call, function, {}, dynamic_shapes, seed, results), target)


def _model(
    call: Call,
    function: Function,
    variable: NamedTensors,
    dynamic_shapes: DynamicShapes,
    seed: int | None,
    results: Callable[[Call], NamedTensors] | None,
) -> ModelProto:
    """Return the model of a function of the call, compared with the `results` of the module itself, if any."""
    with progress(call.label) as begin:
        begin("tracing it")
        program = trace(call, function, variable, dynamic_shapes)
        begin("writing it as ONNX")
        model = to_onnx(program, translation_table(), seed)
        if results is not None:
            begin("comparing the model with the module")
            check_model(program, model, results, function)
    return model


def _target(path: Any, check: Any, seed: Any) -> Path | None:
    """Return where the model is to be written; what cannot be is refused before the export, which takes long."""
    if not isinstance(check, bool):
        raise InvalidModelError(f"check is {check!r}; it must be True or False.")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31):
        raise InvalidModelError(f"seed is {seed!r}; it must be an int from 0 to {2**31 - 1}, or None.")
    if path is None:
        return None
    if not isinstance(path, str | Path):
        raise InvalidModelError(f"path is of type {type(path).__name__}; it must be a str, a Path or None.")
    if not os.path.basename(path):
        raise InvalidModelError(f"path is {str(path)!r}, which names no file; give the name of a file.")
    target = Path(path).absolute()
    status = None
    try:
        folder = os.path.dirname(os.path.realpath(target))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = target.stat()
    except (OSError, ValueError) as error:  # no permission, a name that is too long, one with NUL
        raise InvalidModelError(f"path is {str(path)!r}, which cannot be written: {error}; give another.") from error
    if status is not None and (kind := kind_of(status)) is not None:
        raise InvalidModelError(f"path is {path}, which is {kind}; give the name of a file.")
    if status is not None and not (status.st_mode & 0o222 and os.access(target, os.W_OK)):
        raise InvalidModelError(f"path is {path}, which is read-only; make it writable, or give another.")
    if not os.path.isdir(folder):
        raise InvalidModelError(f"path is {path}, and {folder} is no folder; make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidModelError(f"path is {path}, and {folder} cannot be written to; give a path in another folder.")
    return target


def _written(model: ModelProto, target: Path | None) -> ModelProto:
    if target is not None:
        save_model(model, target, target)
    return model
