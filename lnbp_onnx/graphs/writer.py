# SPDX-License-Identifier: Apache-2.0
"""Writing nodes of standard operators, in the form of an opset."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.errors import LnbpError
from lnbp_onnx.graphs.inference import constant_tensor, known
from lnbp_onnx.node import Dim, TensorInfo

# Where the forms of operators change.
_BFLOAT16_OPSET = 13
_ALLOWZERO_OPSET = 14
_AXES_AS_INPUT_OPSET = 18
_AXES_AS_INPUT_OPSETS = {"ReduceSum": 13, "Squeeze": 13, "Unsqueeze": 13}

RUN_TIME_AXES_OPSET = _AXES_AS_INPUT_OPSETS["ReduceSum"]
"""The first opset in which a sum can be over axes that are known only at run time."""

FLOATS = tuple(ir.DataType(each) for each in spec.ELEMENT_TYPES if ir.DataType(each).is_floating_point())
"""The floating types."""

HALF_TYPES = tuple(each for each in FLOATS if spec.compute_type(each) != each)
"""Those that are computed in another one, float."""

INT64_MAX = int(np.iinfo(np.int64).max)
"""What stands for an axis' end."""


def compute_type(element_type: int) -> ir.DataType:
    """Return the type to compute in."""
    return ir.DataType.FLOAT if element_type in HALF_TYPES else ir.DataType(element_type)


class Writer:
    """Collects nodes that take the place of something.

    Every node and value is named after a step of the computation, by default its operator.

    onnx_ir's ``Tape`` would collect them just as well, and takes longer for each.

    Args:
        subject: How errors name what is replaced.
        opset: The version of the default domain to write in.
        unique_name: Turns a name into one that the graph does not have yet.
        infos: What is known of the values that the nodes read, beyond what these declare.
        prefix: What names begin with, before the step.
        error: The kind of error that a refusal is.
        newer_opset: How to come to a newer opset, for refusals.
        metadata: The metadata of the nodes.

    Attributes:
        subject: As given.
        opset: As given.
        nodes: What was written, in topological order.
        steps: The values of `op`, with the steps that they are named after.
        constants: The constants among them, by type, shape and content. A writer that is given another one's `nodes`
            and `constants` goes on where that one was.
    """

    def __init__(
        self,
        subject: str,
        opset: int,
        unique_name: Callable[[str], str],
        infos: Mapping[ir.Value, TensorInfo],
        *,
        prefix: str = "",
        error: type[LnbpError],
        newer_opset: str = "convert the model with onnx.version_converter",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.steps: dict[ir.Value, str] = {}
        self.subject = subject
        self._unique_name = unique_name
        self._infos = infos
        self._prefix = prefix
        self._error = error
        self._newer_opset = newer_opset
        self._metadata = metadata
        self.constants: dict[tuple[object, ...], ir.Value] = {}

    def refuse(self, reason: str) -> NoReturn:
        """Refuse what is replaced with a sentence that names it.

        Raises:
            LnbpError: Always, of the writer's kind.
        """
        raise self._error(f"{self.subject}: {reason}.")

    def refuse_opset(self, needed: int, what: str) -> NoReturn:
        """Refuse what needs a newer opset; `what` is it, up to "from opset ... on".

        Raises:
            LnbpError: Always, of the writer's kind.
        """
        self.refuse(f"{what} from opset {needed} on; the model's is {self.opset} ({self._newer_opset})")

    # What is known of values

    def info(self, value: ir.Value) -> TensorInfo:
        """Return what is known of a value."""
        return known(value, self._infos)

    def element_type(self, *values: ir.Value | None) -> ir.DataType:
        """Return the element type that the values share; it is enough that one of them tells."""
        found = (self._known_type(value) for value in values if value is not None)
        element_type = next((each for each in found if each is not None), None)
        if element_type is None:
            self.refuse("the element type of its inputs is not known; it must be (add their value_info to the model)")
        return element_type

    def _known_type(self, value: ir.Value) -> ir.DataType | None:
        info = self._infos.get(value)
        if info is None:
            return value.dtype or None
        return None if info.element_type is None else ir.DataType(info.element_type)

    # Nodes

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str = "",
        shape: Sequence[Dim] | ir.Shape | None = None,
        element_type: int | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Add a node with one output.

        Args:
            op_type: The operator, of the default domain.
            *inputs: The operands, None for one that is omitted.
            name: The step; by default the operator.
            shape: The output's, None where it is not known.
            element_type: The output's; by default that of the first input.
            **attributes: Values, or ``ir.Attr``.
        """
        if element_type is None and inputs and inputs[0] is not None:
            element_type = self._known_type(inputs[0])
        output = ir.Value(
            name=self._unique_name(self._prefix + (name or op_type)),
            type=None if element_type is None else ir.TensorType(ir.DataType(element_type)),
            shape=None if shape is None else ir.Shape(shape),
        )
        self.steps[output] = name or op_type
        self._add(op_type, inputs, [output], attributes)
        return output

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int | Sequence[str],
        element_type: int | Sequence[int | None] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs.

        Args:
            op_type: The operator.
            *inputs: The operands, None for one that is omitted.
            outputs: How many there are, or the steps that they are named after, "" for one that is omitted.
            element_type: That of the outputs, or one for each; by default that of the first input.
            domain: The operator's.
            **attributes: Values, or ``ir.Attr``.
        """
        if element_type is None and inputs and inputs[0] is not None:
            element_type = self._known_type(inputs[0])
        name = self._unique_name(self._prefix + op_type)
        if isinstance(outputs, int):
            names = [name, *(self._unique_name(f"{name}.{index}") for index in range(1, outputs))]
        else:
            names = [self._unique_name(self._prefix + step) if step else "" for step in outputs]
        types = element_type if isinstance(element_type, Sequence) else [element_type] * len(names)
        values = [
            ir.Value(name=each, type=None if of is None else ir.TensorType(ir.DataType(of)))
            for each, of in zip(names, types, strict=True)
        ]
        self._add(op_type, inputs, values, attributes, domain=domain, name=name)
        return values

    def _add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        attributes: Mapping[str, Any],
        domain: str = "",
        name: str | None = None,
    ) -> None:
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        node = ir.Node(
            domain,
            op_type,
            given,
            [_attribute(*attribute) for attribute in attributes.items() if attribute[1] is not None],
            outputs=outputs,
            name=name or outputs[0].name,
            metadata_props=dict(self._metadata) if self._metadata else None,
        )
        self.nodes.append(node)

    def graph(self, inputs: Sequence[tuple[ir.DataType, int]], build: Callable[..., Sequence[ir.Value]]) -> ir.Graph:
        """Return a graph for an attribute.

        Args:
            inputs: The element types and ranks of its inputs.
            build: Gets the inputs and returns the outputs; what it writes becomes the graph's nodes.
        """
        name = self._unique_name(f"{self._prefix}graph")
        values = [
            ir.Value(
                name=self._unique_name(f"{name}/input"),
                type=ir.TensorType(element_type),
                shape=ir.Shape([None] * rank),
            )
            for element_type, rank in inputs
        ]
        outer, self.nodes = self.nodes, []
        # Constants of its own: in a subgraph shape inference does not know what those outside are.
        outer_constants, self.constants = self.constants, {}
        try:
            outputs = build(*values)
            return ir.Graph(values, outputs, nodes=self.nodes, name=name)
        finally:
            self.nodes, self.constants = outer, outer_constants

    # Constants

    def constant(self, value: Any, element_type: int) -> ir.Value:
        """Return a constant; equal ones are one node."""
        dtype = ir.DataType(element_type)
        array = np.asarray(value).astype(dtype.numpy())
        key = (dtype, array.shape, array.tobytes())
        if key not in self.constants:
            tensor = _tensor_attribute(*key)
            self.constants[key] = self.op(
                "Constant", name="constant", shape=array.shape, element_type=element_type, value=tensor
            )
        return self.constants[key]

    def ints(self, *values: int) -> ir.Value:
        """Return an int64 vector."""
        if any(abs(value) > INT64_MAX for value in values):
            self.refuse("an attribute leads to a number of more than 64 bits (correct the attribute)")
        return self.constant(np.array(values, np.int64), ir.DataType.INT64)

    def scalar_like(self, value: float, like: ir.Value) -> ir.Value:
        """Return a scalar of another value's element type."""
        return self.constant(value, self.element_type(like))

    def filled(
        self,
        shape: ir.Value,
        value: float,
        element_type: int,
        *,
        name: str = "",
        known_shape: Sequence[Dim] | None = None,
    ) -> ir.Value:
        """Return a tensor of one value in each place; not of a half type, which older opsets lack.

        `known_shape` is what is known of `shape`.
        """
        dtype = ir.DataType(element_type)
        tensor = _tensor_attribute(dtype, (1,), np.array([value]).astype(dtype.numpy()).tobytes())
        return self.op("ConstantOfShape", shape, name=name, shape=known_shape, element_type=element_type, value=tensor)

    def zeros(self, shape: ir.Value, element_type: int) -> ir.Value:
        """Return a tensor of zeros of any type, half types included."""
        return self.cast(self.filled(shape, 0.0, compute_type(element_type)), element_type)

    # Operators whose form depends on the opset

    def cast(
        self,
        value: ir.Value,
        element_type: int,
        current: int | None = None,
        *,
        name: str = "",
        shape: Sequence[Dim] | None = None,
    ) -> ir.Value:
        """Return the value in another element type; `current` is its own where nothing tells."""
        current = self._known_type(value) or current
        if current == element_type:
            return value
        if ir.DataType.BFLOAT16 in (element_type, current) and self.opset < _BFLOAT16_OPSET:
            self.refuse_opset(_BFLOAT16_OPSET, "its type is bfloat16, which the standard operators have")
        return self.op("Cast", value, name=name, shape=shape, element_type=element_type, to=int(element_type))

    def in_float(self, value: ir.Value, *, name: str = "") -> ir.Value:
        """Return a value of a half type in float, any other one as it is."""
        info = self.info(value)
        if info.element_type not in HALF_TYPES:
            return value
        return self.cast(value, ir.DataType.FLOAT, name=name, shape=info.shape)

    def reshape(
        self, value: ir.Value, target: ir.Value, *, name: str = "", shape: Sequence[Dim] | None = None
    ) -> ir.Value:
        """Reshape to lengths of which a 0 is one; opsets before 14 cannot say it where they are not known."""
        tensor = constant_tensor(target)
        may_be_zero = not isinstance(tensor, ir.Tensor) or 0 in tensor.numpy()
        if may_be_zero and self.opset >= _ALLOWZERO_OPSET:
            return self.op("Reshape", value, target, name=name, shape=shape, allowzero=1)
        return self.op("Reshape", value, target, name=name, shape=shape)

    def reduce(
        self,
        op_type: str,
        value: ir.Value,
        axes: Sequence[int],
        *,
        keepdims: bool,
        name: str = "",
        shape: Sequence[Dim] | None = None,
    ) -> ir.Value:
        """Reduce over axes that are known."""
        return self._over_axes(op_type, value, axes, name=name, shape=shape, keepdims=int(keepdims))

    def sum_over(self, value: ir.Value, axes: ir.Value, *, keepdims: bool, noop_with_empty_axes: bool) -> ir.Value:
        """Sum over axes that are a vector; before `RUN_TIME_AXES_OPSET` a constant."""
        if self.opset >= RUN_TIME_AXES_OPSET:
            return self.op(
                "ReduceSum", value, axes, keepdims=int(keepdims), noop_with_empty_axes=int(noop_with_empty_axes)
            )
        static = self.constant_ints(axes, "axes")
        if not static and noop_with_empty_axes:
            return self.op("Identity", value)
        axes_attribute: dict[str, Any] = {"axes": static} if static else {}
        return self.op("ReduceSum", value, keepdims=int(keepdims), **axes_attribute)

    def constant_ints(self, value: ir.Value, name: str) -> list[int]:
        """Return the elements of an int64 vector that must be a constant in this opset."""
        tensor = constant_tensor(value)
        if tensor is None:
            self.refuse_opset(RUN_TIME_AXES_OPSET, f"{name} is computed at run time, which can be written")
        return [int(element) for element in tensor.numpy().reshape(-1)]

    def unsqueeze(self, value: ir.Value, axis: int, *, name: str = "", shape: Sequence[Dim] | None = None) -> ir.Value:
        """Add an axis of length 1."""
        return self._over_axes("Unsqueeze", value, [axis], name=name, shape=shape)

    def squeeze(self, value: ir.Value, axis: int, *, name: str = "", shape: Sequence[Dim] | None = None) -> ir.Value:
        """Remove an axis of length 1."""
        return self._over_axes("Squeeze", value, [axis], name=name, shape=shape)

    def _over_axes(self, op_type: str, value: ir.Value, axes: Sequence[int], **arguments: Any) -> ir.Value:
        if self.opset >= _AXES_AS_INPUT_OPSETS.get(op_type, _AXES_AS_INPUT_OPSET):
            return self.op(op_type, value, self.ints(*axes), **arguments)
        return self.op(op_type, value, axes=list(axes), **arguments)

    # Shapes and their parts

    def shape(self, value: ir.Value, *, name: str = "") -> ir.Value:
        """Return a value's shape as an int64 vector."""
        return self.op("Shape", value, name=name, shape=(None,) if name else None, element_type=ir.DataType.INT64)

    def size(self, value: ir.Value) -> ir.Value:
        """Return a value's number of elements as an int64 vector of one."""
        return self.product(self.shape(value))

    def product(self, lengths: ir.Value) -> ir.Value:
        """Return the product of an int64 vector as a vector of one."""
        return self.reduce("ReduceProd", lengths, [0], keepdims=True)

    def part(self, vector: ir.Value, start: int, end: int | None = None) -> ir.Value:
        """Return ``vector[start:end]``."""
        return self.op("Slice", vector, self.ints(start), self.ints(INT64_MAX if end is None else end), self.ints(0))

    def count_to(self, length: ir.Value) -> ir.Value:
        """Return the numbers from 0 to below a vector of one as an int64 vector."""
        start, step = (self.constant(each, ir.DataType.INT64) for each in (0, 1))
        return self.op("Range", start, self.squeeze(length, 0), step)

    def joined(self, *vectors: ir.Value) -> ir.Value:
        """Return vectors as one."""
        return self.op("Concat", *vectors, axis=0)

    def flat(self, value: ir.Value) -> ir.Value:
        """Return the elements as a vector."""
        return self.op("Reshape", value, self.ints(-1))

    # Choices

    def where(self, condition: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Choose between two values of one type."""
        return self.op("Where", condition, a, b, element_type=self.element_type(a, b))

    def compare(self, op_type: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """Compare two values."""
        return self.op(op_type, a, b, element_type=ir.DataType.BOOL)


def _attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, ir.Attr):
        return value
    if isinstance(value, int):
        return _shared_attribute(name, value)
    return ir.convenience.convert_attribute(name, value)


@functools.lru_cache(maxsize=1024, typed=True)
def _shared_attribute(name: str, value: int) -> ir.Attr:
    return ir.convenience.convert_attribute(name, value)


@functools.lru_cache(maxsize=1024)
def _tensor_attribute(element_type: ir.DataType, shape: tuple[int, ...], content: bytes) -> ir.Attr:
    # An array on bytes cannot be written to, so that models can share it.
    array: np.ndarray = np.ndarray(shape, element_type.numpy(), content)
    return ir.AttrTensor("value", ir.Tensor(array, dtype=element_type))
