# SPDX-License-Identifier: Apache-2.0
"""What ONNX's operators make of tensors whose elements are polynomials."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

import onnx_ir as ir

from lnbp_onnx.graphs.writer import FLOATS
from lnbp_onnx.matching.algebra import (
    NotExpressibleError,
    Polynomial,
    Rational,
    add,
    constant_value,
    divide,
    multiply,
    power,
    sum_over,
)
from lnbp_onnx.matching.literals import read_tensor
from lnbp_onnx.matching.tensors import (
    Axis,
    Lengths,
    Tensor,
    axis_of,
    broadcast,
    lengths_product,
    reduce,
    reshape,
    unify,
)
from lnbp_onnx.node import TensorInfo

Known: TypeAlias = Tensor | Lengths
"""What may be known of a value."""

Infos: TypeAlias = Mapping[ir.Value, TensorInfo]
"""The element types and shapes of a graph's values."""


class Call:
    """A node with what is known of its operands; what it is asked for and has not, it has no form for."""

    def __init__(
        self, node: ir.Node, arguments: Sequence[Known | None], infos: Infos, names: Mapping[str, Axis]
    ) -> None:
        self.node = node
        self.arguments = arguments
        self.infos = infos
        self.names = names

    def tensor(self, index: int) -> Tensor:
        """Return an operand that has to be a tensor of polynomials."""
        argument = self.arguments[index] if index < len(self.arguments) else None
        if not isinstance(argument, Tensor):
            raise NotExpressibleError
        return argument

    def lengths(self, index: int) -> tuple[int | Axis, ...]:
        """Return the values of an operand that has to be a list of lengths."""
        argument = self.arguments[index] if index < len(self.arguments) else None
        if not isinstance(argument, Lengths):
            raise NotExpressibleError
        return argument.values

    def integers(self, index: int) -> list[int]:
        """Return the values of an operand that has to be a list of known integers."""
        values = [value for value in self.lengths(index) if isinstance(value, int)]
        if len(values) != len(self.lengths(index)):
            raise NotExpressibleError
        return values

    def integer(self, index: int) -> int:
        """Return the value of an operand that has to be one known integer."""
        values = self.integers(index)
        if len(values) != 1:
            raise NotExpressibleError
        return values[0]

    def has(self, index: int) -> bool:
        """Return whether the node has an operand."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def attribute(self, name: str, default: int) -> int:
        """Return an integer attribute; its value is not known where it is one of the function that the node is in."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        if attribute.is_ref():
            raise NotExpressibleError
        return attribute.as_int()

    def axes(self, index: int = 1) -> list[int] | None:
        """Return the axes of an operator that has them as an attribute or, newer, as an input."""
        attribute = self.node.attributes.get("axes")
        if attribute is not None:
            if attribute.is_ref():
                raise NotExpressibleError
            return list(attribute.as_ints())
        return self.integers(index) if self.has(index) else None


# The operators


def _same(call: Call) -> Known:
    argument = call.arguments[0]
    if argument is None:
        raise NotExpressibleError
    return argument


def _cast(call: Call) -> Known:
    target = ir.DataType(call.attribute("to", 0))
    argument = call.arguments[0]
    if isinstance(argument, Lengths):
        if target in (ir.DataType.INT64, ir.DataType.INT32):
            return argument
        if target not in FLOATS or len(argument.values) != 1:
            raise NotExpressibleError
        return Tensor(lengths_product(argument.values), () if argument.is_scalar else ((),))
    tensor = call.tensor(0)
    if target in FLOATS:
        return tensor
    if not target.is_integer():
        raise NotExpressibleError
    return Tensor(tensor.element, tensor.axes, is_exact=False)


def _require_real(call: Call) -> None:
    """Refuse integer arithmetic, which rounds and wraps."""
    for value in (*call.node.outputs, *call.node.inputs):
        element_type = None if value is None else call.infos[value].element_type
        if element_type is not None and ir.DataType(element_type).is_integer():
            raise NotExpressibleError


def _combine(operation: Callable[[Polynomial, Polynomial], Polynomial]) -> Callable[[Call], Known]:
    def meaning(call: Call) -> Known:
        _require_real(call)
        a, b = call.tensor(0), call.tensor(1)
        return Tensor(operation(a.element, b.element), broadcast(a.axes, b.axes))

    return meaning


def _subtract(call: Call) -> Known:
    _require_real(call)
    a, b = call.tensor(0), call.tensor(1)
    return Tensor(add(a.element, b.element, -1), broadcast(a.axes, b.axes))


def _sum(call: Call) -> Known:
    _require_real(call)
    total = call.tensor(0)
    for index in range(1, len(call.arguments)):
        other = call.tensor(index)
        total = Tensor(add(total.element, other.element), broadcast(total.axes, other.axes))
    return total


def _negate(call: Call) -> Known:
    _require_real(call)
    return Tensor(add({}, call.tensor(0).element, -1), call.tensor(0).axes)


def _to_power(exponent: Rational) -> Callable[[Call], Known]:
    def meaning(call: Call) -> Known:
        _require_real(call)
        return Tensor(power(call.tensor(0).element, exponent), call.tensor(0).axes)

    return meaning


def _pow(call: Call) -> Known:
    _require_real_data(call)
    exponent = call.arguments[1]
    if isinstance(exponent, Lengths):
        value: Rational | None = call.integer(1)
        axes: tuple[Axis, ...] = () if exponent.is_scalar else ((),)
    else:
        value, axes = constant_value(call.tensor(1).element), call.tensor(1).axes
    if value is None:
        raise NotExpressibleError
    base = call.tensor(0)
    return Tensor(power(base.element, value), broadcast(base.axes, axes))


def _reduction(*, mean: bool = False, square: bool = False) -> Callable[[Call], Known]:
    def meaning(call: Call) -> Known:
        _require_real_data(call)
        tensor = call.tensor(0)
        axes = call.axes()
        if not axes:
            if call.attribute("noop_with_empty_axes", 0):
                raise NotExpressibleError
            axes = list(range(len(tensor.axes)))
        if square:
            tensor = Tensor(multiply(tensor.element, tensor.element), tensor.axes)
        return reduce(tensor, axes, bool(call.attribute("keepdims", 1)), mean)

    return meaning


def _require_real_data(call: Call) -> None:
    value = call.node.inputs[0]
    element_type = None if value is None else call.infos[value].element_type
    if element_type is not None and ir.DataType(element_type).is_integer():
        raise NotExpressibleError


def _matmul(call: Call) -> Known:
    _require_real(call)
    a, b = call.tensor(0), call.tensor(1)
    if not a.axes or len(b.axes) not in (1, 2):
        raise NotExpressibleError
    contracted = unify(a.axes[-1], b.axes[0])
    kept_a, kept_b = a.axes[:-1], b.axes[1:]
    result = Tensor({}, (*kept_a, *kept_b, contracted))
    element = multiply(a.element, b.element)
    named = [symbol for symbol in contracted if symbol.name]
    element = sum_over(element, named)
    element = multiply(element, lengths_product([tuple(symbol for symbol in contracted if not symbol.name)]))
    return Tensor(element, result.axes[:-1])


def _transpose(call: Call) -> Known:
    tensor = call.tensor(0)
    attribute = call.node.attributes.get("perm")
    if attribute is not None and attribute.is_ref():
        raise NotExpressibleError
    order = list(attribute.as_ints()) if attribute is not None else list(reversed(range(len(tensor.axes))))
    return Tensor(tensor.element, tuple(tensor.axes[index] for index in order), tensor.is_exact)


def _reshape(call: Call) -> Known:
    argument = call.arguments[0]
    target: list[int | Axis] = list(call.lengths(1))
    if isinstance(argument, Lengths):
        if len(argument.values) != 1 or len(target) > 1 or any(dim not in (1, -1) for dim in target):
            raise NotExpressibleError
        return Lengths(argument.values, is_scalar=not target)
    tensor = call.tensor(0)
    if not call.attribute("allowzero", 0):
        for index, dim in enumerate(target):
            if dim == 0:
                if index >= len(tensor.axes):
                    raise NotExpressibleError
                target[index] = tensor.axes[index]
    return reshape(tensor, target)


def _flatten(call: Call) -> Known:
    tensor = call.tensor(0)
    rank = len(tensor.axes)
    axis = call.attribute("axis", 1)
    axis = axis + rank if axis < 0 else axis
    groups = (tensor.axes[:axis], tensor.axes[axis:])
    flat = tuple(tuple(symbol for axis in group for symbol in axis) for group in groups)
    return Tensor(tensor.element, flat, tensor.is_exact)


def _squeeze(call: Call) -> Known:
    argument = call.arguments[0]
    if isinstance(argument, Lengths):
        if len(argument.values) != 1:
            raise NotExpressibleError
        return Lengths(argument.values, is_scalar=True)
    tensor, axes = call.tensor(0), call.axes()
    rank = len(tensor.axes)
    if axes is None:
        if any(symbol.length is None for axis in tensor.axes for symbol in axis):
            raise NotExpressibleError
        axes = [index for index, axis in enumerate(tensor.axes) if not axis]
    squeezed = {axis % rank for axis in axes} if rank else set()
    if any(tensor.axes[index] for index in squeezed):
        raise NotExpressibleError
    kept = tuple(axis for index, axis in enumerate(tensor.axes) if index not in squeezed)
    return Tensor(tensor.element, kept, tensor.is_exact)


def _unsqueeze(call: Call) -> Known:
    argument, axes = call.arguments[0], call.axes() or []
    if isinstance(argument, Lengths):
        if not argument.is_scalar or len(axes) != 1:
            raise NotExpressibleError
        return Lengths(argument.values)
    tensor = call.tensor(0)
    rank = len(tensor.axes) + len(axes)
    added = {axis % rank for axis in axes}
    rest = iter(tensor.axes)
    return Tensor(tensor.element, tuple(() if i in added else next(rest) for i in range(rank)), tensor.is_exact)


def _expand(call: Call) -> Known:
    tensor = call.tensor(0)
    target = [axis_of(dim) if isinstance(dim, int) else dim for dim in call.lengths(1)]
    return Tensor(tensor.element, broadcast(tensor.axes, target), tensor.is_exact)


def _shape(call: Call) -> Known:
    value, argument = call.node.inputs[0], call.arguments[0]
    lengths: list[int | Axis | None]
    if isinstance(argument, Tensor):
        lengths = [axis if axis else 1 for axis in argument.axes]
    else:
        shape = None if value is None else call.infos[value].shape
        if shape is None:
            raise NotExpressibleError
        lengths = [call.names.get(dim) if isinstance(dim, str) else dim for dim in shape]
    part = lengths[call.attribute("start", 0) : call.attribute("end", len(lengths))]
    known = tuple(each for each in part if each is not None)
    if len(known) < len(part):
        raise NotExpressibleError
    return Lengths(known)


def _size(call: Call) -> Known:
    axes = call.tensor(0).axes
    return Lengths((tuple(symbol for axis in axes for symbol in axis) or 1,), is_scalar=True)


def _gather(call: Call) -> Known:
    values, indices = call.lengths(0), call.arguments[1]
    if not isinstance(indices, Lengths) or call.attribute("axis", 0) != 0:
        raise NotExpressibleError
    picked = call.integers(1)
    if not all(-len(values) <= index < len(values) for index in picked):
        raise NotExpressibleError
    return Lengths(tuple(values[index] for index in picked), is_scalar=indices.is_scalar)


def _slice(call: Call) -> Known:
    if call.node.attributes or (call.has(3) and call.integers(3) != [0]):
        raise NotExpressibleError
    step = call.integer(4) if call.has(4) else 1
    if not step:
        raise NotExpressibleError
    return Lengths(call.lengths(0)[call.integer(1) : call.integer(2) : step])


def _concat(call: Call) -> Known:
    values: list[int | Axis] = []
    for index, argument in enumerate(call.arguments):
        if isinstance(argument, Lengths) and argument.is_scalar:
            raise NotExpressibleError
        values += call.lengths(index)
    return Lengths(tuple(values))


def _constant_of_shape(call: Call) -> Known:
    attribute = call.node.attributes.get("value")
    if attribute is not None and attribute.is_ref():
        raise NotExpressibleError
    filling = read_tensor(attribute.as_tensor()) if attribute is not None else Tensor({}, ((),))
    if not isinstance(filling, Tensor):
        raise NotExpressibleError
    axes = tuple(axis_of(dim) if isinstance(dim, int) else dim for dim in call.lengths(0))
    return Tensor(filling.element, axes)


SEMANTICS: dict[str, Callable[[Call], Known]] = {
    "Identity": _same,
    "Cast": _cast,
    "Add": _combine(add),
    "Sub": _subtract,
    "Mul": _combine(multiply),
    "Div": _combine(divide),
    "Sum": _sum,
    "Neg": _negate,
    "Reciprocal": _to_power(-1),
    "Sqrt": _to_power(Fraction(1, 2)),
    "Pow": _pow,
    "ReduceSum": _reduction(),
    "ReduceMean": _reduction(mean=True),
    "ReduceSumSquare": _reduction(square=True),
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
}
"""What each operator computes of its operands; an entry raises NotExpressibleError where that has no form here."""
