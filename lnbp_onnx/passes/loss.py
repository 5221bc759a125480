# SPDX-License-Identifier: Apache-2.0
"""A loss on an output of a model."""

from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError, argument
from lnbp_onnx.graphs.inference import Functions, infer
from lnbp_onnx.graphs.names import claim, computed_value, names_in, unique_names
from lnbp_onnx.graphs.opsets import opset_to_train_in
from lnbp_onnx.graphs.writer import FLOATS, Writer, compute_type
from lnbp_onnx.node import Dim, TensorInfo, format_shape
from lnbp_onnx.spec import type_name
from lnbp_onnx.training.losses import cross_entropy, mean_of_elements
from lnbp_onnx.training.names import LossName

LOSS = "loss"
"""The name of the new output."""

# What makes probabilities of scores, which the losses are computed from.
_PROBABILITIES = {LossName.BCE: "Sigmoid", LossName.CROSS_ENTROPY: "Softmax"}


@dataclass
class LossResult(ir.passes.PassResult):
    """What was added: an input, and the output `LOSS`."""

    label: str


class LossPass(ir.passes.InPlacePass):
    """Append the mean of a loss to the outputs, as `LOSS`, and its label to the inputs; `lnbp_onnx.gradient` says how.

    Taken: values of a floating type and a known rank that a node of the main graph computes. A loss of scores takes
    those that a Sigmoid or Softmax made the probabilities of.

    Refused: all others, and a model that has the name of the label or of the loss.
    """

    def __init__(self, loss: LossName, *, of: str, label: str, class_axis: int = 1) -> None:
        """Take what `lnbp_onnx.gradient` does."""
        self._loss = loss
        self._of = of
        self._label = label
        self._class_axis = class_axis

    def call(self, model: ir.Model) -> LossResult:
        """Rewrite the model in place.

        Raises:
            InvalidModelError: As `lnbp_onnx.gradient`.
        """
        opset = opset_to_train_in(model)
        graph = model.graph
        infos = infer(graph, Functions(model.functions.values()), model.opset_imports)
        output = computed_value(graph, self._of, argument("of"))
        element_type, shape = self._described(infos[output])
        rank = len(shape)
        class_axis = self._class_axis % rank if -rank <= self._class_axis < rank else None
        is_classes = self._loss is LossName.CROSS_ENTROPY
        if is_classes and class_axis not in (1, rank - 1):
            allowed = " or ".join(str(axis) for axis in sorted({1, rank - 1}))
            raise InvalidModelError(
                f"{argument('class_axis')} is {self._class_axis}; of {self._of!r}, which has shape "
                f"{format_shape(shape)}, it must be {allowed} (transpose the output)."
            )
        unique_name = unique_names(names_in(graph))
        claim(LOSS, unique_name, f"The model has the name {LOSS!r} already, which the loss needs (rename it).")
        refusal = f"{argument('label')}: the model has the name {self._label!r} already (choose another one)."
        claim(self._label, unique_name, refusal)
        label_shape = [dim for axis, dim in enumerate(shape) if axis != class_axis] if is_classes else shape
        label = ir.Value(
            name=self._label,
            type=ir.TensorType(ir.DataType.INT64 if is_classes else element_type),
            shape=ir.Shape(label_shape),
        )
        graph.inputs.append(label)
        w = Writer("The loss", opset, unique_name, infos, prefix=f"{LOSS}/", error=InvalidModelError)
        scores = w.cast(self._scores(output, class_axis, rank), compute_type(element_type), element_type)
        if class_axis is not None and is_classes:
            loss = cross_entropy(w, scores, label, class_axis, rank)
        else:
            loss = mean_of_elements(w, self._loss, scores, w.cast(label, compute_type(element_type)))
        loss.name, loss.shape = LOSS, ir.Shape(())
        graph.extend(w.nodes)
        graph.outputs.append(loss)
        return LossResult(model, True, self._label)

    def _described(self, info: TensorInfo) -> tuple[ir.DataType, tuple[Dim, ...]]:
        """Return the element type and the shape of the output, which must be such that it can have this loss."""
        if info.element_type is None or info.element_type not in FLOATS:
            found = "unknown" if info.element_type is None else type_name(info.element_type)
            raise InvalidModelError(
                f"{argument('of')}: the element type of {self._of!r} is {found}, and a loss needs float, double, "
                "float16 or bfloat16 (name an output of such a type, or add its value_info to the model)."
            )
        if info.shape is None:
            raise InvalidModelError(
                f"{argument('of')}: the rank of {self._of!r} is not known, and the label needs it (add its value_info "
                "to the model)."
            )
        if self._loss is LossName.CROSS_ENTROPY and len(info.shape) < 2:
            raise InvalidModelError(
                f"{argument('of')}: {self._of!r} has shape {format_shape(info.shape)}; the scores of a cross-entropy "
                "have an axis of rows and one of classes (name such an output, or take bce for one score of each row)."
            )
        return ir.DataType(info.element_type), tuple(info.shape)

    def _scores(self, output: ir.Value, class_axis: int | None, rank: int) -> ir.Value:
        """Return the scores that an output gives the probabilities of, where it does."""
        node = output.producer()
        if node is None or node.domain != "" or node.op_type != _PROBABILITIES.get(self._loss):
            return output
        if node.op_type == "Softmax" and node.attributes.get_int("axis", -1) % rank != class_axis:
            return output
        scores = node.inputs[0]
        return output if scores is None else scores
