# SPDX-License-Identifier: Apache-2.0
"""The optimizers: their settings, and one step of each in standard operators."""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from lnbp_onnx.errors import argument
from lnbp_onnx.graphs.names import matches
from lnbp_onnx.graphs.writer import Writer
from lnbp_onnx.training.names import OptimizerName


@dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """What all optimizers have.

    Attributes:
        lr: The learning rate that a training step uses where it is fed no other.
        weight_decay: How much of the weights decays.
        no_weight_decay: Names of parameters whose weights do not decay, as the shell's patterns: ``("*.bias",)``.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    no_weight_decay: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.no_weight_decay, str):
            raise ValueError(
                f"{argument('no_weight_decay')} is {self.no_weight_decay!r}; it must be a sequence of patterns."
            )
        _check_at_least_0("lr", self.lr)
        _check_at_least_0("weight_decay", self.weight_decay)

    @property
    @abc.abstractmethod
    def states(self) -> tuple[str, ...]:
        """What the states of a parameter are called, after its name and a dot."""

    def decays(self, name: str) -> bool:
        """Return whether the weights of the parameter of this name decay."""
        return self.weight_decay != 0.0 and not any(matches(name, pattern) for pattern in self.no_weight_decay)

    def unmatched(self, names: Sequence[str]) -> list[str]:
        """Return the patterns of `no_weight_decay` that match none of the names."""
        return [pattern for pattern in self.no_weight_decay if not any(matches(name, pattern) for name in names)]

    @abc.abstractmethod
    def numbers(
        self, w: Writer, learning_rate: ir.Value, step: ir.Value, element_type: ir.DataType
    ) -> dict[str, ir.Value]:
        """Write the scalars that the parameters share.

        Args:
            w: Writes the nodes.
            learning_rate: A scalar in float.
            step: The number of the step, 1 for the first, a scalar in int64.
            element_type: The type of the scalars: that of the parameters.
        """

    @abc.abstractmethod
    def update(
        self,
        w: Writer,
        parameter: ir.Value,
        gradient: ir.Value,
        states: Sequence[ir.Value],
        numbers: Mapping[str, ir.Value],
        decays: bool,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """Write one step of one parameter; all tensors and numbers are of one type.

        Returns:
            The parameter's new value, and those of its states.
        """


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay, as ``torch.optim.AdamW`` defines it; its states are exp_avg and exp_avg_sq.

    With the gradient g of a parameter p at step t::

        p -= lr * weight_decay * p
        exp_avg += (1 - betas[0]) * (g - exp_avg)
        exp_avg_sq += (1 - betas[1]) * (g * g - exp_avg_sq)
        p -= lr / (1 - betas[0]**t) * exp_avg / (sqrt(exp_avg_sq / (1 - betas[1]**t)) + eps)

    Attributes:
        lr: The learning rate that a training step uses where it is fed no other.
        betas: How much of the averages of the gradient and of its square stays at a step; at least 0, below 1.
        eps: What is added to the root.
        weight_decay: How much of the weights decays.
        no_weight_decay: Names of parameters whose weights do not decay, as the shell's patterns: ``("*.bias",)``.

    Raises:
        ValueError: Where one of them is out of its range.

    Example:
        >>> import lnbp_onnx
        >>> lnbp_onnx.AdamW(lr=3e-4, no_weight_decay=("*.bias",)).states
        ('exp_avg', 'exp_avg_sq')
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"{argument('betas')} is {self.betas}; it must be two numbers of at least 0 and below 1.")
        _check_at_least_0("eps", self.eps)

    @property
    def states(self) -> tuple[str, ...]:
        """What the states of a parameter are called, after its name and a dot."""
        return ("exp_avg", "exp_avg_sq")

    def numbers(
        self, w: Writer, learning_rate: ir.Value, step: ir.Value, element_type: ir.DataType
    ) -> dict[str, ir.Value]:
        """Write 1 - betas, the step size and eps with the corrections of the first steps, and what is left by decay.

        Both the step and eps are multiplied by the correction of the root, which takes no operation on a tensor. In
        double: in float 1 - betas[1]**t has few digits in the first steps.
        """

        def number(value: float) -> ir.Value:
            return w.constant(value, ir.DataType.DOUBLE)

        one, learning_rate = number(1.0), w.cast(learning_rate, ir.DataType.DOUBLE)
        step = w.cast(step, ir.DataType.DOUBLE)
        mean, square = (w.op("Sub", one, w.op("Pow", number(beta), step)) for beta in self.betas)
        root = w.op("Sqrt", square)
        numbers = {
            "mean_rate": w.constant(1 - self.betas[0], element_type),
            "square_rate": w.constant(1 - self.betas[1], element_type),
            "step_size": w.cast(w.op("Mul", w.op("Div", learning_rate, mean), root), element_type),
            "eps": w.cast(w.op("Mul", number(self.eps), root), element_type),
        }
        if self.weight_decay:
            kept = w.op("Sub", one, w.op("Mul", learning_rate, number(self.weight_decay)))
            numbers["kept"] = w.cast(kept, element_type)
        return numbers

    def update(
        self,
        w: Writer,
        parameter: ir.Value,
        gradient: ir.Value,
        states: Sequence[ir.Value],
        numbers: Mapping[str, ir.Value],
        decays: bool,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """Write the class's formulas."""
        mean, square = states
        mean = _towards(w, mean, gradient, numbers["mean_rate"])
        square = _towards(w, square, w.op("Mul", gradient, gradient), numbers["square_rate"])
        root = w.op("Add", w.op("Sqrt", square), numbers["eps"])
        if decays:
            parameter = w.op("Mul", parameter, numbers["kept"])
        parameter = w.op("Sub", parameter, w.op("Div", w.op("Mul", mean, numbers["step_size"]), root))
        return parameter, [mean, square]


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Gradient descent, as ``torch.optim.SGD`` defines it; with a momentum its state is momentum_buffer.

    With the gradient g of a parameter p::

        g += weight_decay * p
        momentum_buffer = momentum * momentum_buffer + (1 - dampening) * g        at the first step: g
        p -= lr * momentum_buffer          with nesterov: lr * (g + momentum * momentum_buffer)

    Attributes:
        lr: The learning rate that a training step uses where it is fed no other.
        momentum: How much of the momentum stays at a step.
        dampening: How much of the gradient does not go into the momentum; from the second step on.
        nesterov: Whether the step is that of the momentum after it.
        weight_decay: How much of the weights is added to the gradient.
        no_weight_decay: Names of parameters whose weights do not decay, as the shell's patterns: ``("*.bias",)``.

    Raises:
        ValueError: Where one of them is out of its range, or `nesterov` has no momentum, or a dampening.

    Example:
        >>> import lnbp_onnx
        >>> lnbp_onnx.SGD(lr=0.1, momentum=0.9).states
        ('momentum_buffer',)
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least_0("momentum", self.momentum)
        if not math.isfinite(self.dampening):
            raise ValueError(f"{argument('dampening')} is {self.dampening}; it must be finite.")
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError(
                f"{argument('nesterov')} needs {argument('momentum')} above 0 and {argument('dampening')} of 0."
            )

    @property
    def states(self) -> tuple[str, ...]:
        """What the states of a parameter are called, after its name and a dot."""
        return ("momentum_buffer",) if self.momentum else ()

    def numbers(
        self, w: Writer, learning_rate: ir.Value, step: ir.Value, element_type: ir.DataType
    ) -> dict[str, ir.Value]:
        """Write the learning rate and the settings."""
        numbers = {"lr": w.cast(learning_rate, element_type)}
        if self.weight_decay:
            numbers["weight_decay"] = w.constant(self.weight_decay, element_type)
        if self.momentum:
            numbers["momentum"] = w.constant(self.momentum, element_type)
        if self.momentum and self.dampening:
            is_first = w.compare("Equal", step, w.constant(1, ir.DataType.INT64))
            rates = w.constant(1.0, element_type), w.constant(1 - self.dampening, element_type)
            numbers["rate"] = w.where(is_first, *rates)
        return numbers

    def update(
        self,
        w: Writer,
        parameter: ir.Value,
        gradient: ir.Value,
        states: Sequence[ir.Value],
        numbers: Mapping[str, ir.Value],
        decays: bool,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """Write the class's formulas."""
        if decays:
            gradient = w.op("Add", gradient, w.op("Mul", parameter, numbers["weight_decay"]))
        step, new_states = gradient, []
        if self.momentum:
            added = w.op("Mul", gradient, numbers["rate"]) if self.dampening else gradient
            step = w.op("Add", w.op("Mul", states[0], numbers["momentum"]), added)
            new_states = [step]
        if self.nesterov:
            step = w.op("Add", gradient, w.op("Mul", step, numbers["momentum"]))
        return w.op("Sub", parameter, w.op("Mul", step, numbers["lr"])), new_states


KINDS: Mapping[OptimizerName, type[Optimizer]] = MappingProxyType({OptimizerName.ADAMW: AdamW, OptimizerName.SGD: SGD})
"""The optimizers by name."""


def _towards(w: Writer, value: ir.Value, target: ir.Value, rate: ir.Value) -> ir.Value:
    """Write a value that has gone a part of the way to another one."""
    return w.op("Add", value, w.op("Mul", w.op("Sub", target, value), rate))


def _check_at_least_0(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{argument(name)} is {value}; it must be finite and not negative.")
