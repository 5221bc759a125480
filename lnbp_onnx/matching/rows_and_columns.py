# SPDX-License-Identifier: Apache-2.0
"""How the tensors of a layer-norm gradient are indexed: by rows and columns, whatever their shapes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lnbp_onnx.matching.algebra import Symbol
from lnbp_onnx.matching.tensors import Axis, SplitError, static_length
from lnbp_onnx.node import Dim


@dataclass(frozen=True, slots=True)
class RowsAndColumns:
    """How the rows and columns of a candidate are indexed.

    Attributes:
        dims: The shape of x.
        labels: The symbols of its axes.
        axis: The first normalised one.
        lead: The symbols of the rows.
        norm: The symbols of the columns.
    """

    dims: tuple[Dim, ...]
    labels: tuple[Axis, ...]
    axis: int
    lead: Axis = field(init=False)
    norm: Axis = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lead", tuple(symbol for axis in self.labels[: self.axis] for symbol in axis))
        object.__setattr__(self, "norm", tuple(symbol for axis in self.labels[self.axis :] for symbol in axis))

    def matrix_axes(self, shape: Sequence[Dim], order: Sequence[int] | None) -> tuple[Axis, ...] | None:
        """Return the axes of a tensor shaped as x, or as x with its axes in another order."""
        order = range(len(self.dims)) if order is None else order
        if len(order) != len(self.dims):
            return None
        if _same_dims(shape, [self.dims[index] for index in order]):
            return tuple(self.labels[index] for index in order)
        return None

    def is_shaped_as_x(self, shape: Sequence[Dim] | None) -> bool:
        """Return whether a shape is known to be x's."""
        return shape is not None and _same_dims(shape, self.dims)

    def column_axes(self, shape: Sequence[Dim]) -> tuple[Axis, ...] | None:
        """Return the axes of a statistic: the rows' shape, the same with kept axes, or flat."""
        lead = self.dims[: self.axis]
        if _same_dims(shape, lead):
            return self.labels[: self.axis]
        kept = len(self.dims) - self.axis
        if _same_dims(shape, (*lead, *([1] * kept))):
            return (*self.labels[: self.axis], *([()] * kept))
        return (self.lead,) if _is_flat(shape, self.lead) else None

    def row_axes(self, shape: Sequence[Dim]) -> tuple[Axis, ...] | None:
        """Return the axes of a parameter that is broadcast to the normalised axes, or flat."""
        norm, labels = self.dims[self.axis :], self.labels[self.axis :]
        axes: list[Axis] = []
        while len(shape) > len(norm) and shape[0] == 1:
            axes.append(())
            shape = shape[1:]
        skipped = len(norm) - len(shape)
        if skipped >= 0:
            for dim, wanted, axis in zip(shape, norm[skipped:], labels[skipped:], strict=True):
                if dim == 1:
                    axes.append(())
                elif dim is not None and dim == wanted:
                    axes.append(axis)
                else:
                    break
            else:
                return tuple(axes)
        return (self.norm,) if _is_flat(shape, self.norm) else None


def split_axis(axis: Axis, split: SplitError) -> Axis:
    """Return an axis with a symbol split in two where it has it."""
    symbol, parts = split.symbol, []
    for each in axis:
        if each == symbol and each.length is not None:
            parts += [Symbol(f"{each.name}.0", each.length // split.inner), Symbol(f"{each.name}.1", split.inner)]
        else:
            parts.append(each)
    return tuple(parts)


def _is_flat(shape: Sequence[Dim], axis: Axis) -> bool:
    return len(shape) == 1 and shape[0] is not None and shape[0] == static_length(axis)


def _same_dims(shape: Sequence[Dim], wanted: Sequence[Dim]) -> bool:
    return len(shape) == len(wanted) and all(a is not None and a == b for a, b in zip(shape, wanted, strict=True))
