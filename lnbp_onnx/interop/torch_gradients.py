# SPDX-License-Identifier: Apache-2.0
"""Pooling, resizing, bags, weight norms and diagonals with gradients in operators that torch's exporter knows.

Averages and resizing are linear and work on an axis at a time: what they make of an axis is a matrix, and its gradient
is a product with it. A maximum has one source, to which its gradient is added.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def gradient_decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Return, by ATen operator, what computes it."""
    aten = torch.ops.aten
    return {
        aten.avg_pool2d_backward.default: partial(_avg_pool_backward, 2),
        aten.avg_pool3d_backward.default: partial(_avg_pool_backward, 3),
        aten.max_pool2d_with_indices_backward.default: partial(_max_pool_backward, 2),
        aten.max_pool3d_with_indices_backward.default: partial(_max_pool_backward, 3),
        aten.diagonal_backward.default: _diagonal_backward,
    }


def _times(tensor: Any, matrices: Sequence[Any]) -> Any:
    """Multiply each of the last axes by its matrix."""
    for axis, matrix in enumerate(matrices, tensor.dim() - len(matrices)):
        last = tensor.transpose(axis, -1)
        rows = last.reshape(-1, last.shape[-1]) @ matrix
        tensor = rows.reshape(*last.shape[:-1], matrix.shape[-1]).transpose(axis, -1)
    return tensor


def _shares(like: Any, starts: Any, ends: Any, counts: Any, length: Any) -> Any:
    """Return the matrix of windows from `starts` to `ends` that share what they get among so many elements."""
    at = torch.arange(length, device=like.device)
    within = (at >= starts[:, None]) & (at < ends[:, None])
    return within.to(like.dtype) / counts[:, None].to(like.dtype)


def _avg_pool_backward(
    axes: int,
    gradient: Any,
    x: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    _ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    kernel, strides, pads = (list(each) * (axes // len(each)) for each in (kernel_size, stride or kernel_size, padding))
    matrices = []
    for axis in range(axes):
        length, pad = x.shape[axis - axes], pads[axis]
        starts = torch.arange(gradient.shape[axis - axes], device=x.device) * strides[axis] - pad
        ends = starts + kernel[axis]
        if divisor_override:
            counts = torch.ones_like(starts)
        elif count_include_pad:
            counts = ends.clamp(max=length + pad) - starts
        else:
            counts = ends.clamp(max=length) - starts.clamp(min=0)
        matrices.append(_shares(gradient, starts, ends, counts, length))
    return _times(gradient / divisor_override if divisor_override else gradient, matrices)


def _max_pool_backward(axes: int, gradient: Any, x: Any, *settings: Any) -> Any:
    """Add gradients where the indices, the last of the settings, point, which count the elements of the last axes."""
    indices = settings[-1].flatten(-axes)
    return torch.zeros_like(x).flatten(-axes).scatter_add(-1, indices, gradient.flatten(-axes)).reshape(x.shape)


def _diagonal_backward(gradient: Any, input_sizes: Sequence[Any], offset: int, dim1: int, dim2: int) -> Any:
    rows, columns = input_sizes[dim1], input_sizes[dim2]
    row, column = (torch.arange(size, device=gradient.device) for size in (rows, columns))
    missing = (columns if offset < 0 else rows) - gradient.shape[-1]
    lines = functional.pad(gradient, (0, missing)).unsqueeze(-2 if offset < 0 else -1)
    result = torch.where(column == row[:, None] + offset, lines, torch.zeros_like(lines))
    return result.movedim((-2, -1), (dim1, dim2))


class WithExportableGradients(TorchFunctionMode):  # type: ignore[misc]  # torch has no types where it is not installed
    """Functions whose gradients torch gives an exporter in a form that is slow, or that it does not know.

    Resizing becomes sums over indices, adaptive averages ``as_strided`` where channels are last; for adaptive maxima,
    bags of embeddings and weight norms there are operators of their own.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        written: dict[Any, Callable[..., Any]] = {
            functional.interpolate: _interpolate,
            torch.adaptive_avg_pool1d: partial(_adaptive_avg_pool, 1),
            functional.adaptive_avg_pool2d: partial(_adaptive_avg_pool, 2),
            functional.adaptive_avg_pool3d: partial(_adaptive_avg_pool, 3),
            functional.adaptive_max_pool1d: partial(_adaptive_max_pool, 1),
            functional.adaptive_max_pool2d: partial(_adaptive_max_pool, 2),
            functional.adaptive_max_pool3d: partial(_adaptive_max_pool, 3),
            functional.embedding_bag: _embedding_bag,
            torch._weight_norm: _weight_norm,
        }
        return written.get(function, function)(*args, **(kwargs or {}))


def _adaptive_avg_pool(axes: int, input: Any, output_size: Any) -> Any:
    sizes = list(output_size) if isinstance(output_size, tuple | list) else [output_size] * axes
    if all(size == 1 for size in sizes):
        return input.mean(list(range(-axes, 0)), keepdim=True)
    matrices = []
    for axis, (starts, ends) in enumerate(_adaptive_windows(axes, input, output_size), -axes):
        matrices.append(_shares(input, starts, ends, ends - starts, input.shape[axis]).T)
    return _times(input, matrices)


def _adaptive_windows(axes: int, input: Any, output_size: Any) -> Sequence[tuple[Any, Any]]:
    """Return of each of the last axes where the windows start and end."""
    sizes = output_size if isinstance(output_size, tuple | list) else [output_size] * axes
    windows = []
    for length, size in zip(input.shape[-axes:], sizes, strict=True):
        count = length if size is None else size
        at = torch.arange(count, device=input.device)
        windows.append((at * length // count, ((at + 1) * length + count - 1) // count))
    return windows


def _adaptive_max_pool(axes: int, input: Any, output_size: Any, return_indices: bool = False) -> Any:
    """Take maxima along an axis at a time, of windows that repeat their last element up to the longest's length."""
    if return_indices:
        pools = (functional.adaptive_max_pool1d, functional.adaptive_max_pool2d, functional.adaptive_max_pool3d)
        return pools[axes - 1](input, output_size, return_indices=True)
    for axis, (starts, ends) in enumerate(_adaptive_windows(axes, input, output_size), -axes):
        longest = (input.shape[axis] - 1) // starts.shape[0] + 2
        within = starts[:, None] + torch.arange(longest, device=input.device)
        elements = input.index_select(axis, torch.minimum(within, ends[:, None] - 1).flatten())
        input = elements.unflatten(axis, within.shape).max(axis).values
    return input


def _weight_norm(v: Any, g: Any, dim: int = 0) -> Any:
    """Scale v to the norm g over all axes but one, or for -1 over all axes."""
    axes = [axis for axis in range(v.dim()) if axis != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=dim != -1))


def _embedding_bag(
    input: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Sum up, average or take maxima of embeddings by what each bag holds of them, [bags, embeddings].

    The input is [bags, embeddings of each], or [embeddings] of all bags, which start at `offsets`.
    """
    if scale_grad_by_freq:  # for which torch's own gradient counts other rows; the exporter refuses it
        return functional.embedding_bag(input, weight, offsets, mode=mode, scale_grad_by_freq=True)
    rows = functional.embedding(input, weight, padding_idx, max_norm, norm_type, sparse=sparse)
    held = torch.ones_like(input, dtype=torch.bool)
    if padding_idx is not None:
        held = input != padding_idx % weight.shape[0]
    if offsets is not None:
        at = torch.arange(input.shape[0], device=input.device)
        starts = offsets[:-1] if include_last_offset else offsets
        ends = offsets[1:] if include_last_offset else torch.cat([offsets[1:], offsets.new_full((1,), input.shape[0])])
        held = held & (at >= starts[:, None]) & (at < ends[:, None])
    if mode == "max":
        largest = torch.where(held[..., None], rows, -torch.inf).max(1).values
        return torch.where(held.any(1, keepdim=True), largest, 0)
    shares = held.to(rows.dtype)
    if mode == "mean":
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
    if per_sample_weights is not None:
        shares = shares * per_sample_weights
    return (shares[:, None] @ rows).squeeze(1)


def _interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """Resize as ``torch.nn.functional.interpolate`` does: what it makes of unit vectors is the matrix."""
    axes = input.dim() - 2
    sizes, scales = (list(each) if isinstance(each, tuple | list) else [each] * axes for each in (size, scale_factor))
    two = mode in ("bilinear", "bicubic")  # which it has for two axes alone
    matrices = []
    for axis in range(axes):
        units = torch.eye(input.shape[2 + axis], dtype=input.dtype, device=input.device)
        resized = functional.interpolate(
            units[:, None, None] if two else units[:, None],
            None if sizes[axis] is None else [1, sizes[axis]][not two :],
            None if scales[axis] is None else [1.0, scales[axis]][not two :],
            "linear" if mode == "trilinear" else mode,
            align_corners,
            recompute_scale_factor,
            antialias,
        )
        matrices.append(resized.flatten(1))
    return _times(input, matrices)
