# SPDX-License-Identifier: Apache-2.0
"""Pooling, padding, resizing and more with gradients in operators that torch's exporter knows.

Averages, padding and resizing are linear and work on an axis at a time: what they make of an axis is a matrix, and its
gradient is a product with it. A maximum has one source, to which its gradient is added, as has what is sampled.
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
        aten.replication_pad1d_backward.default: partial(_replication_pad_backward, 1),
        aten.replication_pad2d_backward.default: partial(_replication_pad_backward, 2),
        aten.replication_pad3d_backward.default: partial(_replication_pad_backward, 3),
        aten.diagonal_backward.default: _diagonal_backward,
        aten.slice_backward.default: _slice_backward,
        aten.put.default: _put,
        aten.scatter_reduce.two: _scatter_reduce,
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


def _replication_pad_backward(axes: int, gradient: Any, x: Any, padding: Sequence[Any]) -> Any:
    """Add up what was taken of each element; `padding` has two numbers for each axis, the last axis first."""
    matrices = []
    for axis in range(-axes, 0):
        length = x.shape[axis]
        taken = torch.arange(gradient.shape[axis], device=x.device) - padding[-2 * axis - 2]
        at = torch.arange(length, device=x.device)
        matrices.append((taken.clamp(0, length - 1)[:, None] == at).to(x.dtype))
    return _times(gradient, matrices)


def _slice_backward(gradient: Any, input_sizes: Sequence[Any], dim: int, start: Any, end: Any, step: Any) -> Any:
    """Put zeros around the gradient of what is sure to be there, where torch writes it into zeros at indices."""
    length, taken = input_sizes[dim], gradient.shape[dim]
    before = start + length if isinstance(start, int) and start < 0 else start
    if step != 1 or not isinstance(before, int) or not (before == 0 or (isinstance(taken, int) and taken > 0)):
        return torch.slice_scatter(gradient.new_zeros(input_sizes), gradient, dim, start, end, step)
    before = max(before, 0)
    axes_after = len(input_sizes) - 1 - dim % len(input_sizes)
    return functional.pad(gradient, [*[0, 0] * axes_after, before, length - before - taken])


def _put(x: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    if not accumulate:
        return NotImplemented
    places = torch.where(index < 0, index + x.numel(), index)
    return x.flatten().scatter_add(0, places.flatten(), source.flatten()).reshape(x.shape)


def _scatter_reduce(x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    """Divide sums by counts; the exporter's translation of a mean is that of the last value."""
    if reduce != "mean" or not x.is_floating_point():
        return NotImplemented
    counts = torch.ones_like(x) if include_self else torch.zeros_like(x)
    counts = counts.scatter_add(dim, index, torch.ones_like(source))
    sums = x.scatter_reduce(dim, index, source, "sum", include_self=include_self)
    return sums / counts.clamp(min=1)


def _diagonal_backward(gradient: Any, input_sizes: Sequence[Any], offset: int, dim1: int, dim2: int) -> Any:
    rows, columns = input_sizes[dim1], input_sizes[dim2]
    row, column = (torch.arange(size, device=gradient.device) for size in (rows, columns))
    missing = (columns if offset < 0 else rows) - gradient.shape[-1]
    lines = functional.pad(gradient, (0, missing)).unsqueeze(-2 if offset < 0 else -1)
    result = torch.where(column == row[:, None] + offset, lines, torch.zeros_like(lines))
    return result.movedim((-2, -1), (dim1, dim2))


class WithExportableGradients(TorchFunctionMode):  # type: ignore[misc]  # torch has no types where it is not installed
    """Functions whose gradients torch gives an exporter in a form that is slow, or that it does not know.

    Resizing becomes sums over indices, adaptive averages ``as_strided`` where channels are last; the others have
    operators of their own.
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
            functional.grid_sample: _grid_sample,
            functional.affine_grid: _affine_grid,
            torch._weight_norm: _weight_norm,
            torch.cdist: _cdist,
            **dict.fromkeys((torch.det, torch.linalg.det, torch.Tensor.det), _of_matrix(_determinant)),
            **dict.fromkeys((torch.inverse, torch.linalg.inv, torch.Tensor.inverse), _of_matrix(_inverse)),
            torch.linalg.solve: _solve,
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


def _cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> Any:
    """Take norms of differences, unless torch is sure to take a product, which is for many rows."""
    if p == 2 and all(isinstance(each.shape[-2], int) and each.shape[-2] > 25 for each in (x1, x2)):
        return torch.cdist(x1, x2, p, compute_mode)
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, dim=-1)


def _cofactors(matrix: Any) -> Any:
    """Return what the inverse is a transposed multiple of, for 2 or 3 rows."""
    rows = matrix.unbind(-2)
    if len(rows) == 2:
        signs = torch.tensor([1.0, -1.0], dtype=matrix.dtype, device=matrix.device)
        return torch.stack([rows[1].flip(-1) * signs, rows[0].flip(-1) * -signs], -2)
    return torch.stack([torch.linalg.cross(rows[index - 2], rows[index - 1]) for index in range(3)], -2)


def _is_small(matrix: Any) -> bool:
    return matrix.dim() >= 2 and matrix.shape[-2] == matrix.shape[-1] and matrix.shape[-1] in (2, 3)


def _of_matrix(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """Take the matrix as torch's functions do, of which some call it ``A`` and others ``input``."""
    return lambda *matrix, **by_name: function(*matrix, *by_name.values())


def _determinant(matrix: Any) -> Any:
    if not _is_small(matrix) or not matrix.requires_grad:
        return torch.linalg.det(matrix)
    return (matrix[..., 0, :] * _cofactors(matrix)[..., 0, :]).sum(-1)


def _inverse(matrix: Any) -> Any:
    if not _is_small(matrix):
        return torch.linalg.inv(matrix)
    cofactors = _cofactors(matrix)
    return cofactors.mT / (matrix[..., 0, :] * cofactors[..., 0, :]).sum(-1)[..., None, None]


def _solve(A: Any, B: Any, *, left: bool = True) -> Any:  # noqa: N803 - as torch calls them
    if not _is_small(A):
        return torch.linalg.solve(A, B, left=left)
    if B.dim() == 1 or B.shape == A.shape[:-1]:  # vectors
        return (_inverse(A) @ B[..., None])[..., 0] if left else (B[..., None, :] @ _inverse(A))[..., 0, :]
    return _inverse(A) @ B if left else B @ _inverse(A)


def _grid_sample(
    input: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Any:
    """Gather corners, or the nearest elements, whose places are numbers in the rows of the last two axes."""
    known = input.dim() == 4 and mode in ("bilinear", "nearest") and padding_mode in ("zeros", "border", "reflection")
    if not known or not (input.requires_grad or grid.requires_grad):
        return functional.grid_sample(input, grid, mode, padding_mode, align_corners)
    height, width = input.shape[2:]
    columns, rows = (
        _places(at, size, padding_mode, bool(align_corners))
        for at, size in zip(grid.unbind(-1), (width, height), strict=True)
    )
    elements, total = input.flatten(2), 0
    for row, share_of_row in _neighbours(rows, mode):
        for column, share_of_column in _neighbours(columns, mode):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            # As integers: the place of an element is more than a floating type counts exactly.
            row_at, column_at = (torch.where(inside, at, 0).long() for at in (row, column))
            places = (row_at * width + column_at).flatten(1)
            found = elements.gather(2, places[:, None].expand(-1, input.shape[1], -1)).unflatten(2, row.shape[1:])
            total = total + found * torch.where(inside, share_of_row * share_of_column, 0)[:, None]
    return total


def _affine_grid(theta: Any, size: Sequence[Any], align_corners: bool | None = None) -> Any:
    """Map the places of an image's elements, of which torch makes tensors that it writes into."""
    lines = []
    for length in size[2:]:
        at = torch.arange(length, dtype=theta.dtype, device=theta.device)
        lines.append(at * 2 / (length - 1) - 1 if align_corners and length > 1 else (at * 2 + 1) / length - 1)
    axes = torch.meshgrid(*lines, indexing="ij")
    places = torch.stack([*reversed(axes), torch.ones_like(axes[0])], -1)
    return (places.flatten(0, -2) @ theta.mT).unflatten(1, places.shape[:-1])


def _places(at: Any, size: Any, padding_mode: str, align_corners: bool) -> Any:
    """Return where in an axis is what lies between -1 and 1."""
    at = (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2
    if padding_mode == "zeros":
        return at
    if padding_mode == "reflection" and not (size == 1 and align_corners):
        low, span = (0.0, size - 1) if align_corners else (-0.5, size)
        at = (at - low).abs()
        turns = (at / span).floor()
        rest = at - turns * span
        at = torch.where(turns % 2 == 0, rest, span - rest) + low
    # At the border, as beyond it, torch's gradient is 0.
    return torch.where((at > 0) & (at < size - 1), at, at.detach().clamp(0, size - 1))


def _neighbours(at: Any, mode: str) -> Sequence[tuple[Any, Any]]:
    """Return the elements along an axis that something is sampled from, and the share of each."""
    if mode == "nearest":
        return [(at.round().detach(), torch.ones_like(at))]
    first = at.floor().detach()
    return [(first, first + 1 - at), (first + 1, at - first)]


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
