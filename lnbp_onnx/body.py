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
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError, InvalidNodeError
from lnbp_onnx.node import BackpropNode, Dim, static_size

OLDEST_OPSET = 11
"""The first default-domain operator set that the body can be written in."""

Length: TypeAlias = int | ir.Value
"""The length of an axis: known now, or an int64 value of shape [1] at run time."""

_SHORTEST_IN_BLOCKS = 512

_INT64_MAX = np.iinfo(np.int64).max


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
        InvalidNodeError: Where the element type is not known, or needs a newer opset.
        InvalidModelError: Where the opset is older than 11.
    """
    return _BodyBuilder(node, inputs, opset, unique_name, whole=whole, epsilon_attribute=epsilon_attribute).build()


class _BodyBuilder:
    def __init__(
        self,
        node: BackpropNode,
        inputs: Sequence[ir.Value | None],
        opset: int,
        unique_name: Callable[[str], str],
        *,
        whole: Collection[str],
        epsilon_attribute: str,
    ) -> None:
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
        if node.element_type == TensorProto.BFLOAT16 and opset < 13:
            raise InvalidNodeError(
                f"{node.description}: its type is bfloat16, which the standard operators have from opset 13 on; the "
                f"model's is {opset} (convert the model with onnx.version_converter)."
            )
        self._node = node
        self._inputs = dict(zip(spec.INPUT_NAMES, inputs, strict=False))
        self._opset = opset
        self._unique_name = unique_name
        self._whole = {name for name in ("gamma", "beta") if name in whole or is_whole(node, name)}
        self._epsilon_attribute = epsilon_attribute
        self._nodes: list[ir.Node] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._casts: dict[str, ir.Value] = {}
        self._shapes: dict[ir.Value, ir.Value] = {}
        self._steps = {value: name for name, value in self._inputs.items() if value is not None}
        self._compute = ir.DataType(spec.compute_type(node.element_type))
        self._num_rows = node.num_rows
        self._norm_size = node.norm_size

    def build(self) -> Body:
        is_empty = 0 in (self._num_rows, self._norm_size)
        outputs = self._empty_outputs() if is_empty else self._gradients()
        return Body(tuple(self._nodes), outputs)

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
            weights = self._op("Reshape", gamma, self._ints(-1, 1), name="gamma_column", shape=(self._norm_size, 1))
            weights = self._op("Div", weights, self._columns(), name="gamma_mean", shape=(self._norm_size, 1))
            projection = self._op("MatMul", q, weights, name="mean_g_d", shape=row)
            g = self._elementwise("Mul", dy, gamma, "g")
        else:
            projection = self._row_mean(q, "mean_g_d")
            g = dy
        c2 = self._op("Mul", rstd, projection, name="mean_g_xhat", shape=row)
        c2 = self._op("Mul", rstd, c2, name="c2", shape=row)
        # The two means first: they are small beside the largest g, and so is the rounding of their sum.
        means = self._elementwise("Add", self._elementwise("Mul", d, c2, "d_c2"), self._row_mean(g, "mean_g"), "means")
        centred = self._elementwise("Sub", g, means, "g_centred")
        input_delta = self._as_input(self._elementwise("Mul", rstd, centred, "input_delta_rows"))

        gamma_delta = beta_delta = None
        if node.outputs[1]:
            rstd_row = self._op("Reshape", rstd, self._ints(1, -1), name="rstd_row", shape=(1, self._num_rows))
            total = self._op("MatMul", rstd_row, q, name="gamma_delta_columns", shape=(1, self._norm_size))
            gamma_delta = self._as_parameter(total, "gamma", "gamma_delta")
        if node.outputs[2]:
            # A ReduceSum over the rows takes up to forty times as long in ONNX Runtime.
            rows = self._length(dy, 0, self._num_rows)
            ones = self._op(
                "Expand",
                self._constant(np.ones((1, 1)), self._compute),
                self._vector([1, rows], "ones_shape"),
                name="ones",
                shape=(1, self._num_rows),
            )
            total = self._op("MatMul", ones, dy, name="beta_delta_columns", shape=(1, self._norm_size))
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
            variance = self._op("Add", variance, epsilon, name="variance_epsilon", shape=row)
        std = self._op("Sqrt", variance, name="std", shape=row)
        return d, self._op("Reciprocal", std, name="rstd", shape=row)

    def _epsilon_value(self) -> ir.Value:
        if not self._epsilon_attribute:
            return self._constant(np.array(self._node.epsilon), self._compute)
        reference = ir.RefAttr("value_float", self._epsilon_attribute, ir.AttributeType.FLOAT)
        epsilon = self._op("Constant", name="epsilon", shape=(), element_type=TensorProto.FLOAT, value_float=reference)
        return self._cast(epsilon, TensorProto.FLOAT, self._compute, "epsilon", ())

    def _row_mean(self, values: ir.Value, name: str) -> ir.Value:
        return self._reduce("ReduceMean", values, [1], name=name, keepdims=True, shape=self._column_shape)

    def _precise_row_mean(self, values: ir.Value, name: str) -> ir.Value:
        """Return the mean of each row as the mean of the means of equal blocks.

        The error of rstd is common to a whole row. One float sum over a long row costs it up to three times the
        rounding of everything else (measured at 16 rows of 65536); blocks of about sqrt(N) bring it below.
        """
        block = block_size(self._norm_size or 1)
        if block == 1:
            return self._row_mean(values, name)
        blocks = self._op("Reshape", values, self._ints(-1, block), name=f"{name}_blocks", shape=(None, block))
        means = self._reduce("ReduceMean", blocks, [1], name=f"{name}_block_means", keepdims=True, shape=(None, 1))
        count = (self._norm_size or block) // block
        rows = self._op(
            "Reshape", means, self._ints(-1, count), name=f"{name}_block_rows", shape=(self._num_rows, count)
        )
        return self._row_mean(rows, name)

    def _elementwise(self, op_type: str, a: ir.Value, b: ir.Value, name: str) -> ir.Value:
        return self._op(op_type, a, b, name=name, shape=self._matrix_shape)

    @property
    def _matrix_shape(self) -> tuple[Dim, ...]:
        return self._num_rows, self._norm_size

    @property
    def _column_shape(self) -> tuple[Dim, ...]:
        return self._num_rows, 1

    # From the operator's inputs to the flat form

    def _input(self, name: str) -> ir.Value:
        value = self._inputs[name]
        assert value is not None
        return value

    def _computed(self, name: str) -> ir.Value:
        """Return an input in the compute type."""
        if name not in self._casts:
            info = self._node.input(name)
            assert info is not None
            self._casts[name] = self._cast(self._input(name), info.element_type, self._compute, name, info.shape)
        return self._casts[name]

    def _cast(
        self,
        value: ir.Value,
        element_type: int | None,
        wanted: int,
        name: str,
        shape: tuple[Dim, ...] | None,
    ) -> ir.Value:
        if element_type == wanted:
            return value
        return self._op("Cast", value, name=f"{name}_cast", shape=shape, element_type=wanted, to=wanted)

    def _matrix(self, name: str) -> ir.Value:
        """Return input_forward or output_delta as [M, N]."""
        value, axis, shape = self._computed(name), self._node.begin_norm_axis, self._node.shape
        if shape is not None and len(shape) == 2 and axis == 1:
            return value
        return self._op("Flatten", value, name=f"{name}_rows", shape=self._matrix_shape, axis=axis)

    def _column(self, name: str) -> ir.Value:
        """Return mean or variance as [M, 1]."""
        info = self._node.input(name)
        assert info is not None
        value = self._computed(name)
        if info.shape is not None and len(info.shape) == 2 and info.shape[1] == 1:
            return value
        return self._op("Reshape", value, self._ints(-1, 1), name=f"{name}_column", shape=self._column_shape)

    def _columns(self) -> ir.Value:
        """Return N in the compute type."""
        if self._norm_size is not None:
            return self._constant(np.array(self._norm_size), self._compute)
        length: Length
        if "gamma" in self._whole:
            # ONNX Runtime has no Size of bfloat16.
            length = self._op(
                "Size", self._computed("gamma"), name="norm_size", shape=(), element_type=TensorProto.INT64
            )
        else:
            length = self._column_count()
        assert isinstance(length, ir.Value)
        shape = None if length.shape is None else tuple(length.shape.numpy())
        return self._cast(length, TensorProto.INT64, self._compute, "norm_size", shape)

    def _column_count(self) -> Length:
        """Return N as a length."""
        if self._norm_size is not None:
            return self._norm_size
        shape, axis = self._node.shape, self._node.begin_norm_axis
        if shape is not None and axis == len(shape) - 1:
            return self._length(self._input("input_forward"), axis, None)
        flat = self._op(
            "Flatten", self._computed("input_forward"), name="norm_view", shape=self._matrix_shape, axis=axis
        )
        return self._length(flat, 1, None)

    def _over_columns(self, name: str) -> ir.Value:
        """Return gamma as [N]."""
        info = self._node.input(name)
        assert info is not None
        value, columns = self._computed(name), (self._norm_size,)
        norm = self._node.norm
        if name in self._whole:
            if info.shape is not None and len(info.shape) == 1:
                return value
            return self._op("Reshape", value, self._ints(-1), name=f"{name}_columns", shape=columns)
        if info.shape is not None and len(info.shape) < 2:
            # Read as [N / K, K], a 1-D parameter of K elements is broadcast over the first axis, whether it spans
            # all the columns, the last axis or one element.
            target = self._vector(self._one_axis_view(name, info.shape), f"{name}_view")
        elif info.shape is not None and norm is not None:
            target = self._vector(self._norm_lengths(norm), "norm_shape")
        else:
            value = self._op("Reshape", value, self._aligned_shape(name), name=f"{name}_padded", shape=None)
            target = self._norm_vector()
        value = self._op("Expand", value, target, name=f"{name}_expanded", shape=None)
        return self._op("Reshape", value, self._ints(-1), name=f"{name}_columns", shape=columns)

    # From the flat form to the operator's outputs

    def _as_input(self, rows: ir.Value) -> ir.Value:
        """Return [M, N] with input_forward's shape and type."""
        shape, value = self._node.shape, rows
        if shape is None or len(shape) != 2 or self._node.begin_norm_axis != 1:
            unknown = None if shape is None else [dim for dim in shape if not isinstance(dim, int)]
            if shape is not None and unknown is not None and len(unknown) < 2:
                target = self._ints(*(dim if isinstance(dim, int) else -1 for dim in shape))
            else:
                target = self._shape(self._input("input_forward"))
            value = self._reshape(value, target, "input_delta_shaped", shape)
        return self._cast(value, self._compute, self._node.element_type or 0, "input_delta", shape)

    def _as_parameter(self, total: ir.Value, like: str, name: str) -> ir.Value:
        """Return the column sums [1, N] with the shape and type of gamma or beta: summed where it is broadcast."""
        info, norm = self._node.input(like), self._node.norm
        assert info is not None
        shape = info.shape
        if like in self._whole:
            if shape is not None and len(shape) == 1:
                target = self._ints(-1)
            elif shape is not None and all(isinstance(dim, int) for dim in shape):
                target = self._ints(*map(_static, shape))
            else:
                target = self._shape(self._input(like))
            value = self._op("Reshape", total, target, name=f"{name}_shaped", shape=shape)
        elif shape is None or (norm is None and len(shape) > 1):
            view = self._unknown_view(like)
            value = self._reshape(total, view, f"{name}_view", None)
            pairs = self._op("Size", view, name=f"{name}_pairs", shape=(), element_type=ir.DataType.INT64)
            axes = self._op(
                "Range",
                self._constant(np.array(0), ir.DataType.INT64),
                pairs,
                self._constant(np.array(2), ir.DataType.INT64),
                name=f"{name}_axes",
                shape=(None,),
                element_type=ir.DataType.INT64,
            )
            value = self._op("ReduceSum", value, axes, name=f"{name}_sum", shape=None, keepdims=0)
            value = self._reshape(value, self._shape(self._input(like)), f"{name}_shaped", shape)
        else:
            lengths, axes_summed = self._summed_view(like, shape, norm)
            value = self._reshape(total, self._vector(lengths, f"{name}_lengths"), f"{name}_view", None)
            value = self._reduce("ReduceSum", value, axes_summed, name=f"{name}_sum", keepdims=False, shape=None)
            target = (
                self._ints(*map(_static, shape))
                if all(isinstance(dim, int) for dim in shape)
                else self._shape(self._input(like))
            )
            value = self._reshape(value, target, f"{name}_shaped", shape)
        return self._cast(value, self._compute, self._parameter_type(like), name, shape)

    def _parameter_type(self, name: str) -> int:
        element_type = self._node.parameter_type
        if element_type is None:
            raise InvalidNodeError(
                f"{self._node.description}: the element type of {name} is not known; it must be, for its gradient "
                "has it (add its value_info to the model)."
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
            return [self._column_count()], [0]
        if len(shape) == 1:
            return self._one_axis_view(name, shape), [0]
        assert norm is not None
        skipped = len(norm) - len(shape)
        norm_lengths = self._norm_lengths(norm)
        lengths, axes = norm_lengths[:skipped], list(range(skipped))
        for axis, (dim, length) in enumerate(zip(shape, norm_lengths[skipped:], strict=True)):
            if dim == length:
                lengths.append(length)
                continue
            axes.append(len(lengths))
            if dim == 1:
                lengths.append(length)
            else:
                kept = self._length(self._input(name), axis, dim)
                lengths += [self._ratio(length, kept, f"{name}_ratio"), kept]
        return lengths, axes

    def _one_axis_view(self, name: str, shape: tuple[Dim, ...]) -> list[Length]:
        """Return [N / K, K] for a 1-D parameter of K elements, [N, 1] for a scalar."""
        kept = self._length(self._input(name), 0, shape[0]) if shape else 1
        return [self._ratio(self._column_count(), kept, f"{name}_ratio"), kept]

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
        if shape is not None and all(isinstance(dim, int) for dim in shape):
            zeros = np.zeros(tuple(map(_static, shape)))
            return self._constant(zeros, ir.DataType(element_type), name=f"{name}_zeros")
        # ConstantOfShape has bfloat16 only from opset 20 on.
        value = self._op(
            "ConstantOfShape",
            self._shape(self._input(like)),
            name=f"{name}_zeros",
            shape=shape,
            value=ir.tensor(np.zeros(1, self._compute.numpy()), dtype=self._compute),
        )
        return self._cast(value, self._compute, element_type, name, shape)

    # Shapes that are known only at run time

    def _aligned_shape(self, name: str) -> ir.Value:
        """Return the shape of a parameter of unknown rank, padded to the rank of the normalised axes."""
        if self._opset < 13:
            raise InvalidNodeError(
                f"{self._node.description}: the rank of {name} or of the normalised axes is not known, which can be "
                f"written from opset 13 on; the model's is {self._opset} (add value_info to the model, or convert it "
                "with onnx.version_converter)."
            )
        integer = {"element_type": ir.DataType.INT64}
        norm, shape = self._norm_vector(), self._shape(self._input(name))
        missing = self._op(
            "Sub", self._shape(norm), self._shape(shape), name=f"{name}_missing_axes", shape=(1,), **integer
        )
        padding = self._op(
            "ConstantOfShape",
            missing,
            name=f"{name}_padding",
            shape=(None,),
            value=ir.tensor(np.ones(1, np.int64)),
            **integer,
        )
        padded = self._op("Concat", padding, shape, name=f"{name}_padded_shape", shape=(None,), axis=0, **integer)
        # One element for each of the columns is row-major whatever the parameter's rank. ONNX Runtime has no Size of
        # bfloat16.
        elements = self._op("Size", self._computed(name), name=f"{name}_size", shape=(), **integer)
        columns = self._column_count()
        columns = self._ints(columns) if isinstance(columns, int) else columns
        complete = self._op(
            "Equal", elements, columns, name=f"{name}_complete", shape=(1,), element_type=ir.DataType.BOOL
        )
        return self._op("Where", complete, norm, padded, name=f"{name}_aligned_shape", shape=(None,), **integer)

    def _unknown_view(self, name: str) -> ir.Value:
        """Return the view that sums a parameter of unknown rank: [n / k, k] for each of the normalised axes."""
        integer = {"element_type": ir.DataType.INT64}
        norm, padded = self._norm_vector(), self._aligned_shape(name)
        ratio = self._ratio(norm, padded, f"{name}_ratio")
        assert isinstance(ratio, ir.Value)
        pairs = [
            self._op("Reshape", value, self._ints(-1, 1), name=f"{name}_{part}", shape=(None, 1), **integer)
            for value, part in ((ratio, "summed"), (padded, "kept"))
        ]
        view = self._op("Concat", *pairs, name=f"{name}_pairs_shape", shape=(None, 2), axis=1, **integer)
        return self._op("Reshape", view, self._ints(-1), name=f"{name}_pairs_view", shape=(None,), **integer)

    def _norm_vector(self) -> ir.Value:
        """Return the lengths of the normalised axes as an int64 vector."""
        norm = self._node.norm
        if norm is not None:
            return self._vector(self._norm_lengths(norm), "norm_shape")
        return self._op(
            "Slice",
            self._shape(self._input("input_forward")),
            self._ints(self._node.begin_norm_axis),
            self._ints(_INT64_MAX),
            name="norm_shape",
            shape=(None,),
            element_type=ir.DataType.INT64,
        )

    def _norm_lengths(self, norm: tuple[Dim, ...]) -> list[Length]:
        first = self._node.begin_norm_axis
        return [self._length(self._input("input_forward"), first + axis, dim) for axis, dim in enumerate(norm)]

    def _shape(self, value: ir.Value) -> ir.Value:
        if value not in self._shapes:
            self._shapes[value] = self._op(
                "Shape", value, name=f"{self._steps[value]}_shape", shape=(None,), element_type=ir.DataType.INT64
            )
        return self._shapes[value]

    def _length(self, value: ir.Value, axis: int, dim: Dim) -> Length:
        if isinstance(dim, int):
            return dim
        index = self._ints(axis)
        return self._op(
            "Gather",
            self._shape(value),
            index,
            name=f"{self._steps[value]}_length_{axis}",
            shape=(1,),
            element_type=ir.DataType.INT64,
        )

    def _ratio(self, length: Length, divisor: Length, name: str) -> Length:
        """Return length / divisor, 0 where both are 0: an integer division by zero ends the process."""
        if isinstance(length, int) and isinstance(divisor, int):
            return length // max(divisor, 1)
        length, divisor = (self._ints(each) if isinstance(each, int) else each for each in (length, divisor))
        shape, integer = length.shape, ir.DataType.INT64
        is_zero = self._op(
            "Equal", divisor, self._ints(0), name=f"{name}_is_zero", shape=shape, element_type=ir.DataType.BOOL
        )
        divisor = self._op(
            "Where", is_zero, self._ints(1), divisor, name=f"{name}_divisor", shape=shape, element_type=integer
        )
        return self._op("Div", length, divisor, name=name, shape=shape, element_type=integer)

    def _vector(self, lengths: Sequence[Length], name: str) -> ir.Value:
        """Return the lengths as one int64 vector, a constant where all are known."""
        known = [length for length in lengths if isinstance(length, int)]
        if len(known) == len(lengths):
            return self._ints(*known)
        parts = [self._ints(length) if isinstance(length, int) else length for length in lengths]
        if len(parts) == 1:
            return parts[0]
        return self._op("Concat", *parts, name=name, shape=(len(parts),), element_type=ir.DataType.INT64, axis=0)

    # Operators in the form of the opset

    def _reduce(
        self,
        op_type: str,
        value: ir.Value,
        axes: Sequence[int],
        *,
        name: str,
        keepdims: bool,
        shape: tuple[Dim, ...] | None,
    ) -> ir.Value:
        if self._opset >= (13 if op_type == "ReduceSum" else 18):
            return self._op(op_type, value, self._ints(*axes), name=name, shape=shape, keepdims=int(keepdims))
        return self._op(op_type, value, name=name, shape=shape, axes=list(axes), keepdims=int(keepdims))

    def _reshape(self, value: ir.Value, target: ir.Value, name: str, shape: tuple[Dim, ...] | None) -> ir.Value:
        """Reshape to lengths that may be 0 at run time, which older opsets read as a copy of the input's."""
        producer = target.producer()
        if self._opset >= 14 and not (producer is not None and producer.op_type == "Constant"):
            return self._op("Reshape", value, target, name=name, shape=shape, allowzero=1)
        return self._op("Reshape", value, target, name=name, shape=shape)

    def _ints(self, *values: int) -> ir.Value:
        return self._constant(np.array(values), ir.DataType.INT64)

    def _constant(self, array: np.ndarray, element_type: ir.DataType, name: str = "constant") -> ir.Value:
        array = array.astype(helper.tensor_dtype_to_np_dtype(int(element_type)))
        key = (element_type.name, array.shape, array.tobytes())
        if name != "constant" or key not in self._constants:
            value = self._op(
                "Constant",
                name=name,
                shape=array.shape,
                element_type=element_type,
                value=ir.Tensor(array, dtype=element_type),
            )
            self._constants[key] = value
        return self._constants[key]

    def _op(
        self,
        op_type: str,
        *inputs: ir.Value,
        name: str,
        shape: Sequence[Dim] | ir.Shape | None,
        element_type: int | None = None,
        **attributes: int | list[int] | ir.TensorProtocol | ir.Attr,
    ) -> ir.Value:
        node_name = self._unique_name(name)
        output = ir.Value(
            name=node_name,
            shape=None if shape is None else ir.Shape(shape),
            type=ir.TensorType(self._compute if element_type is None else ir.DataType(element_type)),
        )
        self._steps[output] = name
        attrs = [_attribute(name, value) for name, value in attributes.items()]
        self._nodes.append(ir.Node("", op_type, inputs, attrs, outputs=[output], name=node_name))
        return output


def _attribute(name: str, value: int | list[int] | ir.TensorProtocol | ir.Attr) -> ir.Attr:
    if isinstance(value, ir.Attr):
        return value
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, list):
        return ir.AttrInt64s(name, value)
    return ir.AttrTensor(name, value)


def block_size(length: int) -> int:
    """Return the largest divisor of a long `length` that is at most its square root; 1 for a short one."""
    if length < _SHORTEST_IN_BLOCKS:
        return 1
    return max(divisor for divisor in range(1, math.isqrt(length) + 1) if length % divisor == 0)


def _static(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim
