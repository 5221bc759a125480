# SPDX-License-Identifier: Apache-2.0
"""Operators that move elements: dY is moved back."""

from typing import Any

import onnx_ir as ir

from lnbp_onnx.gradients.gradient_op import GradientOp, Gradients


def reshape(g: GradientOp) -> Gradients:
    """Reshape, Flatten, Squeeze, Unsqueeze: dY in the shape of X."""
    return [g.shaped_like(g.dy, g.input(0))]


def transpose(g: GradientOp) -> Gradients:
    """dY with the inverse permutation; without one, the axes reversed again."""
    perm = g.attribute("perm", None)
    if perm is None:
        return [g.op("Transpose", g.dy)]
    inverse = sorted(range(len(perm)), key=lambda axis: int(perm[axis]))
    return [g.op("Transpose", g.dy, perm=inverse)]


def expand(g: GradientOp) -> Gradients:
    """dY summed over the axes that were expanded."""
    return [g.unbroadcast(g.dy, g.input(0))]


def tile(g: GradientOp) -> Gradients:
    """dY summed over the repetitions."""
    x, repeats = g.input(0), g.input(1)
    rank = g.rank(x)
    if rank == 0:
        return [g.dy]
    pairs = g.op("Concat", g.unsqueeze(repeats, 1), g.unsqueeze(g.shape_of(x), 1), axis=1)
    value = g.reshape(g.dy, g.flat(pairs))
    return [g.reduce("ReduceSum", value, list(range(0, 2 * rank, 2)), keepdims=False)]


def concat(g: GradientOp) -> Gradients:
    """The parts of dY."""
    axis = g.attribute("axis", 0)
    inputs = [g.input(index) for index in range(len(g.node.inputs))]
    if len(inputs) == 1:
        return [g.dy]
    lengths = g.joined(*(g.op("Gather", g.shape_of(value), g.ints(axis), axis=0) for value in inputs))
    parts = g.ops("Split", g.dy, lengths, outputs=len(inputs), axis=axis)
    return [part if g.wants(index) else None for index, part in enumerate(parts)]


def split(g: GradientOp) -> Gradients:
    """The gradients of the parts, joined; zeros for a part that nothing depends on."""
    parts = [
        delta if delta is not None else g.op("Mul", output, g.number(0.0))
        for delta, output in zip(g.deltas, g.node.outputs, strict=True)
    ]
    return [g.op("Concat", *parts, axis=g.attribute("axis", 0))]


def cut(g: GradientOp) -> Gradients:
    """Slice: zeros of the shape of X, with dY where the slice is."""
    return g.training_op(
        "SliceGrad",
        *(g.dy, g.shape_of(g.input(0)), g.input(1), g.input(2), g.optional_input(3), g.optional_input(4)),
        like=g.if_wanted(0),
    )


def pad(g: GradientOp) -> Gradients:
    """dY without what a constant was put into; the pads must be constants."""
    g.refuse_gradient(2)
    x, mode = g.input(0), g.attribute("mode", "constant")
    if mode != "constant":
        g.refuse(f"its attribute mode is {mode!r}; 'constant' is covered")
    pads, axes_input = g.static_ints(g.input(1), "pads"), g.optional_input(3)
    axes = list(range(g.rank(x))) if axes_input is None else g.static_ints(axes_input, "axes")
    if min(pads, default=0) < 0:
        g.refuse(f"its pads {pads} cut elements off; pads that are not negative are covered (use Slice)")
    begins = g.ints(*pads[: len(axes)])
    lengths = g.op("Gather", g.shape_of(x), g.ints(*axes), axis=0)
    return [g.op("Slice", g.dy, begins, g.op("Add", begins, lengths), g.ints(*axes))]


def _blocks(g: GradientOp, inverse: str) -> Gradients:
    if g.attribute("mode", "DCR") != "DCR":
        g.refuse(f"its attribute mode is {g.attribute('mode', '')!r}; 'DCR' is covered")
    return [g.op(inverse, g.dy, blocksize=g.attribute("blocksize", 1))]


def depth_to_space(g: GradientOp) -> Gradients:
    """SpaceToDepth of dY; mode DCR."""
    return _blocks(g, "SpaceToDepth")


def space_to_depth(g: GradientOp) -> Gradients:
    """DepthToSpace of dY."""
    return _blocks(g, "DepthToSpace")


def trilu(g: GradientOp) -> Gradients:
    """Trilu of dY."""
    return [g.op("Trilu", g.dy, g.optional_input(1), upper=g.attribute("upper", 1))]


def gather(g: GradientOp) -> Gradients:
    """Zeros of the shape of X, with dY added at the indices along the axis."""
    return g.training_op("GatherGrad", g.shape_of(g.input(0)), g.input(1), g.dy, like=g.if_wanted(0))


def gather_elements(g: GradientOp) -> Gradients:
    """Zeros of the shape of X, with dY added at the indices."""
    return g.training_op("GatherElementsGrad", g.dy, g.shape_of(g.input(0)), g.input(1), like=g.if_wanted(0))


def gather_nd(g: GradientOp) -> Gradients:
    """Zeros of the shape of X, with dY added at the index tuples."""
    return g.training_op("GatherNDGrad", g.shape_of(g.input(0)), g.input(1), g.dy, like=g.if_wanted(0))


def scatter_elements(g: GradientOp) -> Gradients:
    """dY, with zeros at the indices unless it adds; for the updates, what dY has there."""
    return _scatter(g, "GatherElements", axis=g.attribute("axis", 0))


def scatter_nd(g: GradientOp) -> Gradients:
    """dY, with zeros at the index tuples unless it adds; for the updates, what dY has there."""
    return _scatter(g, "GatherND")


def _scatter(g: GradientOp, gather_op: str, **attributes: Any) -> Gradients:
    reduction = g.attribute("reduction", "none")
    if reduction not in ("none", "add"):
        g.refuse(f"its attribute reduction is {reduction!r}; 'none' and 'add' are covered")
    indices, dy = g.input(1), g.dy
    picked: ir.Value = g.op(gather_op, dy, indices, **attributes)
    data = None
    if g.wants(0):
        data = dy
        if reduction == "none":
            data = g.op(g.node.op_type, dy, indices, g.op("Mul", picked, g.number(0.0)), **attributes)
    return [data, None, picked if g.wants(2) else None]
