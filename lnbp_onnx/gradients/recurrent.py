# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers as loops over their steps."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp

_ACTIVATIONS = ("Relu", "Sigmoid", "Softplus", "Softsign", "Tanh")
"""Those without numbers of their own."""

_BACKWARDS: Mapping[str, Sequence[int]] = MappingProxyType({"forward": [0], "reverse": [1], "bidirectional": [0, 1]})
"""For each direction of a layer whether it is from the last step to the first."""

_Step = Callable[[ir.Value, Sequence[ir.Value]], Sequence[ir.Value]]
"""Makes the new states of what the inputs give to a step, and of the states."""


def lstm(w: TrainingOp) -> Outputs:
    """With (i, o, f) = Sigmoid and c~ = Tanh of X W' + H R' + biases: C = f C + i c~, H = o Tanh(C); by a Scan."""
    if w.attribute("input_forget", 0):
        w.refuse("its attribute input_forget is 1; 0 is covered")

    def step_of(layer: "_Layer") -> _Step:
        sigmoid, tanh, last = layer.activations("Sigmoid", "Tanh", "Tanh")
        peepholes = [None] * 3 if layer.peepholes is None else layer.split(layer.peepholes, 3, axis=0)

        def step(gates: ir.Value, states: Sequence[ir.Value]) -> Sequence[ir.Value]:
            hidden, cell = states
            gates = w.op("Add", gates, w.op("MatMul", hidden, layer.recurrent))
            i, o, f, c = layer.split(gates, 4)

            def gate(value: ir.Value, peephole: ir.Value | None, seen: ir.Value) -> ir.Value:
                seen_by = value if peephole is None else w.op("Add", value, w.op("Mul", seen, peephole))
                return w.op(sigmoid, seen_by)

            kept = w.op("Mul", gate(f, peepholes[2], cell), cell)
            new = w.op("Add", kept, w.op("Mul", gate(i, peepholes[0], cell), w.op(tanh, c)))
            return w.op("Mul", gate(o, peepholes[1], new), w.op(last, new)), new

        return step

    return _layers(w, 4, ["initial_h", "initial_c"], step_of)


def gru(w: TrainingOp) -> Outputs:
    """With (z, r) = Sigmoid and h~ = Tanh of X W' + H R' + biases, in h~ with r: H = (1 - z) h~ + z H; by a Scan."""
    resets_before = not w.attribute("linear_before_reset", 0)

    def step_of(layer: "_Layer") -> _Step:
        sigmoid, tanh = layer.activations("Sigmoid", "Tanh")
        of_gates = w.op("Slice", layer.recurrent, w.ints(0), w.ints(2 * layer.size), w.ints(1))
        of_hidden = w.op("Slice", layer.recurrent, w.ints(2 * layer.size), w.ints(3 * layer.size), w.ints(1))

        def step(gates: ir.Value, states: Sequence[ir.Value]) -> Sequence[ir.Value]:
            (hidden,) = states
            x_z, x_r, x_h = layer.split(gates, 3)
            h_z, h_r = layer.split(w.op("MatMul", hidden, of_gates), 2)
            z, r = w.op(sigmoid, w.op("Add", x_z, h_z)), w.op(sigmoid, w.op("Add", x_r, h_r))
            if resets_before:
                reset = w.op("MatMul", w.op("Mul", r, hidden), of_hidden)
            else:
                reset = w.op("MatMul", hidden, of_hidden)
                if layer.last_bias is not None:
                    reset = w.op("Add", reset, layer.last_bias)
                reset = w.op("Mul", r, reset)
            new = w.op(tanh, w.op("Add", x_h, reset))
            kept = w.op("Mul", z, hidden)
            return (w.op("Add", w.op("Mul", w.op("Sub", w.scalar_like(1.0, z), z), new), kept),)

        return step

    return _layers(w, 3, ["initial_h"], step_of, keeps_last_bias=not resets_before)


def rnn(w: TrainingOp) -> Outputs:
    """H = Tanh(X W' + H R' + biases); by a Scan."""

    def step_of(layer: "_Layer") -> _Step:
        (tanh,) = layer.activations("Tanh")

        def step(gates: ir.Value, states: Sequence[ir.Value]) -> Sequence[ir.Value]:
            return (w.op(tanh, w.op("Add", gates, w.op("MatMul", states[0], layer.recurrent))),)

        return step

    return _layers(w, 1, ["initial_h"], step_of)


class _Layer:
    """One direction of a recurrent layer.

    Attributes:
        size: The number of elements of a state.
        gates: What the inputs give to each step, with the biases, [length, batch, number of gates * size].
        recurrent: R', [size, number of gates * size].
        last_bias: The last gate's recurrent bias, where it is not among those in `gates`.
        peepholes: P.
    """

    def __init__(
        self, w: TrainingOp, x: ir.Value, number: int, of: int, place: int, size: int, keeps_last_bias: bool
    ) -> None:
        self._w, self._place, self._of, self.size = w, place, of, size
        weights, recurrent = (self._own(index) for index in (1, 2))
        assert weights is not None
        assert recurrent is not None
        self.recurrent = w.op("Transpose", recurrent, perm=[1, 0])
        self.gates = w.op("MatMul", x, w.op("Transpose", weights, perm=[1, 0]))
        bias, self.last_bias, self.peepholes = self._own(3), None, self._own(7)
        if bias is not None:
            of_input, of_state = self.split(bias, 2, axis=0, size=number * size)
            if keeps_last_bias:
                *others, self.last_bias = self.split(of_state, number, axis=0)
                zeros = w.zeros(w.ints(size), w.element_type(x))
                of_state = w.op("Concat", *others, zeros, axis=0)
            self.gates = w.op("Add", self.gates, w.op("Add", of_input, of_state))

    def _own(self, index: int) -> ir.Value | None:
        """Return the part of an input that is this direction's."""
        value = self._w.optional_input(index)
        if value is None:
            return None
        return self._w.op("Gather", value, self._w.constant(self._place, ir.DataType.INT64), axis=0)

    def split(self, value: ir.Value, number: int, axis: int = -1, size: int | None = None) -> Sequence[ir.Value]:
        """Return the parts of a value, each with a place for each element of a state."""
        return self._w.ops("Split", value, self._w.ints(*[size or self.size] * number), outputs=number, axis=axis)

    def activations(self, *defaults: str) -> list[str]:
        """Return the operators of this direction."""
        given = [str(each) for each in self._w.attribute("activations", None) or defaults * self._of]
        if len(given) != len(defaults) * self._of:
            self._w.refuse(f"it has {len(given)} activations, and needs {len(defaults) * self._of}")
        for name in given:
            if name not in _ACTIVATIONS:
                self._w.refuse(f"its activation {name} is not covered; {', '.join(_ACTIVATIONS)} are")
        return given[self._place * len(defaults) :][: len(defaults)]


def _layers(
    w: TrainingOp,
    number: int,
    initial: Sequence[str],
    step_of: Callable[[_Layer], _Step],
    *,
    keeps_last_bias: bool = False,
) -> Outputs:
    """Write the directions of a layer: Y, and the last of each state."""
    x, _, recurrent = w.inputs("X", "W", "R")
    if w.attribute("clip", None) is not None:
        w.refuse("its attribute clip is not covered (clip what it takes)")
    size = w.attribute("hidden_size", None) or w.static_shape(recurrent, "R", 2)[0]
    batch_first = bool(w.attribute("layout", 0))
    if batch_first:
        x = w.op("Transpose", x, perm=[1, 0, 2])
    mask = _mask(w, x)
    empty = _is_empty(w)
    direction = w.attribute("direction", "forward")
    backwards = _BACKWARDS.get(direction)
    if backwards is None:
        w.refuse(f"its attribute direction is {direction!r}; it must be one of {', '.join(_BACKWARDS)}")
    wholes, lasts = [], []
    for place, is_backwards in enumerate(backwards):
        layer = _Layer(w, x, number, len(backwards), place, size, keeps_last_bias)
        states = [_state(w, x, name, place, size, batch_first) for name in initial]
        whole, *last = _scanned(w, layer.gates, mask, states, step_of(layer), is_backwards)
        if empty is not None:
            last = [w.where(empty, w.scalar_like(0.0, each), each) for each in last]
        wholes.append(w.unsqueeze(whole, 1))
        lasts.append([w.unsqueeze(each, 0) for each in last])
    results = [_joined(w, wholes, 1), *(_joined(w, each, 0) for each in zip(*lasts, strict=True))]
    if batch_first:
        results = [
            w.op("Transpose", value, perm=[2, 0, 1, 3] if index == 0 else [1, 0, 2])
            for index, value in enumerate(results)
        ]
    return results


def _joined(w: TrainingOp, values: Sequence[ir.Value], axis: int) -> ir.Value:
    return values[0] if len(values) == 1 else w.op("Concat", *values, axis=axis)


def _state(w: TrainingOp, x: ir.Value, name: str, place: int, size: int, batch_first: bool) -> ir.Value:
    """Return what a state of a direction begins with, [batch, size]."""
    value = w.optional_input({"initial_h": 5, "initial_c": 6}[name])
    if value is not None:
        return w.op("Gather", value, w.constant(place, ir.DataType.INT64), axis=1 if batch_first else 0)
    shape = w.joined(w.part(w.shape(x), 1, 2), w.ints(size))
    return w.zeros(shape, w.element_type(x))


def _mask(w: TrainingOp, x: ir.Value) -> ir.Value | None:
    """Return whether a step is within the length of a sequence, [length, batch, 1]; None where all are."""
    lengths = w.optional_input(4)
    if lengths is None:
        return None
    steps = w.count_to(w.part(w.shape(x), 0, 1))
    below = w.compare("Less", w.unsqueeze(steps, 1), w.unsqueeze(w.cast(lengths, ir.DataType.INT64), 0))
    return w.unsqueeze(below, 2)


def _is_empty(w: TrainingOp) -> ir.Value | None:
    """Return whether a sequence has no steps, [batch, 1]; None where all have. Its last states are 0."""
    lengths = w.optional_input(4)
    if lengths is None:
        return None
    zero = w.constant(0, ir.DataType.INT64)
    return w.unsqueeze(w.compare("Equal", w.cast(lengths, ir.DataType.INT64), zero), 1)


def _scanned(
    w: TrainingOp,
    gates: ir.Value,
    mask: ir.Value | None,
    states: Sequence[ir.Value],
    step: _Step,
    is_backwards: int,
) -> Sequence[ir.Value]:
    """Return the first state after each step, and each state after the last one."""
    element_type = w.element_type(gates)

    def body(*values: ir.Value) -> Sequence[ir.Value]:
        before, (given, *masks) = values[: len(states)], values[len(states) :]
        after = list(step(given, before))
        shown = after[0]
        if masks:
            zero = w.scalar_like(0.0, shown)
            shown = w.where(masks[0], shown, zero)
            after = [w.where(masks[0], new, old) for new, old in zip(after, before, strict=True)]
        # An output is a value of its own.
        return *after, w.op("Identity", shown)

    scanned = [gates] if mask is None else [gates, mask]
    inputs = [*[(element_type, 2)] * len(states), (element_type, 2), (ir.DataType.BOOL, 2)][
        : len(states) + len(scanned)
    ]
    *last, whole = w.ops(
        "Scan",
        *states,
        *scanned,
        outputs=len(states) + 1,
        element_type=[element_type] * (len(states) + 1),
        body=w.graph(inputs, body),
        num_scan_inputs=len(scanned),
        scan_input_directions=[is_backwards] * len(scanned),
        scan_output_directions=[is_backwards],
    )
    return whole, *last


RECURRENT: Mapping[str, Callable[[TrainingOp], Outputs]] = MappingProxyType({"GRU": gru, "LSTM": lstm, "RNN": rnn})
"""The recurrent layers that are written out."""
