# SPDX-License-Identifier: Apache-2.0
"""Reading one operator of ONNX Runtime training, and writing the standard operators that take its place."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np
import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.inference import known
from lnbp_onnx.node import Dim, TensorInfo

Outputs: TypeAlias = Sequence[ir.Value | None]
"""The values that take the place of a node's outputs, None for one that is not wanted."""

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_INT64_MAX = np.iinfo(np.int64).max


class Writer:
    """Reads one node and collects the nodes that replace it, in the form of the model's opset.

    Attributes:
        node: The node that is replaced.
        opset: The version of the default domain to write in.
        nodes: What was written, in topological order.
        updates: For each input that the node changes in place: the input, and its value after the change.
    """

    def __init__(
        self,
        node: ir.Node,
        infos: Mapping[ir.Value, TensorInfo],
        opset: int,
        unique_name: Callable[[str], str],
    ) -> None:
        self.node = node
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.updates: list[tuple[ir.Value, ir.Value]] = []
        self._infos = infos
        self._unique_name = unique_name
        self._constants: dict[tuple[object, ...], ir.Value] = {}
        self._label = node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type

    # Reading the node

    def refuse(self, reason: str) -> NoReturn:
        """Refuse the node with a sentence that names it.

        Raises:
            InvalidModelError: Always.
        """
        raise InvalidModelError(f"{self.node.op_type} node {self._label!r}: {reason}.")

    def inputs(self, *names: str) -> list[ir.Value]:
        """Return the first inputs, all of which must be there; `names` are theirs, for the refusal."""
        values = []
        for index, name in enumerate(names):
            value = self.optional_input(index)
            if value is None:
                self.refuse(f"its input {name} is missing; the operator needs {', '.join(names)}")
            values.append(value)
        return values

    def optional_input(self, index: int) -> ir.Value | None:
        """Return an input, None where it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def is_wanted(self, index: int) -> bool:
        """Return whether the node has this output."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute's value."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        if attribute.is_ref():
            self.refuse(f"its attribute {name} is the function's, whose value is not known here (inline the function)")
        return attribute.value

    def info(self, value: ir.Value) -> TensorInfo:
        """Return what is known of a value."""
        return known(value, self._infos)

    def element_type(self, *values: ir.Value | None) -> ir.DataType:
        """Return the element type that the values share; it is enough that one of them tells."""
        found = (self.info(value).element_type for value in values if value is not None)
        element_type = next((each for each in found if each is not None), None)
        if element_type is None:
            self.refuse("the element type of its inputs is not known; it must be (add their value_info to the model)")
        return ir.DataType(element_type)

    def static_shape(self, value: ir.Value, name: str, first_axis: int = 0) -> list[int]:
        """Return the lengths of a value's axes from `first_axis` on, which must be known."""
        shape = self.info(value).shape
        if shape is None or any(not isinstance(dim, int) for dim in shape[first_axis:]):
            self.refuse(
                f"the shape of {name} is {_shape_text(shape)}; its lengths from axis {first_axis} on must be known "
                "(add its value_info to the model, or fix the dimensions)"
            )
        return [dim for dim in shape[first_axis:] if isinstance(dim, int)]

    def constant_ints(self, value: ir.Value, name: str) -> list[int]:
        """Return the elements of an int64 vector that must be a constant."""
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            self.refuse(
                f"{name} is computed at run time, which can be written from opset 13 on; the model's is {self.opset} "
                "(convert the model with onnx.version_converter)"
            )
        return [int(element) for element in tensor.numpy().reshape(-1)]

    # Element types: half types are computed in float, with one cast at each edge

    def computed(self, *values: ir.Value) -> list[ir.Value]:
        """Return values of one floating type in the type to compute in."""
        shared = self.element_type(*values)
        return [self.cast(value, compute_type(shared), shared) for value in values]

    def cast(self, value: ir.Value, element_type: ir.DataType, current: ir.DataType | None = None) -> ir.Value:
        """Return the value in another element type; `current` is its own where nothing tells."""
        known_type = self.info(value).element_type
        current = current if known_type is None else ir.DataType(known_type)
        if current == element_type:
            return value
        if ir.DataType.BFLOAT16 in (element_type, current) and self.opset < 13:
            self.refuse(
                f"its type is bfloat16, which the standard operators have from opset 13 on; the model's is {self.opset}"
                " (convert the model with onnx.version_converter)"
            )
        return self.op("Cast", value, to=int(element_type), element_type=element_type)

    # Writing

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        element_type: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Add a node with one output, by default of its first input's element type."""
        return self.ops(op_type, *inputs, outputs=1, element_type=element_type, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        element_type: ir.DataType | None = None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs of one element type."""
        if element_type is None and inputs and inputs[0] is not None:
            first = self.info(inputs[0]).element_type
            element_type = None if first is None else ir.DataType(first)
        name = self._unique_name(f"{self._label}/{op_type}")
        values = [
            ir.Value(
                name=name if index == 0 else self._unique_name(f"{name}.{index}"),
                type=None if element_type is None else ir.TensorType(element_type),
            )
            for index in range(outputs)
        ]
        node = ir.Node("", op_type, inputs, ir.convenience.convert_attributes(attributes), outputs=values, name=name)
        node.metadata_props.update(self.node.metadata_props)
        self.nodes.append(node)
        return values

    def constant(self, value: Any, element_type: ir.DataType) -> ir.Value:
        """Return a constant."""
        tensor = _tensor(value, element_type)
        key = (element_type, tuple(tensor.shape), tensor.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=tensor, element_type=element_type)
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """Return an int64 vector."""
        if any(abs(value) > _INT64_MAX for value in values):
            self.refuse("an attribute leads to a number of more than 64 bits (correct the attribute)")
        return self.constant(np.array(values, np.int64), ir.DataType.INT64)

    def scalar_like(self, value: float, like: ir.Value) -> ir.Value:
        """Return a scalar of another value's element type."""
        return self.constant(value, self.element_type(like))

    def filled(self, shape: ir.Value, value: float, element_type: ir.DataType) -> ir.Value:
        """Return a tensor of one value in each place; not of a half type, which older opsets lack."""
        return self.op("ConstantOfShape", shape, value=_tensor([value], element_type), element_type=element_type)

    def shape(self, value: ir.Value) -> ir.Value:
        """Return a value's shape as an int64 vector."""
        return self.op("Shape", value, element_type=ir.DataType.INT64)

    def size(self, value: ir.Value) -> ir.Value:
        """Return a value's number of elements as an int64 vector of one."""
        return self.product(self.shape(value))

    def product(self, lengths: ir.Value) -> ir.Value:
        """Return the product of an int64 vector as a vector of one."""
        return self.reduce("ReduceProd", lengths, [0], keepdims=True)

    def part(self, vector: ir.Value, start: int, end: int | None = None) -> ir.Value:
        """Return ``vector[start:end]``."""
        return self.op("Slice", vector, self.ints(start), self.ints(_INT64_MAX if end is None else end), self.ints(0))

    def joined(self, *vectors: ir.Value) -> ir.Value:
        """Return vectors as one."""
        return self.op("Concat", *vectors, axis=0)

    def reshape(self, value: ir.Value, target: ir.Value) -> ir.Value:
        """Reshape to lengths of which none is -1; a 0 is one from opset 14 on, and older opsets cannot say it."""
        if self.opset >= 14:
            return self.op("Reshape", value, target, allowzero=1)
        return self.op("Reshape", value, target)

    def flat(self, value: ir.Value) -> ir.Value:
        """Return the elements as a vector."""
        return self.op("Reshape", value, self.ints(-1))

    def reduce(self, op_type: str, value: ir.Value, axes: Sequence[int], *, keepdims: bool) -> ir.Value:
        """Reduce over axes that are known."""
        if self.opset >= (13 if op_type == "ReduceSum" else 18):
            return self.op(op_type, value, self.ints(*axes), keepdims=int(keepdims))
        return self.op(op_type, value, axes=list(axes), keepdims=int(keepdims))

    def sum_over(self, value: ir.Value, axes: ir.Value, *, keepdims: bool, noop_with_empty_axes: bool) -> ir.Value:
        """Sum over axes that are a vector."""
        if self.opset >= 13:
            return self.op(
                "ReduceSum", value, axes, keepdims=int(keepdims), noop_with_empty_axes=int(noop_with_empty_axes)
            )
        static = self.constant_ints(axes, "axes")
        if not static and noop_with_empty_axes:
            return self.op("Identity", value)
        axes_attribute: dict[str, Any] = {"axes": static} if static else {}
        return self.op("ReduceSum", value, keepdims=int(keepdims), **axes_attribute)

    def unsqueeze(self, value: ir.Value, axis: int) -> ir.Value:
        """Add an axis of length 1."""
        if self.opset >= 13:
            return self.op("Unsqueeze", value, self.ints(axis))
        return self.op("Unsqueeze", value, axes=[axis])

    def squeeze(self, value: ir.Value, axis: int) -> ir.Value:
        """Remove an axis of length 1."""
        if self.opset >= 13:
            return self.op("Squeeze", value, self.ints(axis))
        return self.op("Squeeze", value, axes=[axis])

    def where(self, condition: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Choose between two values of one type."""
        return self.op("Where", condition, a, b, element_type=self.element_type(a, b))

    def compare(self, op_type: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """Compare two values."""
        return self.op(op_type, a, b, element_type=ir.DataType.BOOL)


def compute_type(element_type: ir.DataType) -> ir.DataType:
    """Return the type to compute in."""
    return ir.DataType.FLOAT if element_type in _HALF else element_type


def _tensor(value: Any, element_type: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(np.array(value).astype(element_type.numpy()), dtype=element_type)


def _shape_text(shape: tuple[Dim, ...] | None) -> str:
    return "not known" if shape is None else "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
