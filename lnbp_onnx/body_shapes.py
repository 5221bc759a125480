# SPDX-License-Identifier: Apache-2.0
"""The operands of the operator's body, and their lengths: numbers where they are known, else computed at run time."""

from collections.abc import Sequence
from typing import TypeAlias

import onnx_ir as ir
from onnx import TensorProto

from lnbp_onnx import spec
from lnbp_onnx.graphs.writer import INT64_MAX, RUN_TIME_AXES_OPSET, Writer
from lnbp_onnx.node import BackpropNode, Dim

Length: TypeAlias = int | ir.Value
"""The length of an axis: known now, or an int64 value of shape [1] at run time."""


class Operands:
    """The operator's inputs.

    Attributes:
        node: The parsed node.
        compute_type: The type that is computed in.
    """

    def __init__(self, node: BackpropNode, inputs: Sequence[ir.Value | None], writer: Writer) -> None:
        self.node = node
        self.compute_type = spec.compute_type(node.element_type or TensorProto.FLOAT)
        self._inputs = dict(zip(spec.INPUT_NAMES, inputs, strict=False))
        self._writer = writer
        self._computed: dict[str, ir.Value] = {}

    def given(self, name: str) -> ir.Value:
        """Return an input as it is."""
        value = self._inputs[name]
        assert value is not None
        return value

    def computed(self, name: str) -> ir.Value:
        """Return an input in the type that is computed in."""
        if name not in self._computed:
            info = self.node.input(name)
            assert info is not None
            self._computed[name] = self._writer.cast(
                self.given(name), self.compute_type, name=f"{name}_cast", shape=info.shape
            )
        return self._computed[name]


class BodyShapes:
    """Writes what the body needs of lengths and shapes.

    Args:
        operands: The operands.
        writer: Writes the nodes.
        is_gamma_whole: Whether gamma has one element for each column.
    """

    def __init__(self, operands: Operands, writer: Writer, is_gamma_whole: bool) -> None:
        self._node = operands.node
        self._operands = operands
        self._writer = writer
        self._is_gamma_whole = is_gamma_whole
        self._shapes: dict[ir.Value, ir.Value] = {}

    def columns(self) -> ir.Value:
        """Return N in the type that is computed in."""
        writer, compute_type = self._writer, self._operands.compute_type
        if self._node.norm_size is not None:
            return writer.constant(self._node.norm_size, compute_type)
        if self._is_gamma_whole:
            # ONNX Runtime has no Size of bfloat16.
            gamma = self._operands.computed("gamma")
            size = writer.op("Size", gamma, name="norm_size", shape=(), element_type=ir.DataType.INT64)
            return writer.cast(size, compute_type, name="norm_size_cast", shape=())
        return writer.cast(self._vector_of_one(self.column_count()), compute_type, name="norm_size_cast", shape=(1,))

    def column_count(self) -> Length:
        """Return N."""
        if self._node.norm_size is not None:
            return self._node.norm_size
        shape, axis = self._node.shape, self._node.begin_norm_axis
        if shape is not None and axis == len(shape) - 1:
            return self.length(self._operands.given("input_forward"), axis, None)
        x = self._operands.computed("input_forward")
        flat = self._writer.op("Flatten", x, name="norm_view", shape=(self._node.num_rows, None), axis=axis)
        return self.length(flat, 1, None)

    def shape(self, value: ir.Value) -> ir.Value:
        """Return the shape of a value."""
        if value not in self._shapes:
            self._shapes[value] = self._writer.shape(value, name=f"{self._writer.steps[value]}_shape")
        return self._shapes[value]

    def length(self, value: ir.Value, axis: int, dim: Dim) -> Length:
        """Return the length of a value's axis, of which `dim` is known."""
        if isinstance(dim, int):
            return dim
        index = self._writer.ints(axis)
        name = f"{self._writer.steps[value]}_length_{axis}"
        return self._writer.op("Gather", self.shape(value), index, name=name, shape=(1,))

    def ratio(self, length: Length, divisor: Length, name: str) -> Length:
        """Return length / divisor, 0 where both are 0: an integer division by zero ends the process."""
        if isinstance(length, int) and isinstance(divisor, int):
            return length // max(divisor, 1)
        writer = self._writer
        length, divisor = self._vector_of_one(length), self._vector_of_one(divisor)
        shape = length.shape
        is_zero = writer.op(
            "Equal", divisor, writer.ints(0), name=f"{name}_is_zero", shape=shape, element_type=ir.DataType.BOOL
        )
        divisor = writer.op(
            "Where",
            is_zero,
            writer.ints(1),
            divisor,
            name=f"{name}_divisor",
            shape=shape,
            element_type=ir.DataType.INT64,
        )
        return writer.op("Div", length, divisor, name=name, shape=shape)

    def vector(self, lengths: Sequence[Length], name: str) -> ir.Value:
        """Return lengths as one int64 vector, a constant where all are known."""
        known = [length for length in lengths if isinstance(length, int)]
        if len(known) == len(lengths):
            return self._writer.ints(*known)
        parts = [self._vector_of_one(length) for length in lengths]
        if len(parts) == 1:
            return parts[0]
        return self._writer.op("Concat", *parts, name=name, shape=(len(parts),), axis=0)

    def _vector_of_one(self, length: Length) -> ir.Value:
        return self._writer.ints(length) if isinstance(length, int) else length

    def norm_lengths(self, norm: tuple[Dim, ...]) -> list[Length]:
        """Return the lengths of the normalised axes, of which `norm` is known."""
        first = self._node.begin_norm_axis
        return [self.length(self._operands.given("input_forward"), first + axis, dim) for axis, dim in enumerate(norm)]

    def norm_vector(self) -> ir.Value:
        """Return the lengths of the normalised axes as an int64 vector."""
        norm = self._node.norm
        if norm is not None:
            return self.vector(self.norm_lengths(norm), "norm_shape")
        shape = self.shape(self._operands.given("input_forward"))
        start, end = self._writer.ints(self._node.begin_norm_axis), self._writer.ints(INT64_MAX)
        return self._writer.op("Slice", shape, start, end, name="norm_shape", shape=(None,))

    def aligned_shape(self, name: str) -> ir.Value:
        """Return the shape of a parameter of unknown rank, padded to the rank of the normalised axes."""
        writer = self._writer
        if writer.opset < RUN_TIME_AXES_OPSET:
            writer.refuse(
                f"the rank of {name} or of the normalised axes is not known, which can be written from opset "
                f"{RUN_TIME_AXES_OPSET} on; the model's is {writer.opset} (add value_info to the model, or convert it "
                "with onnx.version_converter)"
            )
        norm, shape = self.norm_vector(), self.shape(self._operands.given(name))
        missing = writer.op("Sub", self.shape(norm), self.shape(shape), name=f"{name}_missing_axes", shape=(1,))
        padding = writer.filled(missing, 1, ir.DataType.INT64, name=f"{name}_padding", known_shape=(None,))
        padded = writer.op("Concat", padding, shape, name=f"{name}_padded_shape", shape=(None,), axis=0)
        # One element for each of the columns is row-major whatever the parameter's rank. ONNX Runtime has no Size of
        # bfloat16.
        elements = writer.op(
            "Size", self._operands.computed(name), name=f"{name}_size", shape=(), element_type=ir.DataType.INT64
        )
        columns = self._vector_of_one(self.column_count())
        complete = writer.op(
            "Equal", elements, columns, name=f"{name}_complete", shape=(1,), element_type=ir.DataType.BOOL
        )
        return writer.op(
            "Where",
            complete,
            norm,
            padded,
            name=f"{name}_aligned_shape",
            shape=(None,),
            element_type=ir.DataType.INT64,
        )

    def paired_shape(self, name: str) -> ir.Value:
        """Return the shape that sums to a parameter of unknown rank: [n / k, k] for each of the normalised axes."""
        writer = self._writer
        norm, padded = self.norm_vector(), self.aligned_shape(name)
        ratio = self.ratio(norm, padded, f"{name}_ratio")
        assert isinstance(ratio, ir.Value)
        pairs = [
            writer.op("Reshape", value, writer.ints(-1, 1), name=f"{name}_{part}", shape=(None, 1))
            for value, part in ((ratio, "summed"), (padded, "kept"))
        ]
        view = writer.op("Concat", *pairs, name=f"{name}_pairs_shape", shape=(None, 2), axis=1)
        return writer.op("Reshape", view, writer.ints(-1), name=f"{name}_pairs_view", shape=(None,))
