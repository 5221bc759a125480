# SPDX-License-Identifier: Apache-2.0
"""The passes as functions from model to model.

Each takes a model in any form: a ModelProto, an ``onnx_ir.Model``, a path, or a serialised model. An
``onnx_ir.Model`` gives one again, everything else a ModelProto. What it is given stays as it was; a path's external
data is read into the result, as ``onnx.load`` does it, while that of a model in memory is not looked at.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, overload

import onnx_ir as ir
from onnx import ModelProto

from lnbp_onnx.files.model_io import STANDARD_STREAM, save_model
from lnbp_onnx.files.model_like import read_model, read_whole_model
from lnbp_onnx.files.parameters import put_values
from lnbp_onnx.graphs.edit import apply
from lnbp_onnx.passes import (
    DecomposePass,
    EmbedPass,
    FusePass,
    GradientPass,
    InTurn,
    OrtTrainingPass,
    ScatterPass,
    TrainingStepPass,
)
from lnbp_onnx.training.optimizers import Optimizer


# ONNX's own class comes first: without type stubs for protobuf a checker takes it for any class.
@overload
def decompose(
    model: ModelProto | str | Path | bytes, *, training_ops: bool = ..., scatter_reductions: bool = ...
) -> ModelProto: ...
@overload
def decompose(model: ir.Model, *, training_ops: bool = ..., scatter_reductions: bool = ...) -> ir.Model: ...
def decompose(model: Any, *, training_ops: bool = False, scatter_reductions: bool = False) -> Any:
    """Return the model with every LayerNormBackprop node rewritten in standard ONNX operators.

    Nodes in subgraphs and in model-local functions are rewritten as well, the import of domain ``lnbp`` is removed.
    All else stays as it is, and so does `model` itself.

    Args:
        model: A ModelProto, an ``onnx_ir.Model``, a path, or a serialised model; an ``onnx_ir.Model`` gives one again,
            everything else a ModelProto. The external data of a path is read into the result; that of a model in
            memory is not looked at.
        training_ops: Whether to rewrite the operators of ONNX Runtime training as well, so that its graphs run in a
            current ONNX Runtime. What the graph changed in place becomes an output ``<input>.updated``.
        scatter_reductions: Whether to rewrite every ScatterND that adds (multiplies, ...) as well: with more than one
            thread ONNX Runtime loses some of its updates where indices repeat, as the gradients of embeddings do.

    Raises:
        InvalidNodeError: Where the specification refuses a node, or too little is known of it.
        InvalidModelError: Where the model cannot be used, its opset is too old or unknown, or it has operators that
            cannot be rewritten.
    """
    passes: list[ir.passes.InPlacePass] = [OrtTrainingPass()] if training_ops else []
    if scatter_reductions:
        passes.append(ScatterPass())
    return apply(read_whole_model(model), InTurn(*passes, DecomposePass()))


@overload
def embed(model: ModelProto | str | Path | bytes) -> ModelProto: ...
@overload
def embed(model: ir.Model) -> ir.Model: ...
def embed(model: Any) -> Any:
    """Return the model with a model-local function that computes LayerNormBackprop in standard ONNX operators.

    The nodes stay: a runtime that has a kernel for them runs it, another one runs the function. One function serves the
    configuration that most nodes share; the others are rewritten as `decompose` does it. `model` stays as it is.

    Args:
        model: As `decompose` takes it; the result is of the same kind as there.

    Raises:
        InvalidNodeError: Where the specification refuses a node, or too little is known of it.
        InvalidModelError: Where the model cannot be used, or its opset is too old or unknown.
    """
    return apply(read_whole_model(model), EmbedPass())


@overload
def fuse(model: ModelProto | str | Path | bytes) -> ModelProto: ...
@overload
def fuse(model: ir.Model) -> ir.Model: ...
def fuse(model: Any) -> Any:
    """Return the model with the layer-norm gradients that are found in it as LayerNormBackprop nodes.

    Found are what `decompose` writes, the formula in standard operators as PyTorch, JAX and others write it, and the
    gradient operators of ONNX Runtime training. What a model computes does not change, and values that others use
    stay. The function that `embed` adds is removed. `model` stays as it is.

    Args:
        model: As `decompose` takes it; the result is of the same kind as there.

    Raises:
        InvalidModelError: Where the model cannot be used.
    """
    return apply(read_whole_model(model), FusePass())


@overload
def gradient(
    model: ModelProto | str | Path | bytes, *, of: str, wrt: Sequence[str] | None = ..., seed: str | None = ...
) -> ModelProto: ...
@overload
def gradient(model: ir.Model, *, of: str, wrt: Sequence[str] | None = ..., seed: str | None = ...) -> ir.Model: ...
def gradient(model: Any, *, of: str, wrt: Sequence[str] | None = None, seed: str | None = None) -> Any:
    """Return the model with the gradients of one of its values as further outputs ``<name>.grad``.

    The gradient of a LayerNormalization is a LayerNormBackprop node, all else is standard operators of the model's
    opset. Forward values are reused, and only what the gradients need is computed. Model-local functions are inlined.
    `model` stays as it is.

    Args:
        model: As `decompose` takes it; the result is of the same kind as there.
        of: The value to differentiate, an output or any other value that a node of the main graph computes. Without
            `seed` it must be a scalar, or have one element.
        wrt: What to differentiate by: names of inputs and initializers of a floating type, in the order of the outputs.
            Initializers become inputs with a default. By default every initializer of a floating type that `of`
            depends on. A gradient has the type and the shape of what it belongs to.
        seed: The name of a further input, of the type and shape of `of`, that the gradients are multiplied by from the
            left: ``<wrt>.grad`` is then the vector-Jacobian product.

    Raises:
        InvalidModelError: Where the model cannot be used or its opset is older than 13; where a name is not one of the
            model's; where `of` does not depend on one of `wrt` in a way that has a gradient (nothing is zero in
            silence); where a gradient would pass an operator that is not covered, all of which are named.
        InvalidNodeError: Where a LayerNormalization is one that LayerNormBackprop does not take.
    """
    return apply(read_whole_model(model), GradientPass(of=of, wrt=wrt, seed=seed))


@overload
def training_step(
    model: ModelProto | str | Path | bytes,
    *,
    optimizer: Optimizer,
    of: str | None = ...,
    wrt: Sequence[str] | None = ...,
    clip_norm: float | None = ...,
    accumulation_steps: int = ...,
) -> ModelProto: ...
@overload
def training_step(
    model: ir.Model,
    *,
    optimizer: Optimizer,
    of: str | None = ...,
    wrt: Sequence[str] | None = ...,
    clip_norm: float | None = ...,
    accumulation_steps: int = ...,
) -> ir.Model: ...
def training_step(
    model: Any,
    *,
    optimizer: Optimizer,
    of: str | None = None,
    wrt: Sequence[str] | None = None,
    clip_norm: float | None = None,
    accumulation_steps: int = 1,
) -> Any:
    """Return a model of which each run is a step of training: a batch, parameters and state in, the new ones out.

    A loop feeds to a run what the last one gave: each output ``NAME.updated`` to the input NAME. All of these inputs
    have defaults, so that the first run needs none:

    - the parameters, with their values;
    - the optimizer's states of each, such as ``<parameter>.exp_avg``, zero; in float for parameters of a half type;
    - ``step``, int64, the number of runs before this one;
    - ``learning_rate``, a float, the optimizer's `lr`. It has no output; the loop may feed what its schedule wants.

    The other outputs of the model, such as the loss and ``<buffer>.updated``, stay; those of the parameters' gradients
    do not. `model` stays as it is.

    Args:
        model: As `decompose` takes it; the result is of the same kind as there. It has a loss, or the gradients of one
            already, as outputs ``<parameter>.grad`` of initializers: what `gradient` and ``export_joint`` return.
        optimizer: `AdamW` or `SGD`.
        of: The loss, for a model without gradients; a scalar, as for `gradient`.
        wrt: The parameters, where `of` is given: as for `gradient`.
        clip_norm: What the norm of all gradients together is limited to, as ``torch.nn.utils.clip_grad_norm_`` does it.
        accumulation_steps: From how many runs a step is taken: every run adds its gradients to the states
            ``<parameter>.accumulated``, and the last of them takes the step, with their mean.

    Raises:
        InvalidModelError: As for `gradient`; where the model has no gradients of parameters and `of` is not given,
            where it has a name already that the step needs, and where a pattern of the optimizer matches no parameter.
        InvalidNodeError: As for `gradient`.
        ValueError: Where `clip_norm` or `accumulation_steps` is out of its range, or `wrt` is given without `of`.
    """
    if of is None and wrt is not None:
        raise ValueError("wrt is given without of; the gradients that a model has are taken as they are.")
    differentiation = [] if of is None else [GradientPass(of=of, wrt=wrt)]
    step = TrainingStepPass(optimizer, clip_norm=clip_norm, accumulation_steps=accumulation_steps)
    return apply(read_whole_model(model), InTurn(*differentiation, step))


@overload
def save_parameters(
    model: ModelProto | str | Path | bytes, values: Mapping[str, Any], path: str | Path | None = ...
) -> ModelProto: ...
@overload
def save_parameters(model: ir.Model, values: Mapping[str, Any], path: str | Path | None = ...) -> ir.Model: ...
def save_parameters(model: Any, values: Mapping[str, Any], path: str | Path | None = None) -> Any:
    """Return the model with other values of its initializers: a forward model with its trained parameters.

    Args:
        model: As `decompose` takes it; the result is of the same kind as there. It stays as it is.
        values: Arrays by the initializer's name, of its type and shape; initializers of other names stay.
        path: Where to write the result, whole or not at all: external data in another folder is copied beside it, and
            from 2 GB on all of it is external. The returned model then refers to that data.

    Raises:
        InvalidModelError: Where the model cannot be used, or `path` not be written; where a value belongs to no
            initializer, or is not of its type and shape. All such values are named.
    """
    if path is None:
        result = read_whole_model(model)
        result = result.clone() if isinstance(result, ir.Model) else deepcopy(result)
        put_values(result, values)
        return result
    proto, source = read_model(model)
    put_values(proto, values)
    save_model(proto, Path(path), source or STANDARD_STREAM)
    return ir.load(path) if isinstance(model, ir.Model) else proto
