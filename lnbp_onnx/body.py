# SPDX-License-Identifier: Apache-2.0
"""The operator in standard ONNX operators: one builder, from a parsed node to the nodes that compute it.

The form is flat: input and gradient are read as [M, N] (``Flatten``), and every elementwise operator is a pass over
memory, so the terms are arranged for few of them. With d = x - mean, q = dy * d, rstd = 1 / sqrt(variance + epsilon),

    gamma_delta = rstd' q                           a MatMul over the rows, as is beta_delta = 1' dy
    mean(g * xhat) = rstd * q (gamma / N)           a MatMul over the columns, which spares the product g * xhat
    input_delta = rstd * (g - (d * c2 + mean(g)))   with c2 = rstd * rstd * q (gamma / N)

d stays centred: factoring the mean out of q would save a pass and lose three digits at a mean of 1e4.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import TensorProto

from lnbp_onnx import spec
from lnbp_onnx.body_shapes import BodyShapes, Length, Operands
from lnbp_onnx.errors import InvalidModelError, InvalidNodeError
from lnbp_onnx.graphs.writer import Writer
from lnbp_onnx.node import BackpropNode, Dim, static_size

OLDEST_OPSET = 11
"""The first default-domain operator set that the body can be written in."""

_SHORTEST_IN_BLOCKS = 512
_LONGEST_BLOCK = 4096
# NumPy's limit. A broadcast gamma takes operators for each axis.
_MOST_AXES = 64


@dataclass(frozen=True, slots=True)
class Body:
    """The nodes in topological order, and the values of the three outputs, None where one is not wanted."""

    nodes: tuple[ir.Node, ...]
    outputs: tuple[ir.Value | None, ...]


def is_whole(node: BackpropNode, name: str) -> bool:
    """Return whether gamma or beta is known to have one element for each column."""
    info = node.input(name)
    return (
        info is not None
        and info.shape is not None
        and node.norm_size is not None
        and static_size(info.shape) == node.norm_size
    )


def build_body(
    node: BackpropNode,
    inputs: Sequence[ir.Value | None],
    opset: int,
    unique_name: Callable[[str], str],
    *,
    whole: Collection[str] = (),
    epsilon_attribute: str = "",
) -> Body:
    """Write a node in standard operators.

    Args:
        node: The parsed node.
        inputs: The values of its six inputs; those it does not use are not looked at.
        opset: The version of the default domain to write in.
        unique_name: Turns a step's name into one that the graph does not have yet.
        whole: Which of gamma and beta have one element for each column, where the shapes in `node` do not tell.
        epsilon_attribute: The attribute that holds epsilon, of the function that is written; from opset 12 on. Without
            it the node's own value is written.

    Raises:
        InvalidNodeError: Where the element type is not known, or needs a newer opset, or there are over 64 axes.
        InvalidModelError: Where the opset is older than 11.
    """
    _check(node, opset)
    infos = {
        value: info for value, info in zip(inputs, node.inputs, strict=False) if value is not None and info is not None
    }
    writer = Writer(node.description, opset, unique_name, infos, error=InvalidNodeError)
    writer.steps.update(
        (value, name) for name, value in zip(spec.INPUT_NAMES, inputs, strict=False) if value is not None
    )
    return _BodyBuilder(Operands(node, inputs, writer), writer, whole, epsilon_attribute).build()


def _check(node: BackpropNode, opset: int) -> None:
    if opset < OLDEST_OPSET:
        raise InvalidModelError(
            f"{node.description}: the default-domain opset is {opset}; standard operators for it can be written "
            f"from {OLDEST_OPSET} on (convert the model with onnx.version_converter)."
        )
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise InvalidModelError(
            f"{node.description}: the default-domain opset is {opset}; the installed onnx package knows opsets up "
            f"to {newest} (install a newer onnx)."
        )
    if node.element_type is None:
        raise InvalidNodeError(
            f"{node.description}: the element type of input_forward is not known; it must be, for it says what "
            "type to compute in (add its value_info to the model)."
        )
    if node.shape is not None and len(node.shape) > _MOST_AXES:
        raise InvalidNodeError(
            f"{node.description}: input_forward has {len(node.shape)} axes; standard operators for it can be "
            f"written for up to {_MOST_AXES} (reshape it to fewer)."
        )


class _BodyBuilder:
    def __init__(self, operands: Operands, writer: Writer, whole: Collection[str], epsilon_attribute: str) -> None:
        node = operands.node
        self._node = node
        self._operands = operands
        self._writer = writer
        self._whole = {name for name in ("gamma", "beta") if name in whole or is_whole(node, name)}
        self._shapes = BodyShapes(operands, writer, "gamma" in self._whole)
        self._epsilon_attribute = epsilon_attribute
        self._compute = operands.compute_type
        self._num_rows = node.num_rows
        self._norm_size = node.norm_size

    def build(self) -> Body:
        is_empty = 0 in (self._num_rows, self._norm_size)
        outputs = self._empty_outputs() if is_empty else self._gradients()
        return Body(tuple(self._writer.nodes), outputs)

    # The arithmetic

    def _gradients(self) -> tuple[ir.Value | None, ...]:
        node = self._node
        x = self._matrix("input_forward")
        dy = self._matrix("output_delta")
        d, rstd = self._centred(x)
        q = self._elementwise("Mul", dy, d, "dy_d")
        row = self._column_shape
        if node.use_affine:
            gamma = self._over_columns("gamma")
            weights = self._writer.op(
                "Reshape", gamma, self._writer.ints(-1, 1), name="gamma_column", shape=(self._norm_size, 1)
            )
            weights = self._writer.op(
                "Div", weights, self._shapes.columns(), name="gamma_mean", shape=(self._norm_size, 1)
            )
            projection = self._writer.op("MatMul", q, weights, name="mean_g_d", shape=row)
            g = self._elementwise("Mul", dy, gamma, "g")
        else:
            projection = self._row_mean(q, "mean_g_d")
            g = dy
        c2 = self._writer.op("Mul", rstd, projection, name="mean_g_xhat", shape=row)
        c2 = self._writer.op("Mul", rstd, c2, name="c2", shape=row)
        # The two means first: they are small beside the largest g, and so is the rounding of their sum.
        means = self._elementwise("Add", self._elementwise("Mul", d, c2, "d_c2"), self._row_mean(g, "mean_g"), "means")
        centred = self._elementwise("Sub", g, means, "g_centred")
        input_delta = self._as_input(self._elementwise("Mul", rstd, centred, "input_delta_rows"))

        gamma_delta = beta_delta = None
        if node.outputs[1]:
            rstd_row = self._writer.op(
                "Reshape", rstd, self._writer.ints(1, -1), name="rstd_row", shape=(1, self._num_rows)
            )
            total = self._writer.op("MatMul", rstd_row, q, name="gamma_delta_columns", shape=(1, self._norm_size))
            gamma_delta = self._as_parameter(total, "gamma", "gamma_delta")
        if node.outputs[2]:
            # A ReduceSum over the rows takes up to forty times as long in ONNX Runtime.
            rows = self._shapes.length(dy, 0, self._num_rows)
            ones = self._writer.op(
                "Expand",
                self._writer.constant([[1.0]], self._compute),
                self._shapes.vector([1, rows], "ones_shape"),
                name="ones",
                shape=(1, self._num_rows),
            )
            total = self._writer.op("MatMul", ones, dy, name="beta_delta_columns", shape=(1, self._norm_size))
            like = "gamma" if node.input("beta") is None else "beta"
            beta_delta = self._as_parameter(total, like, "beta_delta")
        return input_delta, gamma_delta, beta_delta

    def _centred(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return d and rstd."""
        row = self._column_shape
        if self._node.use_stats:
            d = self._elementwise("Sub", x, self._column("mean"), "d")
            variance = self._column("variance")
        else:
            d = self._elementwise("Sub", x, self._row_mean(x, "mean"), "d_once")
            d = self._elementwise("Sub", d, self._row_mean(d, "mean_rest"), "d")
            variance = self._precise_row_mean(self._elementwise("Mul", d, d, "d_squared"), "variance")
        if self._node.epsilon or self._epsilon_attribute:
            epsilon = self._epsilon_value()
            variance = self._writer.op("Add", variance, epsilon, name="variance_epsilon", shape=row)
        std = self._writer.op("Sqrt", variance, name="std", shape=row)
        return d, self._writer.op("Reciprocal", std, name="rstd", shape=row)

    def _epsilon_value(self) -> ir.Value:
        if not self._epsilon_attribute:
            return self._writer.constant(self._node.epsilon, self._compute)
        reference = ir.RefAttr("value_float", self._epsilon_attribute, ir.AttributeType.FLOAT)
        epsilon = self._writer.op(
            "Constant", name="epsilon", shape=(), element_type=TensorProto.FLOAT, value_float=reference
        )
        return self._writer.cast(epsilon, self._compute, name="epsilon_cast", shape=())

    def _row_mean(self, values: ir.Value, name: str) -> ir.Value:
        return self._writer.reduce("ReduceMean", values, [1], name=name, keepdims=True, shape=self._column_shape)

    def _precise_row_mean(self, values: ir.Value, name: str) -> ir.Value:
        """Return the mean of each row as the mean of the means of equal blocks.

        The error of rstd is common to a whole row. One float sum over a long row costs it up to three times the
        rounding of everything else (measured at 16 rows of 65536); blocks of about sqrt(N) bring it below.
        """
        block = block_size(self._norm_size or 1)
        if block == 1:
            return self._row_mean(values, name)
        blocks = self._writer.op(
            "Reshape", values, self._writer.ints(-1, block), name=f"{name}_blocks", shape=(None, block)
        )
        means = self._writer.reduce(
            "ReduceMean", blocks, [1], name=f"{name}_block_means", keepdims=True, shape=(None, 1)
        )
        count = (self._norm_size or block) // block
        rows = self._writer.op(
            "Reshape", means, self._writer.ints(-1, count), name=f"{name}_block_rows", shape=(self._num_rows, count)
        )
        return self._row_mean(rows, name)

    def _elementwise(self, op_type: str, a: ir.Value, b: ir.Value, name: str) -> ir.Value:
        return self._writer.op(op_type, a, b, name=name, shape=self._matrix_shape)

    @property
    def _matrix_shape(self) -> tuple[Dim, ...]:
        return self._num_rows, self._norm_size

    @property
    def _column_shape(self) -> tuple[Dim, ...]:
        return self._num_rows, 1

    # From the operator's inputs to the flat form

    def _matrix(self, name: str) -> ir.Value:
        """Return input_forward or output_delta as [M, N]."""
        value, axis, shape = self._operands.computed(name), self._node.begin_norm_axis, self._node.shape
        if shape is not None and len(shape) == 2 and axis == 1:
            return value
        return self._writer.op("Flatten", value, name=f"{name}_rows", shape=self._matrix_shape, axis=axis)

    def _column(self, name: str) -> ir.Value:
        """Return mean or variance as [M, 1]."""
        info = self._node.input(name)
        assert info is not None
        value = self._operands.computed(name)
        if info.shape is not None and len(info.shape) == 2 and info.shape[1] == 1:
            return value
        return self._writer.op(
            "Reshape", value, self._writer.ints(-1, 1), name=f"{name}_column", shape=self._column_shape
        )

    def _over_columns(self, name: str) -> ir.Value:
        """Return gamma as [N]."""
        info = self._node.input(name)
        assert info is not None
        value, columns = self._operands.computed(name), (self._norm_size,)
        norm = self._node.norm
        if name in self._whole:
            if info.shape is not None and len(info.shape) == 1:
                return value
            return self._writer.op("Reshape", value, self._writer.ints(-1), name=f"{name}_columns", shape=columns)
        if info.shape is not None and len(info.shape) < 2:
            # Read as [N / K, K], a 1-D parameter of K elements is broadcast over the first axis, whether it spans
            # all the columns, the last axis or one element.
            target = self._shapes.vector(self._one_axis_view(name, info.shape), f"{name}_view")
        elif info.shape is not None and norm is not None:
            target = self._shapes.vector(self._shapes.norm_lengths(norm), "norm_shape")
        else:
            value = self._writer.reshape(value, self._shapes.aligned_shape(name), name=f"{name}_padded")
            target = self._shapes.norm_vector()
        value = self._writer.op("Expand", value, target, name=f"{name}_expanded", shape=None)
        return self._writer.op("Reshape", value, self._writer.ints(-1), name=f"{name}_columns", shape=columns)

    # From the flat form to the operator's outputs

    def _as_input(self, rows: ir.Value) -> ir.Value:
        """Return [M, N] with input_forward's shape and type."""
        shape, value = self._node.shape, rows
        if shape is None or len(shape) != 2 or self._node.begin_norm_axis != 1:
            unknown = None if shape is None else [dim for dim in shape if not isinstance(dim, int)]
            if shape is not None and unknown is not None and len(unknown) < 2:
                target = self._writer.ints(*(dim if isinstance(dim, int) else -1 for dim in shape))
            else:
                target = self._shapes.shape(self._operands.given("input_forward"))
            value = self._writer.reshape(value, target, name="input_delta_shaped", shape=shape)
        return self._writer.cast(value, self._node.element_type or 0, name="input_delta_cast", shape=shape)

    def _as_parameter(self, total: ir.Value, like: str, name: str) -> ir.Value:
        """Return the column sums [1, N] with the shape and type of gamma or beta: summed where it is broadcast."""
        info, norm = self._node.input(like), self._node.norm
        assert info is not None
        shape = info.shape
        if like in self._whole:
            is_flat = shape is not None and len(shape) == 1
            target = self._writer.ints(-1) if is_flat else self._shape_vector(like, shape)
            value = self._writer.op("Reshape", total, target, name=f"{name}_shaped", shape=shape)
        else:
            if shape is None or (norm is None and len(shape) > 1):
                value = self._summed_pairs(total, like, name)
            else:
                lengths, axes = self._summed_view(like, shape, norm)
                value = self._writer.reshape(
                    total, self._shapes.vector(lengths, f"{name}_lengths"), name=f"{name}_view"
                )
                value = self._writer.reduce("ReduceSum", value, axes, name=f"{name}_sum", keepdims=False)
            value = self._writer.reshape(value, self._shape_vector(like, shape), name=f"{name}_shaped", shape=shape)
        return self._writer.cast(value, self._parameter_type(like), name=f"{name}_cast", shape=shape)

    def _shape_vector(self, like: str, shape: tuple[Dim, ...] | None) -> ir.Value:
        """Return the shape of an input as a vector, of which `shape` is known."""
        if shape is not None and all(isinstance(dim, int) for dim in shape):
            return self._writer.ints(*map(_static, shape))
        return self._shapes.shape(self._operands.given(like))

    def _summed_pairs(self, total: ir.Value, like: str, name: str) -> ir.Value:
        """Return the column sums added up for a parameter of unknown rank."""
        view = self._shapes.paired_shape(like)
        value = self._writer.reshape(total, view, name=f"{name}_view")
        pairs = self._writer.op("Size", view, name=f"{name}_pairs", shape=())
        start, step = (self._writer.constant(each, ir.DataType.INT64) for each in (0, 2))
        axes = self._writer.op("Range", start, pairs, step, name=f"{name}_axes", shape=(None,))
        return self._writer.op("ReduceSum", value, axes, name=f"{name}_sum", keepdims=0)

    def _parameter_type(self, name: str) -> int:
        element_type = self._node.parameter_type
        if element_type is None:
            self._writer.refuse(
                f"the element type of {name} is not known; it must be, for its gradient has it (add its value_info to "
                "the model)"
            )
        return element_type

    def _summed_view(
        self, name: str, shape: tuple[Dim, ...], norm: tuple[Dim, ...] | None
    ) -> tuple[list[Length], list[int]]:
        """Return a shape to read the columns with, and its axes to sum over to have the parameter's elements.

        An axis of length n along which the parameter has k elements is read as [n / k, k] where it is not known
        whether k is 1 or n: summing over the first of the two is right in both cases.
        """
        if len(shape) == 0:
            return [self._shapes.column_count()], [0]
        if len(shape) == 1:
            return self._one_axis_view(name, shape), [0]
        assert norm is not None
        skipped = len(norm) - len(shape)
        norm_lengths = self._shapes.norm_lengths(norm)
        lengths, axes = norm_lengths[:skipped], list(range(skipped))
        for axis, (dim, length) in enumerate(zip(shape, norm_lengths[skipped:], strict=True)):
            if dim == length:
                lengths.append(length)
                continue
            axes.append(len(lengths))
            if dim == 1:
                lengths.append(length)
            else:
                kept = self._shapes.length(self._operands.given(name), axis, dim)
                lengths += [self._shapes.ratio(length, kept, f"{name}_ratio"), kept]
        return lengths, axes

    def _one_axis_view(self, name: str, shape: tuple[Dim, ...]) -> list[Length]:
        """Return [N / K, K] for a 1-D parameter of K elements, [N, 1] for a scalar."""
        kept = self._shapes.length(self._operands.given(name), 0, shape[0]) if shape else 1
        return [self._shapes.ratio(self._shapes.column_count(), kept, f"{name}_ratio"), kept]

    def _empty_outputs(self) -> tuple[ir.Value | None, ...]:
        """Return the outputs of a node without rows or without columns: no elements, or zeros."""
        node = self._node
        outputs: list[ir.Value | None] = [self._zeros("input_delta", "input_forward", node.element_type or 0)]
        for name, wanted in zip(spec.OUTPUT_NAMES[1:], node.outputs[1:], strict=True):
            like = "beta" if name == "beta_delta" and node.input("beta") is not None else "gamma"
            outputs.append(self._zeros(name, like, self._parameter_type(like)) if wanted else None)
        return tuple(outputs)

    def _zeros(self, name: str, like: str, element_type: int) -> ir.Value:
        shape = self._node.output_info(name).shape
        target = self._shape_vector(like, shape)
        value = self._writer.filled(target, 0, self._compute, name=f"{name}_zeros", known_shape=shape)
        return self._writer.cast(value, element_type, name=f"{name}_cast", shape=shape)


def block_size(length: int) -> int:
    """Return the largest divisor of a long `length` that is at most its square root and 4096; 1 for a short one."""
    if length < _SHORTEST_IN_BLOCKS:
        return 1
    # A length is only declared: it may be any number, and its square root too large to count to.
    largest = min(math.isqrt(length), _LONGEST_BLOCK)
    return next(divisor for divisor in range(largest, 0, -1) if length % divisor == 0)


def _static(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim
