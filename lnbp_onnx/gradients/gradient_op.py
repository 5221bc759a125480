# SPDX-License-Identifier: Apache-2.0
"""Reading one operator of a model, beside writing the gradients of its inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir

from lnbp_onnx.graphs.inference import constant_tensor
from lnbp_onnx.graphs.operators import name_of
from lnbp_onnx.node import TensorInfo
from lnbp_onnx.training_ops import REWRITINGS, TrainingOp
from lnbp_onnx.training_ops.broadcasting import summed_to

Gradients: TypeAlias = Sequence[ir.Value | None]
"""The gradients of a node's inputs, None for one that has none or is not wanted. Trailing ones may be left out."""

Rule: TypeAlias = Callable[["GradientOp"], Gradients]

_NEWER_OPSET = "convert the model with onnx.version_converter"


class GradientOp(TrainingOp):
    """One node of the forward graph, and the writer of the gradients of its inputs.

    Attributes:
        node: The forward node, which stays.
        deltas: The gradient of each output of the node, None where nothing depends on the output.
    """

    def __init__(
        self,
        node: ir.Node,
        deltas: Sequence[ir.Value | None],
        wanted: Sequence[bool],
        infos: Mapping[ir.Value, TensorInfo],
        opset: int,
        unique_name: Callable[[str], str],
    ) -> None:
        super().__init__(node, infos, opset, unique_name, _NEWER_OPSET)
        self.deltas = deltas
        self._wanted = wanted

    @property
    def dy(self) -> ir.Value:
        """The gradient of the node's first output, which must be the only one that has one."""
        if any(delta is not None for delta in self.deltas[1:]):
            self.refuse("the gradient comes through an output other than its first, which is not covered")
        delta = self.deltas[0]
        assert delta is not None
        return delta

    def wants(self, index: int) -> bool:
        """Return whether the gradient of this input is wanted."""
        return index < len(self._wanted) and self._wanted[index]

    def input(self, index: int) -> ir.Value:
        """Return an input, which must be there."""
        value = self.optional_input(index)
        if value is None:
            self.refuse(f"its input {index} is missing (connect it)")
        return value

    def refuse_gradient(self, *indices: int) -> None:
        """Refuse the node where the gradient of one of these inputs is wanted."""
        for index in indices:
            if self.wants(index):
                self.refuse(f"the gradient of its input {index}, {self.input(index).name!r}, is not covered")

    def rank(self, value: ir.Value) -> int:
        """Return the number of a value's axes, which must be known."""
        shape = self.info(value).shape
        if shape is None:
            self.refuse(f"the rank of {value.name!r} is not known; it must be (add its value_info to the model)")
        return len(shape)

    def number(self, value: float) -> ir.Value:
        """Return a scalar of the type of the node's output."""
        return self.scalar_like(value, self.node.outputs[0])

    def known_tensor(self, value: ir.Value) -> ir.TensorProtocol | None:
        """Return the tensor of a constant, None for what is none; external data is not looked at."""
        return constant_tensor(value)

    def static_ints(self, value: ir.Value, name: str) -> list[int]:
        """Return the elements of an input that must be a constant."""
        tensor = self.known_tensor(value)
        if tensor is None:
            self.refuse(f"its input {name} is computed at run time; it must be a constant (fold the constants)")
        return [int(each) for each in tensor.numpy().reshape(-1)]

    def shape_of(self, value: ir.Value) -> ir.Value:
        """Return the shape of a forward value as a vector: a constant where all lengths are known."""
        shape = self.info(value).shape
        if shape is not None and all(isinstance(dim, int) for dim in shape):
            return self.ints(*(dim for dim in shape if isinstance(dim, int)))
        return self.shape(value)

    def zeros_like(self, value: ir.Value) -> ir.Value:
        """Return zeros of the type and shape of a forward value."""
        return self.zeros(self.shape_of(value), self.element_type(value))

    def shaped_like(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """Return a gradient in the shape of a forward value with as many elements."""
        return self.reshape(value, self.shape_of(like), shape=self.info(like).shape)

    def unbroadcast(self, value: ir.Value, operand: ir.Value) -> ir.Value:
        """Return a gradient in the shape of the node's output, summed to that of an input which was broadcast to it."""
        operand_shape, result_shape = self.info(operand).shape, self.info(self.node.outputs[0]).shape
        return summed_to(self, value, operand, operand_shape, result_shape)

    def training_op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        like: Sequence[ir.Value | None],
        **attributes: Any,
    ) -> Gradients:
        """Write what an operator of ONNX Runtime training computes.

        Args:
            op_type: The operator, of `lnbp_onnx.training_ops.REWRITINGS`.
            *inputs: Its inputs.
            like: For each of its outputs a value of the same type and shape, None for one that is not wanted.
            **attributes: Its attributes, beside those of the forward node.
        """
        outputs = [ir.Value(name="" if value is None else f"{value.name}.grad") for value in like]
        infos = dict(self._infos)
        for value, output in zip(like, outputs, strict=True):
            if value is not None:
                infos[output] = self.info(value)
        given = {name: attribute for name, attribute in self.node.attributes.items() if name not in attributes}
        added = [ir.convenience.convert_attribute(*each) for each in attributes.items()]
        # The forward node keeps its name.
        name = self._unique_name(f"{name_of(self.node)}/{op_type}")
        node = ir.Node("", op_type, inputs, [*given.values(), *added], outputs=outputs, name=name)
        op = TrainingOp(node, infos, self.opset, self._unique_name, _NEWER_OPSET)
        op.subject, op.nodes, op.steps, op.constants = self.subject, self.nodes, self.steps, self.constants
        try:
            results = REWRITINGS[op_type](op)
        finally:
            for index in range(len(inputs)):
                node.replace_input_with(index, None)
        return [None if value is None else result for value, result in zip(like, results, strict=False)]

    def if_wanted(self, *indices: int) -> list[ir.Value | None]:
        """Return these inputs, None for those whose gradient is not wanted."""
        return [self.input(index) if self.wants(index) else None for index in indices]
