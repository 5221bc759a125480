# SPDX-License-Identifier: Apache-2.0
"""Reading one operator of ONNX Runtime training, beside writing the standard operators that take its place."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.graphs.operators import name_of
from lnbp_onnx.graphs.writer import Writer, compute_type
from lnbp_onnx.node import TensorInfo, format_shape

Outputs: TypeAlias = Sequence[ir.Value | None]
"""The values that take the place of a node's outputs, None for one that is not wanted."""


class TrainingOp(Writer):
    """One node, and the writer of what replaces it.

    Attributes:
        node: The node that is replaced.
        updates: For each input that the node changes in place: the input, and its value after the change.
    """

    def __init__(
        self,
        node: ir.Node,
        infos: Mapping[ir.Value, TensorInfo],
        opset: int,
        unique_name: Callable[[str], str],
        newer_opset: str = "build the training graph anew, from a model of opset 13 or newer",
    ) -> None:
        label = name_of(node)
        super().__init__(
            f"{node.op_type} node {label!r}",
            opset,
            unique_name,
            infos,
            prefix=f"{label}/",
            error=InvalidModelError,
            newer_opset=newer_opset,
            metadata=node.metadata_props,
        )
        self.node = node
        self.updates: list[tuple[ir.Value, ir.Value]] = []

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

    def static_shape(self, value: ir.Value, name: str, first_axis: int = 0) -> list[int]:
        """Return the lengths of a value's axes from `first_axis` on, which must be known."""
        shape = self.info(value).shape
        if shape is None or any(not isinstance(dim, int) for dim in shape[first_axis:]):
            self.refuse(
                f"the shape of {name} is {'not known' if shape is None else format_shape(shape)}; its lengths from "
                f"axis {first_axis} on must be known (add its value_info to the model, or fix the dimensions)"
            )
        return [dim for dim in shape[first_axis:] if isinstance(dim, int)]

    def computed(self, *values: ir.Value) -> list[ir.Value]:
        """Return values of one floating type in the type to compute in: half types in float."""
        shared = self.element_type(*values)
        return [self.cast(value, compute_type(shared), shared) for value in values]
