# SPDX-License-Identifier: Apache-2.0
"""From the gradients of a model's parameters to their new values."""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError, argument, written
from lnbp_onnx.graphs.inference import Functions, declare, infer
from lnbp_onnx.graphs.names import claim, computed_value, listed, names_in, unique_names
from lnbp_onnx.graphs.opsets import opset_to_train_in
from lnbp_onnx.graphs.writer import FLOATS, Writer, compute_type
from lnbp_onnx.training.optimizers import Optimizer

LEARNING_RATE = "learning_rate"
STEP = "step"
ACCUMULATED = "accumulated"
"""The state that gradients are added up in, after the parameter's name and a dot."""

_GRADIENT = ".grad"
_UPDATED = ".updated"

# What torch adds to the norm that it divides by.
_CLIP_EPSILON = 1e-6


@dataclass
class TrainingStepResult(ir.passes.PassResult):
    """What was added.

    Attributes:
        parameters: The names of the parameters that are updated.
        states: The names of the states, the inputs that begin at zero.
    """

    parameters: tuple[str, ...]
    states: tuple[str, ...]


class TrainingStepPass(ir.passes.InPlacePass):
    """Put new values of the parameters and of the optimizer's state in the place of the parameters' gradients.

    Taken: initializers NAME, inputs or not, for which the model has an output ``NAME.grad``, as `GradientPass` and
    ``export_joint`` write them.

    Left alone: all other outputs, gradients of other inputs among them. The loss becomes an output where it is none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        loss: str | None = None,
        clip_norm: float | None = None,
        accumulation_steps: int = 1,
    ) -> None:
        """Take what `lnbp_onnx.training_step` does.

        Args:
            optimizer: As there.
            loss: The name of the loss, None where it is not known.
            clip_norm: As there.
            accumulation_steps: As there.

        Raises:
            ValueError: Where a number is out of its range.
        """
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise ValueError(f"{argument('clip_norm')} is {clip_norm}; it must be finite and above 0.")
        if not isinstance(accumulation_steps, int) or accumulation_steps < 1:
            raise ValueError(
                f"{argument('accumulation_steps')} is {accumulation_steps}; it must be an integer of at least 1."
            )
        self._optimizer = optimizer
        self._loss = loss
        self._clip_norm = clip_norm
        self._accumulation_steps = accumulation_steps

    def call(self, model: ir.Model) -> TrainingStepResult:
        """Rewrite the model in place.

        Raises:
            InvalidModelError: As `lnbp_onnx.training_step`; the model is left half-rewritten then.
        """
        opset = opset_to_train_in(model)
        if self._loss is not None:
            _bring_out(model, self._loss)
        step = _Step(model.graph, opset, self._optimizer)
        step.write(self._clip_norm, self._accumulation_steps)
        return TrainingStepResult(model, True, tuple(step.parameters), tuple(step.states))


def _bring_out(model: ir.Model, name: str) -> None:
    """Make a value an output, if it is none."""
    value = computed_value(model.graph, name, argument("of"))
    if not value.is_graph_output():
        declare(value, infer(model.graph, Functions(model.functions.values()), model.opset_imports)[value])
        model.graph.outputs.append(value)


class _Step:
    """The work on one graph."""

    def __init__(self, graph: ir.Graph, opset: int, optimizer: Optimizer) -> None:
        self._graph = graph
        self._opset = opset
        self._optimizer = optimizer
        self._unique_name = unique_names(names_in(graph))
        self._nodes: list[ir.Node] = []
        self.parameters: dict[str, ir.Value] = {}
        self.states: dict[str, ir.Shape] = {}

    def write(self, clip_norm: float | None, runs: int) -> None:
        """Write the step; it is taken at the last of this number of runs."""
        gradients = self._take_gradients()
        unmatched = self._optimizer.unmatched(list(gradients))
        if unmatched:
            raise InvalidModelError(
                f"{argument('no_weight_decay')}: {unmatched[0]!r} matches none of the parameters, which are "
                f"{listed(list(gradients))} (correct the pattern)."
            )
        w = self._writer("training_step/")
        learning_rate = self._input(LEARNING_RATE, ir.DataType.FLOAT, 0, self._optimizer.lr)
        step = self._input(STEP, ir.DataType.INT64, 0, 0)
        number = w.op("Add", step, w.constant(1, ir.DataType.INT64))
        updated = {STEP: number}
        is_due = None
        if runs > 1:
            length = w.constant(runs, ir.DataType.INT64)
            is_due = w.compare("Equal", w.op("Mod", number, length), w.constant(0, ir.DataType.INT64))
            number = w.op("Div", w.op("Add", number, w.constant(runs - 1, ir.DataType.INT64)), length)
            gradients, sums = self._accumulated(w, gradients, is_due, runs)
            updated |= sums
        if clip_norm is not None:
            gradients = self._clipped(w, gradients, clip_norm)
        numbers = {
            element_type: self._optimizer.numbers(w, learning_rate, number, element_type)
            for element_type in dict.fromkeys(map(_computed_type, self.parameters.values()))
        }
        new_values = {}
        for name, parameter in self.parameters.items():
            w, element_type = self._writer(f"{name}/"), _computed_type(parameter)
            states = {f"{name}.{state}": self._state(name, state) for state in self._optimizer.states}
            value, new_states = self._optimizer.update(
                w,
                w.cast(parameter, element_type),
                gradients[name],
                list(states.values()),
                numbers[element_type],
                self._optimizer.decays(name),
            )
            new = {name: w.cast(value, _tensor_of(parameter).dtype), **dict(zip(states, new_states, strict=True))}
            if is_due is not None:
                old = {name: parameter, **states}
                new = {each: w.where(is_due, value, old[each]) for each, value in new.items()}
            new_values[name] = new.pop(name)
            updated |= new
        for name, value in (new_values | updated).items():
            self._output(name, value)
        self._graph.extend(self._nodes)

    def _take_gradients(self) -> dict[str, ir.Value]:
        """Return the gradients of the parameters, in the type to compute in; they are no outputs afterwards."""
        gradients = {}
        for output in tuple(self._graph.outputs):
            name = (output.name or "").removesuffix(_GRADIENT)
            parameter = None if name == output.name else self._graph.initializers.get(name)
            if parameter is None:
                continue
            if _tensor_of(parameter).dtype not in FLOATS:
                raise InvalidModelError(
                    f"The model has an output {output.name!r}, and the initializer {name!r} is of type "
                    f"{_tensor_of(parameter).dtype}; float, double, float16 and bfloat16 can be trained (rename the "
                    "output)."
                )
            self.parameters[name] = parameter
            w = self._writer(f"{name}/")
            gradients[name] = w.cast(output, _computed_type(parameter), _tensor_of(parameter).dtype)
            self._graph.outputs.remove(output)
            if not parameter.is_graph_input():
                self._graph.inputs.append(parameter)
        if not gradients:
            raise InvalidModelError(
                "The model has no gradients of parameters: for no initializer NAME is there an output NAME.grad (give "
                f"{argument('of')}, the loss to differentiate, or make the model with "
                f"{written('lnbp_onnx.gradient', 'lnbp-onnx gradient')} or export_joint)."
            )
        return gradients

    def _accumulated(
        self, shared: Writer, gradients: dict[str, ir.Value], is_due: ir.Value, runs: int
    ) -> tuple[dict[str, ir.Value], dict[str, ir.Value]]:
        """Return the means of the gradients of the last runs, and the sums that the next run begins with."""
        means, sums = {}, {}
        for name, gradient in gradients.items():
            w = self._writer(f"{name}/")
            total = w.op("Add", self._state(name, ACCUMULATED), gradient)
            means[name] = w.op("Mul", total, shared.scalar_like(1 / runs, total))
            sums[f"{name}.{ACCUMULATED}"] = w.where(is_due, shared.scalar_like(0.0, total), total)
        return means, sums

    def _clipped(self, w: Writer, gradients: dict[str, ir.Value], clip_norm: float) -> dict[str, ir.Value]:
        """Return the gradients with the norm of all of them at most `clip_norm`, as torch's clip_grad_norm_ does it."""
        types = [_computed_type(parameter) for parameter in self.parameters.values()]
        widest = ir.DataType.DOUBLE if ir.DataType.DOUBLE in types else ir.DataType.FLOAT
        squares = [w.cast(w.op("ReduceSumSquare", each, keepdims=0), widest) for each in gradients.values()]
        norm = w.op("Add", w.op("Sqrt", w.op("Sum", *squares)), w.constant(_CLIP_EPSILON, widest))
        factor = w.op("Min", w.op("Div", w.constant(clip_norm, widest), norm), w.constant(1.0, widest))
        factors = {element_type: w.cast(factor, element_type) for element_type in dict.fromkeys(types)}
        return {
            name: self._writer(f"{name}/").op("Mul", gradient, factors[_computed_type(self.parameters[name])])
            for name, gradient in gradients.items()
        }

    def _state(self, name: str, state: str) -> ir.Value:
        """Return a new input for the state of a parameter, by default a zero that is broadcast.

        So its lengths are open: zeros of the shape of each parameter would make the file as large again.
        """
        parameter, full_name = self.parameters[name], f"{name}.{state}"
        self.states[full_name] = ir.Shape(_tensor_of(parameter).shape.numpy())
        return self._input(full_name, _computed_type(parameter), len(self.states[full_name]), 0)

    def _input(self, name: str, element_type: ir.DataType, rank: int, default: float) -> ir.Value:
        tensor = ir.tensor(np.full([1] * rank, default, element_type.numpy()), name=self._new_name(name))
        shape = ir.Shape([None] * rank)
        value = ir.Value(name=name, type=ir.TensorType(element_type), shape=shape, const_value=tensor)
        self._graph.register_initializer(value)
        self._graph.inputs.append(value)
        return value

    def _output(self, name: str, value: ir.Value) -> None:
        of = self._graph.initializers[name]
        value.name = self._new_name(f"{name}{_UPDATED}")
        value.type, value.shape = of.type, self.states.get(name, of.shape)
        self._graph.outputs.append(value)

    def _new_name(self, name: str) -> str:
        refusal = f"The model has the name {name!r}, which the training step needs (rename it)."
        return claim(name, self._unique_name, refusal)

    def _writer(self, prefix: str) -> Writer:
        w = Writer("The training step", self._opset, self._unique_name, {}, prefix=prefix, error=InvalidModelError)
        w.nodes = self._nodes
        return w


def _tensor_of(parameter: ir.Value) -> ir.TensorProtocol:
    """Return a parameter's default, which has lengths where the input may declare names for them."""
    assert parameter.const_value is not None
    return parameter.const_value


def _computed_type(parameter: ir.Value) -> ir.DataType:
    """Return the type to compute in, and that of the states: float for a half type."""
    return compute_type(_tensor_of(parameter).dtype)
