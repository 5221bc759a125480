# SPDX-License-Identifier: Apache-2.0
"""Choosing which tensors of a graph may be a gradient's operands: by shape, and by what they are combined with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir

from lnbp_onnx.matching.algebra import constant_value
from lnbp_onnx.matching.evaluation import Evaluation
from lnbp_onnx.matching.known_graph import KnownGraph
from lnbp_onnx.matching.operands import Operands, Statistic
from lnbp_onnx.matching.rows_and_columns import RowsAndColumns
from lnbp_onnx.matching.tensors import Axis, Tensor
from lnbp_onnx.matching.views import MOST_VIEWS, VIEWS, origins, producer, roots
from lnbp_onnx.node import Dim, format_shape, may_match

_COMBINING = frozenset({"Mul", "Div", "MatMul"})


class Choices:
    """What may be an operand, in one graph with rows and columns indexed in one way."""

    def __init__(self, graph: KnownGraph, layout: RowsAndColumns) -> None:
        self._layout = layout
        self._constants = graph.constants
        self._infos = graph.infos
        self._numbering = graph.numbering

    def given_mean(self, column: ir.Value) -> ir.Value | None:
        """Return what has a mean's shape behind the column that is subtracted."""
        return next((root for root in roots(column) if self.is_column(root)), None)

    def extensions(self, evaluation: Evaluation, operands: Operands) -> Iterator[Operands]:
        """Yield the operands with one more: something that what is known already is combined with."""
        if operands.mean is not None and operands.statistic is None:
            for operand in self._operands(evaluation.nodes(), evaluation):
                for statistic in self._statistics(operand):
                    yield replace(operands, statistic=statistic)
        if operands.dy is None:
            for operand in self._operands(evaluation.nodes(), evaluation):
                yield from self._with_dy(operand, operands)
            # What is filled with one number may have its shape from x, and so be known already.
            for number, tensor in evaluation.tensors():
                if constant_value(tensor.element):
                    for value in self._numbering.values(number):
                        yield from (each for each in self._matrices(value, None, operands) if each.dy_is_number)
        elif operands.gamma is None:
            yield from self.with_gamma(evaluation, operands)

    def _with_dy(self, operand: ir.Value, operands: Operands) -> Iterator[Operands]:
        """Yield the operands with dy, and with gamma where the operand is a product."""
        for value, order in origins(operand, None):
            product = producer(value, {"Mul"})
            if product is None:
                continue
            for index in (0, 1):
                scales = [root for root in roots(product.inputs[1 - index]) if self.is_scale(root)]
                for more in self._matrices(product.inputs[index], order, operands):
                    for gamma in scales:
                        yield replace(more, gamma=gamma)
            break
        yield from self._matrices(operand, None, operands)

    def with_gamma(self, evaluation: Evaluation, operands: Operands) -> Iterator[Operands]:
        """Yield the operands with gamma: what known values are multiplied with, or what the forward operator has."""
        forward = None if operands.mean is None else producer(operands.mean, {"LayerNormalization"})
        for gamma in self.scales(evaluation):
            yield replace(operands, gamma=gamma)
        scale = None if forward is None else forward.inputs[1]
        # The forward operator may be that of another tensor, with other columns.
        if scale is None or not self._fits(scale, self._layout.row_axes):
            return
        if self.is_scale(scale):
            yield replace(operands, gamma=scale)
        if isinstance(self._constants.get(scale), Tensor):
            yield replace(operands, gamma=scale, gamma_is_number=True)

    def scales(self, evaluation: Evaluation) -> Iterator[ir.Value]:
        """Yield what may be gamma of what known values are multiplied with."""
        seen: set[ir.Value] = set()
        for operand in self._operands(evaluation.nodes(newest_first=True), evaluation):
            for root in roots(operand):
                if root not in seen and self.is_scale(root):
                    seen.add(root)
                    yield root

    def doubts(self, evaluation: Evaluation, x: ir.Value) -> Iterator[str]:
        """Yield of what might be dy by all that is known that its shape is not known to be x's."""
        dims, element_type = self._layout.dims, self._infos[x].element_type
        for operand in self._operands(evaluation.nodes(), evaluation):
            for value in roots(operand):
                info = self._infos[value]
                shape = info.shape or ()
                if info.element_type == element_type and shape and self._layout.is_shaped_as_x(shape[:-1]):
                    yield (
                        f"{value.name!r} has shape {format_shape(shape)}, that of {x.name!r} and an axis more, along "
                        "which there may be several gradients (give it the length 1 in the model)"
                    )
                if info.element_type != element_type or not may_match(shape, dims):
                    continue
                # What may be broadcast to x is no gradient.
                if self._layout.matrix_axes(shape, None) is None and not any(
                    a != b and a == 1 for a, b in zip(shape, dims, strict=True)
                ):
                    yield (
                        f"{value.name!r} has shape {format_shape(shape)}, which is not known to be that of {x.name!r}, "
                        f"{format_shape(dims)} (name equal lengths alike in the model)"
                    )

    def is_scale(self, value: ir.Value) -> bool:
        """Return whether a value may be gamma; a single number is a constant factor."""
        shape = self._infos[value].shape
        is_number = shape is not None and all(dim == 1 for dim in shape) and self._constants.get(value) is not None
        return self._fits(value, self._layout.row_axes) and not is_number

    def _operands(self, nodes: Iterable[ir.Node], evaluation: Evaluation) -> Iterator[ir.Value]:
        """Yield what known values are multiplied with or divided by; what is constant comes last."""
        seen: set[int] = set()
        constants = []
        for node in nodes:
            if node.op_type not in _COMBINING or node.domain != "":
                continue
            for operand in node.inputs:
                if operand is None or (number := self._numbering.number(operand)) in evaluation.known or number in seen:
                    continue
                seen.add(number)
                if self._constants.get(operand) is None:
                    yield operand
                else:
                    constants.append(operand)
        yield from constants

    def _statistics(self, operand: ir.Value) -> Iterator[Statistic]:
        """Yield what the statistic behind a factor of the columns may be."""
        value = operand
        chain = [value]
        for _ in range(2 * MOST_VIEWS):
            node = producer(value, VIEWS | {"Sqrt", "Reciprocal", "Div", "Mul", "Pow", "Neg"})
            if node is None:
                break
            others = [each for each in node.inputs if each is not None and self._constants.get(each) is None]
            if len(others) != 1:
                break
            [value] = others
            chain.append(value)
            if node.op_type in ("Sqrt", "Pow"):
                yield from self._variances(value)
        for each in reversed(chain):
            if self.is_column(each) and _may_be_positive(each):
                yield Statistic(each, "rstd")
                yield Statistic(each, "std")

    def _variances(self, value: ir.Value) -> Iterator[Statistic]:
        """Yield the variances in what a root is taken of: the variance itself, or with epsilon added."""
        node = producer(value, {"Add", "Sum"})
        for each in [*([] if node is None else node.inputs), value]:
            if each is None or self._constants.get(each) is not None:
                continue
            root = next((root for root in roots(each) if self.is_column(root)), None)
            if root is not None:
                yield Statistic(root, "variance")

    def is_column(self, value: ir.Value) -> bool:
        """Return whether a value has a shape that the operator takes for a statistic."""
        return self._fits(value, self._layout.column_axes)

    def _fits(self, value: ir.Value, axes_of: Callable[[Sequence[Dim]], tuple[Axis, ...] | None]) -> bool:
        shape = self._infos[value].shape
        return shape is not None and axes_of(shape) is not None

    def _matrices(self, value: ir.Value | None, order: tuple[int, ...] | None, operands: Operands) -> list[Operands]:
        """Return the operands with what may be dy behind a value; what has its axes in x's order comes first."""
        found: list[Operands] = []
        x = operands.x
        for origin, axes in origins(value, order):
            info = self._infos[origin]
            if origin is x or info.element_type != self._infos[x].element_type or info.shape is None:
                continue
            if self._layout.matrix_axes(info.shape, axes) is not None:
                found.insert(0, replace(operands, dy=origin, dy_axes=axes))
                if isinstance(number := self._constants.get(origin), Tensor) and constant_value(number.element):
                    found.insert(0, replace(operands, dy=origin, dy_axes=axes, dy_is_number=True))
            elif axes is None and info.shape[-1:] == (1,) and self._layout.is_shaped_as_x(info.shape[:-1]):
                found.insert(0, replace(operands, dy=origin, dy_has_seeds=True))
        return sorted(found, key=lambda each: (each.dy_axes is not None, each.dy_has_seeds))


def _may_be_positive(value: ir.Value) -> bool:
    """Return whether a statistic is positive as far as its producers tell; one that is handed in is."""
    for _ in range(2 * MOST_VIEWS):
        node = value.producer()
        if node is not None and node.domain != "":
            return False
        if node is None or node.op_type in ("Sqrt", "Exp"):
            return True
        if node.op_type == "LayerNormalization":
            return value.index() == 2  # InvStdDev; Mean is as good a column
        if node.op_type not in VIEWS | {"Reciprocal"} or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False
