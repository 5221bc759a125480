# SPDX-License-Identifier: Apache-2.0
"""Operators that move elements: dY is moved back."""

from typing import Any

import onnx_ir as ir

from lnbp_onnx.gradients.gradient_op import GradientOp, Gradients
from lnbp_onnx.training_ops.indexing import added_elements


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
        delta if delta is not None else g.zeros_like(output)
        for delta, output in zip(g.deltas, g.node.outputs, strict=True)
    ]
    return [g.op("Concat", *parts, axis=g.attribute("axis", 0))]


def cut(g: GradientOp) -> Gradients:
    """Slice: zeros of the shape of X, with dY where the slice is."""
    x, starts, axes, steps = g.input(0), g.input(1), g.optional_input(3), g.optional_input(4)
    sliced = _sliced_axes(g, starts, axes)
    strides = g.known_tensor(steps) if steps is not None else None
    if sliced is not None and (steps is None or (strides is not None and set(strides.numpy()) == {1})):
        shape = g.info(x).shape
        if shape is not None and None not in shape and shape == g.info(g.node.outputs[0]).shape:
            return [g.dy]
        return [_put_back(g, g.dy, x, starts, sliced)]
    return g.training_op("SliceGrad", g.dy, g.shape_of(x), starts, g.input(2), axes, steps, like=g.if_wanted(0))


def _sliced_axes(g: GradientOp, starts: ir.Value, axes: ir.Value | None) -> list[int] | None:
    """Return the axes that each of `starts` is for, None where they are known at run time only."""
    if axes is not None:
        tensor = g.known_tensor(axes)
        return None if tensor is None else [int(axis) for axis in tensor.numpy()]
    shape = g.info(starts).shape
    return list(range(shape[0])) if shape is not None and isinstance(shape[0], int) else None


def _put_back(g: GradientOp, dy: ir.Value, x: ir.Value, starts: ir.Value, axes: list[int]) -> ir.Value:
    """Return the gradient of a part of X with zeros around it, where a Slice with steps of 1 began at `starts`."""
    rank = g.rank(x)
    axes = [axis % rank for axis in axes]
    first, shape, sliced = g.known_tensor(starts), g.info(x).shape, g.info(dy).shape
    lengths = [shape[axis] if shape is not None else None for axis in axes]
    given = [sliced[axis] if sliced is not None else None for axis in axes]
    if first is not None and all(isinstance(each, int) for each in (*lengths, *given)):
        begins, ends = [0] * rank, [0] * rank
        for start, axis, length, kept in zip(first.numpy().tolist(), axes, lengths, given, strict=True):
            assert isinstance(length, int)
            assert isinstance(kept, int)
            begins[axis] = min(max(start + length if start < 0 else start, 0), length)
            ends[axis] = length - begins[axis] - kept
        pads = g.ints(*begins, *ends)
    else:
        whole, part = (g.op("Gather", each, g.ints(*axes)) for each in (g.shape_of(x), g.shape(dy)))
        starts = g.cast(starts, ir.DataType.INT64)
        begin = g.where(g.compare("Less", starts, g.ints(0)), g.op("Add", starts, whole), starts)
        begin = g.op("Min", g.op("Max", begin, g.ints(0)), whole)
        end = g.op("Sub", g.op("Sub", whole, begin), part)
        places = {axis: place for place, axis in enumerate(axes)}
        pads = g.joined(
            *(
                g.part(each, places[axis], places[axis] + 1) if axis in places else g.ints(0)
                for each in (begin, end)
                for axis in range(rank)
            )
        )
    (dy,) = g.computed(dy)
    return g.cast(g.op("Pad", dy, pads), g.element_type(x))


def pad(g: GradientOp) -> Gradients:
    """dY added up where its elements come from; of a constant the part between the pads."""
    g.refuse_gradient(2)
    x, pads, axes = g.input(0), g.input(1), g.optional_input(3)
    if g.attribute("mode", "constant") != "constant":
        size = g.product(g.shape_of(x))
        count = g.count_to(size)
        places = g.op("Pad", g.shaped_like(count, x), pads, None, axes, mode=g.attribute("mode", ""))
        (dy,) = g.computed(g.dy)
        sums = added_elements(g, size, g.flat(places), dy)
        return [g.cast(g.shaped_like(sums, x), g.element_type(x))]
    tensor = g.known_tensor(pads)
    axes_tensor = None if axes is None else g.known_tensor(axes)
    if tensor is None or tensor.numpy().min(initial=0) < 0 or (axes is not None and axes_tensor is None):
        return [g.op("Pad", g.dy, g.op("Neg", pads), None, axes)]
    padded = range(g.rank(x)) if axes_tensor is None else axes_tensor.numpy().reshape(-1).tolist()
    begins = g.ints(*tensor.numpy().reshape(-1)[: len(padded)].tolist())
    lengths = g.op("Gather", g.shape_of(x), g.ints(*padded), axis=0)
    return [g.op("Slice", g.dy, begins, g.op("Add", begins, lengths), g.ints(*padded))]


def depth_to_space(g: GradientOp) -> Gradients:
    """SpaceToDepth of dY, in the mode's order."""
    size = g.attribute("blocksize", 1)
    if g.attribute("mode", "DCR") == "DCR":
        return [g.op("SpaceToDepth", g.dy, blocksize=size)]
    block, lengths = g.ints(size), g.part(g.shape_of(g.input(0)), 2)
    apart = g.joined(g.ints(0, -1), g.part(lengths, 0, 1), block, g.part(lengths, 1), block)
    blocks = g.op("Transpose", g.op("Reshape", g.dy, apart), perm=[0, 1, 3, 5, 2, 4])
    return [g.shaped_like(blocks, g.input(0))]


def space_to_depth(g: GradientOp) -> Gradients:
    """DepthToSpace of dY, in the mode's order."""
    return [g.op("DepthToSpace", g.dy, blocksize=g.attribute("blocksize", 1), mode=g.attribute("mode", "DCR"))]


def reverse_sequence(g: GradientOp) -> Gradients:
    """ReverseSequence of dY."""
    axes = {"batch_axis": g.attribute("batch_axis", 1), "time_axis": g.attribute("time_axis", 0)}
    return [g.op("ReverseSequence", g.dy, g.input(1), **axes)]


def trilu(g: GradientOp) -> Gradients:
    """Trilu of dY."""
    return [g.op("Trilu", g.dy, g.optional_input(1), upper=g.attribute("upper", 1))]


def gather(g: GradientOp) -> Gradients:
    """Zeros of the shape of X, with dY added at the indices along the axis."""
    x, index = g.input(0), g.known_tensor(g.input(1))
    if index is not None and index.size == 1 and len(index.shape) < 2 and g.info(x).shape is not None:
        axis, shape = g.attribute("axis", 0) % g.rank(x), list(g.info(x).shape or ())
        shape[axis] = 1
        dy = g.dy if index.shape else g.unsqueeze(g.dy, axis, shape=shape)
        return [_put_back(g, dy, x, g.ints(int(index.numpy().reshape(-1)[0])), [axis])]
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
            data = g.op(g.node.op_type, dy, indices, g.zeros_like(g.input(2)), **attributes)
    return [data, None, picked if g.wants(2) else None]
