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

from lnbp_onnx.errors import argument
from lnbp_onnx.files.model_io import STANDARD_STREAM, save_model
from lnbp_onnx.files.model_like import read_model, read_whole_model
from lnbp_onnx.files.parameters import put_values
from lnbp_onnx.graphs.edit import apply
from lnbp_onnx.passes import (
    LOSS,
    DecomposePass,
    EmbedPass,
    FusePass,
    GradientNodesPass,
    GradientPass,
    InTurn,
    LossPass,
    OrtTrainingPass,
    ScatterPass,
    TrainingStepPass,
)
from lnbp_onnx.training.names import LossName
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
    Nodes of ONNX's own operator Gradient, of domain ``ai.onnx.preview.training``, become the operators that compute
    what they ask for; for these, functions are inlined, and opset 12 is raised to 13. All else stays as it is, and so
    does `model` itself.

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

    Example:
        >>> import onnx, lnbp_onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["": 17, "lnbp": 1]>
        ...     step (float[n, 64] x, float[n, 64] dy, float[64] gamma) => (float[n, 64] dx)
        ...     { dx = lnbp.LayerNormBackprop <use_stats = 0> (x, dy, gamma) }
        ... ''')
        >>> standard = lnbp_onnx.decompose(model)
        >>> {node.domain for node in standard.graph.node}
        {''}
    """
    passes: list[ir.passes.InPlacePass] = [OrtTrainingPass()] if training_ops else []
    if scatter_reductions:
        passes.append(ScatterPass())
    return apply(read_whole_model(model), InTurn(*passes, GradientNodesPass(), DecomposePass()))


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

    Example:
        >>> import onnx, lnbp_onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["": 17, "lnbp": 1]>
        ...     step (float[n, 64] x, float[n, 64] dy, float[64] gamma) => (float[n, 64] dx)
        ...     { dx = lnbp.LayerNormBackprop <use_stats = 0> (x, dy, gamma) }
        ... ''')
        >>> both = lnbp_onnx.embed(model)
        >>> [node.op_type for node in both.graph.node], [function.name for function in both.functions]
        (['LayerNormBackprop'], ['LayerNormBackprop'])
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

    Example:
        >>> import onnx, lnbp_onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["": 17, "lnbp": 1]>
        ...     step (float[n, 64] x, float[n, 64] dy, float[64] gamma) => (float[n, 64] dx)
        ...     { dx = lnbp.LayerNormBackprop <use_stats = 0> (x, dy, gamma) }
        ... ''')
        >>> fused = lnbp_onnx.fuse(lnbp_onnx.decompose(model))
        >>> [node.op_type for node in fused.graph.node]
        ['LayerNormBackprop']
    """
    return apply(read_whole_model(model), FusePass())


@overload
def gradient(
    model: ModelProto | str | Path | bytes,
    *,
    of: str,
    wrt: Sequence[str] | None = ...,
    seed: str | None = ...,
    loss: str | None = ...,
    label: str | None = ...,
    class_axis: int = ...,
    recompute: Sequence[str] = ...,
) -> ModelProto: ...
@overload
def gradient(
    model: ir.Model,
    *,
    of: str,
    wrt: Sequence[str] | None = ...,
    seed: str | None = ...,
    loss: str | None = ...,
    label: str | None = ...,
    class_axis: int = ...,
    recompute: Sequence[str] = ...,
) -> ir.Model: ...
def gradient(
    model: Any,
    *,
    of: str,
    wrt: Sequence[str] | None = None,
    seed: str | None = None,
    loss: str | None = None,
    label: str | None = None,
    class_axis: int = 1,
    recompute: Sequence[str] = (),
) -> Any:
    """Return the model with the gradients of one of its values as further outputs ``<name>.grad``.

    The gradient of a LayerNormalization is a LayerNormBackprop node, all else is standard operators of the model's
    opset. Forward values are reused, and only what the gradients need is computed. Model-local functions are inlined.
    `model` stays as it is.

    Args:
        model: As `decompose` takes it; the result is of the same kind as there.
        of: The value to differentiate, an output or any other value that a node of the main graph computes. Without
            `seed` it must be a scalar, or have one element. With `loss` it is what the loss is put on.
        wrt: What to differentiate by: names of inputs and initializers of a floating type, in the order of the outputs.
            Initializers become inputs with a default. By default every initializer of a floating type that `of`
            depends on. A gradient has the type and the shape of what it belongs to.
        seed: The name of a further input, of the type and shape of `of`, that the gradients are multiplied by from the
            left: ``<wrt>.grad`` is then the vector-Jacobian product.
        loss: What to differentiate is the mean of this loss, which becomes an output ``loss``: ``"mse"``, ``"l1"``,
            ``"bce"``, the binary cross-entropy of scores, or ``"cross-entropy"``, of scores, too. Where `of` is what a
            Sigmoid or Softmax makes of scores, it is that of these. Half types are computed in float.
        label: The name of a further input, what `loss` compares `of` with: of its type and shape, or for a
            cross-entropy the classes, int64, of its shape without `class_axis`; -100 is a class that does not count.
        class_axis: The axis of the classes in `of`: 1, as torch has it, or the last one.
        recompute: Names of forward values, or patterns of names as the shell's, that the gradients' part computes again
            from the nearest others, by the same operations, instead of keeping them: less memory for more time.

    Raises:
        InvalidModelError: Where the model cannot be used or its opset is older than 13; where a name is not one of the
            model's; where `of` does not depend on one of `wrt` in a way that has a gradient (nothing is zero in
            silence); where a gradient would pass an operator that is not covered, all of which are named; where `of`
            is not of a type and rank that `loss` takes; where `recompute` matches nothing that the gradients read, or
            what draws random numbers or holds a graph.
        InvalidNodeError: Where a LayerNormalization is one that LayerNormBackprop does not take.
        ValueError: Where there is no such loss, or one without a label, or a label without one.

    Example:
        >>> import onnx, lnbp_onnx
        >>> forward = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["": 17]>
        ...     net (float[n, 64] x, float[64] scale) => (float loss)
        ...     { y = LayerNormalization(x, scale)  loss = ReduceSum <keepdims = 0> (y) }
        ... ''')
        >>> model = lnbp_onnx.gradient(forward, of="loss", wrt=["x", "scale"])
        >>> [output.name for output in model.graph.output]
        ['loss', 'x.grad', 'scale.grad']
    """
    return apply(
        read_whole_model(model),
        InTurn(
            *differentiation(of, wrt=wrt, seed=seed, loss=loss, label=label, class_axis=class_axis, recompute=recompute)
        ),
    )


def differentiation(
    of: str | None,
    *,
    wrt: Sequence[str] | None,
    seed: str | None = None,
    loss: str | None,
    label: str | None,
    class_axis: int,
    recompute: Sequence[str] = (),
    patterns: bool = False,
) -> list[ir.passes.InPlacePass]:
    """Return the passes that write a loss, if one is wanted, and gradients; none where there is no `of`.

    Raises:
        ValueError: Where the arguments do not go together.
    """
    for name, value in (("wrt", wrt), ("recompute", recompute)):
        if isinstance(value, str):
            raise ValueError(f"{argument(name)} is {value!r}; it must be a sequence of names, such as [{value!r}].")
    if of is None:
        arguments = {"wrt": wrt, "loss": loss, "label": label, "recompute": recompute or None}
        given = [name for name, value in arguments.items() if value is not None]
        if given:
            raise ValueError(
                f"{argument(given[0])} is given without {argument('of')}; the gradients that a model has are taken as "
                "they are."
            )
        return []
    if loss is None:
        if label is not None:
            raise ValueError(f"{argument('label')} is given without {argument('loss')}, which would compare it.")
        return [GradientPass(of=of, wrt=wrt, seed=seed, patterns=patterns, recompute=recompute)]
    if loss not in list(LossName):
        raise ValueError(
            f"{argument('loss')} is {loss!r}; it must be one of {', '.join(map(repr, map(str, LossName)))}."
        )
    if label is None:
        raise ValueError(f"{argument('label')} is missing; a loss needs the name of the input that it compares with.")
    return [
        LossPass(LossName(loss), of=of, label=label, class_axis=class_axis),
        GradientPass(of=LOSS, wrt=wrt, seed=seed, patterns=patterns, recompute=recompute),
    ]


@overload
def training_step(
    model: ModelProto | str | Path | bytes,
    *,
    optimizer: Optimizer,
    of: str | None = ...,
    wrt: Sequence[str] | None = ...,
    loss: str | None = ...,
    label: str | None = ...,
    class_axis: int = ...,
    recompute: Sequence[str] = ...,
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
    loss: str | None = ...,
    label: str | None = ...,
    class_axis: int = ...,
    recompute: Sequence[str] = ...,
    clip_norm: float | None = ...,
    accumulation_steps: int = ...,
) -> ir.Model: ...
def training_step(
    model: Any,
    *,
    optimizer: Optimizer,
    of: str | None = None,
    wrt: Sequence[str] | None = None,
    loss: str | None = None,
    label: str | None = None,
    class_axis: int = 1,
    recompute: Sequence[str] = (),
    clip_norm: float | None = None,
    accumulation_steps: int = 1,
) -> Any:
    """Return a model of which each run is a step of training: a batch, parameters and state in, the new ones out.

    A loop feeds to a run what the last one gave: each output ``NAME.updated`` to the input NAME. All of these inputs
    have defaults, so that the first run needs none:

    - the parameters, with their values;
    - the optimizer's states of each, such as ``<parameter>.exp_avg``: one zero, which is broadcast, so that the lengths
      of the input are open; in float for parameters of a half type;
    - ``step``, int64, the number of runs before this one;
    - ``learning_rate``, a float, the optimizer's `lr`. It has no output; the loop may feed what its schedule wants.

    The loss is an output, and the others of the model, such as ``<buffer>.updated``, stay; those of the parameters'
    gradients do not. `model` stays as it is.

    Args:
        model: As `decompose` takes it; the result is of the same kind as there. It has the gradients of its parameters
            already, as outputs ``<parameter>.grad`` of initializers, which is what `gradient` and ``export_joint``
            return; or `of` says what to differentiate.
        optimizer: `AdamW` or `SGD`.
        of: As for `gradient`: the loss, or with `loss` what it is put on.
        wrt: As for `gradient`: the parameters.
        loss: As for `gradient`.
        label: As for `gradient`.
        class_axis: As for `gradient`.
        recompute: As for `gradient`.
        clip_norm: What the norm of all gradients together is limited to, as ``torch.nn.utils.clip_grad_norm_`` does it.
        accumulation_steps: From how many runs a step is taken: every run adds its gradients to the states
            ``<parameter>.accumulated``, and the last of them takes the step, with their mean.

    Raises:
        InvalidModelError: As for `gradient`; where the model has no gradients of parameters and `of` is not given,
            where it has a name already that the step needs, and where a pattern of the optimizer matches no parameter.
        InvalidNodeError: As for `gradient`.
        ValueError: As for `gradient`; where `clip_norm` or `accumulation_steps` is out of its range, or what is
            for `of` is given without it.

    Example:
        >>> import onnx, lnbp_onnx
        >>> forward = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["": 17]>
        ...     net (float[n, 2] x) => (float loss) <float[2] scale = {1.0, 2.0}>
        ...     { y = LayerNormalization(x, scale)  loss = ReduceSum <keepdims = 0> (y) }
        ... ''')
        >>> step = lnbp_onnx.training_step(forward, of="loss", optimizer=lnbp_onnx.SGD(lr=0.1))
        >>> [output.name for output in step.graph.output]
        ['loss', 'scale.updated', 'step.updated']
    """
    passes = differentiation(of, wrt=wrt, loss=loss, label=label, class_axis=class_axis, recompute=recompute)
    step = TrainingStepPass(
        optimizer,
        loss=of if loss is None else LOSS,
        clip_norm=clip_norm,
        accumulation_steps=accumulation_steps,
    )
    return apply(read_whole_model(model), InTurn(*passes, step))


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

    Example:
        >>> import numpy as np
        >>> import onnx, lnbp_onnx
        >>> forward = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["": 17]>
        ...     net (float[n, 2] x) => (float loss) <float[2] scale = {1.0, 2.0}>
        ...     { y = LayerNormalization(x, scale)  loss = ReduceSum <keepdims = 0> (y) }
        ... ''')
        >>> trained = lnbp_onnx.save_parameters(forward, {"scale": np.float32([0.5, 0.25])})
        >>> onnx.numpy_helper.to_array(trained.graph.initializer[0]).tolist()
        [0.5, 0.25]
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
