# SPDX-License-Identifier: Apache-2.0
"""The passes as functions from model to model."""

from lnbp_onnx.edit import AnyModel, apply
from lnbp_onnx.passes import DecomposePass, EmbedPass, FusePass, OrtTrainingPass


def decompose(model: AnyModel, *, training_ops: bool = False) -> AnyModel:
    """Return the model with every LayerNormBackprop node rewritten in standard ONNX operators.

    Nodes in subgraphs and in model-local functions are rewritten as well, the import of domain ``lnbp`` is removed.
    All else stays as it is, and so does `model` itself. External data is not looked at.

    Args:
        model: A ModelProto or an ``onnx_ir.Model``; the result is of the same kind.
        training_ops: Whether to rewrite the operators of ONNX Runtime training as well, so that its graphs run in a
            current ONNX Runtime. What the graph changed in place becomes an output ``<input>.updated``.

    Raises:
        InvalidNodeError: Where the specification refuses a node, or too little is known of it.
        InvalidModelError: Where the model's opset is too old or unknown, or has training operators that cannot be
            rewritten.
    """
    if training_ops:
        model = apply(OrtTrainingPass(), model)
    return apply(DecomposePass(), model)


def embed(model: AnyModel) -> AnyModel:
    """Return the model with a model-local function that computes LayerNormBackprop in standard ONNX operators.

    The nodes stay: a runtime that has a kernel for them runs it, another one runs the function. One function serves the
    configuration that most nodes share; the others are rewritten as `decompose` does it. `model` stays as it is.

    Args:
        model: A ModelProto or an ``onnx_ir.Model``; the result is of the same kind.

    Raises:
        InvalidNodeError: Where the specification refuses a node, or too little is known of it.
        InvalidModelError: Where the model's opset is too old or unknown.
    """
    return apply(EmbedPass(), model)


def fuse(model: AnyModel) -> AnyModel:
    """Return the model with the layer-norm gradients that are found in it as LayerNormBackprop nodes.

    Found are what `decompose` writes, the formula in standard operators as PyTorch, JAX and others write it, and the
    gradient operators of ONNX Runtime training. What a model computes does not change, and values that others use
    stay. The function that `embed` adds is removed. `model` stays as it is.

    Args:
        model: A ModelProto or an ``onnx_ir.Model``; the result is of the same kind.

    Raises:
        InvalidModelError: Where the model cannot be used.
    """
    return apply(FusePass(), model)
