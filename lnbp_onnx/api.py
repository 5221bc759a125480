# SPDX-License-Identifier: Apache-2.0
"""The passes as functions from model to model.

Each takes a model in any form: a ModelProto, an ``onnx_ir.Model``, a path, or a serialised model. An
``onnx_ir.Model`` gives one again, everything else a ModelProto. What it is given stays as it was; a path's external
data is read into the result, as ``onnx.load`` does it, while that of a model in memory is not looked at.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import onnx_ir as ir
from onnx import ModelProto

from lnbp_onnx.files.model_like import read_whole_model
from lnbp_onnx.graphs.edit import apply
from lnbp_onnx.passes import DecomposePass, EmbedPass, FusePass, GradientPass, InTurn, OrtTrainingPass, ScatterPass


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
    return apply(read_whole_model(model), GradientPass(of=of, wrt=wrt, seed=seed))
