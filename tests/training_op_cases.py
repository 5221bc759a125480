# SPDX-License-Identifier: Apache-2.0
"""The operators of ONNX Runtime training: a table of cases, each a model of one node with inputs and what is expected.

Expected are, for gradients, central differences in float64 of the forward operator written in NumPy; for the others
NumPy's own result. The same table is what `record_training_ops.py` runs in onnxruntime-training.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Case:
    """One node; an input None is absent, an expected output None is not looked at.

    Attributes:
        name: The case's.
        op_type: The operator.
        inputs: What the node gets.
        expected: What it returns.
        attributes: Its attributes.
        domain: Its domain.
        constants: The inputs, by position, that are initializers.
        is_recorded: Whether onnxruntime-training 1.19.2 runs it on the CPU.
    """

    name: str
    op_type: str
    inputs: Sequence[Array | None]
    expected: Sequence[Array | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = "com.microsoft"
    constants: tuple[int, ...] = ()
    is_recorded: bool = True

    def feeds(self) -> dict[str, Array]:
        return {
            f"x{index}": value
            for index, value in enumerate(self.inputs)
            if value is not None and index not in self.constants
        }

    def wanted(self) -> list[Array]:
        """Return what its outputs are compared with."""
        return [value for value in self.expected if value is not None]

    def model(self, opset: int = 17, element_type: str = "", dynamic: bool = False) -> onnx.ModelProto:
        """Return the model, on request with the float tensors in another type and without static lengths."""
        names = [f"x{index}" if value is not None else "" for index, value in enumerate(self.inputs)]
        wanted = [f"y{index}" if value is not None else "" for index, value in enumerate(self.expected)]
        node = helper.make_node(self.op_type, names, wanted, name="node", domain=self.domain, **self.attributes)
        graph_inputs = [
            _info(name, value, element_type, dynamic) for name, value in zip(names, self.inputs, strict=True) if name
        ]
        graph = helper.make_graph(
            [node],
            self.name,
            [info for info in graph_inputs if int(info.name[1:]) not in self.constants],
            [_info(f"y{index}", value, element_type, dynamic) for index, value in enumerate(self.expected)],
            [
                onnx.numpy_helper.from_array(value, f"x{index}")
                for index, value in enumerate(self.inputs)
                if value is not None and index in self.constants
            ],
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _info(name: str, value: Array | None, element_type: str, dynamic: bool) -> onnx.ValueInfoProto:
    assert value is not None
    dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
    if element_type and value.dtype.kind == "f":
        dtype = onnx.TensorProto.DataType.Value(element_type)
    shape = [f"{name}_{axis}" for axis in range(value.ndim)] if dynamic else value.shape
    return helper.make_tensor_value_info(name, dtype, shape)


def gradient(forward: Callable[..., Array], at: Array, upstream: Array) -> Array:
    """Return the gradient of ``sum(upstream * forward(at))`` by central differences in float64."""
    at = at.astype(np.float64)
    result = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        step = 1e-5 * max(1.0, abs(float(at[index])))
        ends = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            ends.append(float((upstream.astype(np.float64) * forward(moved)).sum()))
        result[index] = (ends[0] - ends[1]) / (2 * step)
    return result.astype(np.float32)


def adjoint(op_type: str, operands: Sequence[Array | None], at: int, upstream: Array, **attributes: Any) -> Array:
    """Return the gradient of ``sum(upstream * Op(operands))`` for an operand that the operator is linear in.

    The operator is ONNX Runtime's own, run on each unit tensor.
    """
    names = [f"x{index}" if operand is not None else "" for index, operand in enumerate(operands)]
    given = {name: operand for name, operand in zip(names, operands, strict=True) if operand is not None}
    node = helper.make_node(op_type, names, ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        op_type,
        [_info(name, value, "", False) for name, value in given.items()],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result = np.zeros_like(operands[at])
    for index in np.ndindex(result.shape):
        unit = np.zeros_like(result)
        unit[index] = 1
        (y,) = session.run(None, given | {names[at]: unit})
        result[index] = (upstream.astype(np.float64) * y).sum()
    return result


def _rng(seed: int) -> Callable[..., Array]:
    generator = np.random.default_rng(seed)
    return lambda *shape: generator.standard_normal(shape).astype(np.float32)


_erf = np.vectorize(math.erf)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def fast_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axes: int | tuple[int, ...]) -> Array:
    e = np.exp(x - x.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


def log_softmax(x: Array, axes: int | tuple[int, ...]) -> Array:
    return np.log(softmax(x, axes))


def _elementwise() -> list[Case]:
    draw = _rng(1)
    x, dy, bias = 2 * draw(3, 4, 5), draw(3, 4, 5), draw(5)
    x[0, 0, 0] = 0  # where the gradient of Relu is 0 by convention
    away = np.where(x == 0, np.float32(-1), x)

    def of(name: str, forward: Callable[[Array], Array], given: Array, **kwargs: Any) -> Case:
        at = x if name not in ("ReluGrad", "LeakyReluGrad") else away
        return Case(name, name, [dy, given], [gradient(forward, at, dy)], **kwargs)

    zero_at_zero = gradient(lambda v: np.maximum(v, 0), away, dy) * (x != 0)
    return [
        Case("ReluGrad", "ReluGrad", [dy, x], [zero_at_zero]),
        of("LeakyReluGrad", lambda v: np.where(v > 0, v, 0.2 * v), np.where(away > 0, away, np.float32(0.2) * away),
           attributes={"alpha": 0.2}),
        of("SigmoidGrad", sigmoid, sigmoid(x)),
        of("TanhGrad", np.tanh, np.tanh(x)),
        of("QuickGeluGrad", lambda v: v * sigmoid(1.5 * v), x, attributes={"alpha": 1.5}),
        of("GeluGrad", gelu, x),
        of("FastGeluGrad", fast_gelu, x),
        Case("BiasGeluGrad_dX", "BiasGeluGrad_dX", [dy, x, bias], [gradient(lambda v: gelu(v + bias), x, dy)]),
        Case("BiasFastGeluGrad_dX", "BiasFastGeluGrad_dX", [dy, x, bias],
             [gradient(lambda v: fast_gelu(v + bias), x, dy)]),
    ]  # fmt: skip


def _dropout() -> list[Case]:
    draw = _rng(2)
    dy, mask = draw(4, 5), draw(4, 5) > 0
    ratio, on = np.float32(0.25), np.array(True)

    def expected(r: float) -> list[Array]:
        return [gradient(lambda v: np.where(mask, v / (1 - r), 0), dy, dy)]

    return [
        Case("DropoutGrad", "DropoutGrad", [dy, mask, np.array(ratio), on], expected(0.25)),
        Case("DropoutGrad_not_training", "DropoutGrad", [dy, mask, np.array(ratio), np.array(False)], expected(0.25)),
        Case("DropoutGrad_no_ratio", "DropoutGrad", [dy, mask], expected(0.5)),
        Case("DropoutGrad_ratio_of_one_axis", "DropoutGrad", [dy, mask, np.array([ratio])], expected(0.25)),
        Case("DropoutGrad_double_ratio", "DropoutGrad", [dy, mask, np.array(0.25)], expected(0.25)),
        Case("Scale", "Scale", [dy, np.array(3.0, np.float32)], [dy * 3]),
        Case("Scale_down_int", "Scale", [dy, np.array(3)], [dy / 3], {"scale_down": 1}),
        Case("Scale_down_vector", "Scale", [dy, np.array([7])], [dy / 7], {"scale_down": 1}),
    ]


def _softmax() -> list[Case]:
    draw = _rng(3)
    x, dy = draw(2, 3, 4, 5), draw(2, 3, 4, 5)
    cases = []
    for name, forward in (("Softmax", softmax), ("LogSoftmax", log_softmax)):
        for axis in (-1, 1):
            y = forward(x, axis)
            expected = [gradient(lambda v, f=forward, a=axis: f(v, a), x, dy)]
            cases.append(Case(f"{name}Grad_13_{axis}", f"{name}Grad_13", [dy, y], expected, {"axis": axis}))
        for axis, axes in ((2, (2, 3)), (-3, (1, 2, 3))):
            y = forward(x, axes)
            expected = [gradient(lambda v, f=forward, a=axes: f(v, a), x, dy)]
            cases.append(Case(f"{name}Grad_{axis}", f"{name}Grad", [dy, y], expected, {"axis": axis}))
    return cases


def cross_entropy(logits: Array, label: Array, weight: Array | None, ignore_index: int | None, reduction: str) -> Array:
    """Return the loss, label by label."""
    log_prob = log_softmax(logits, 1)
    losses, weights = np.zeros(label.shape), np.zeros(label.shape)
    for index in np.ndindex(label.shape):
        c = int(label[index])
        if c != ignore_index:
            weights[index] = 1 if weight is None else weight[c]
            losses[index] = -weights[index] * log_prob[(index[0], c, *index[1:])]
    if reduction == "none":
        return losses
    return losses.sum() / ((weights.sum() or 1) if reduction == "mean" else 1)


def _loss() -> list[Case]:
    draw = _rng(4)
    cases = []
    class_weights = np.array([0.5, 1.5, 2.0, 0.25], np.float32)
    variants = [
        ("mean", (6, 4), None, None, np.int64),
        ("sum", (6, 4), None, None, np.int32),
        ("none", (6, 4), None, None, np.int64),
        ("mean", (6, 4), class_weights, None, np.int64),
        ("mean", (6, 4), class_weights, 2, np.int64),
        ("mean", (6, 4), None, -100, np.int64),
        ("sum", (6, 4), class_weights, 255, np.int32),
        ("none", (2, 4, 3), class_weights, -1, np.int64),
        ("mean", (2, 4, 3, 2), class_weights, 1, np.int64),
        ("mean", (3, 4), None, 0, np.int64),
    ]
    for number, (reduction, shape, weight, ignore_index, label_type) in enumerate(variants):
        logits = draw(*shape)
        label = (np.arange(math.prod(shape) // shape[1]) * 7 % 4).reshape(shape[0], *shape[2:]).astype(label_type)
        if ignore_index is not None and not 0 <= ignore_index < 4:
            label[0] = label.flat[-1] = ignore_index
        if number == len(variants) - 1:
            label[:] = ignore_index  # all ignored: the total weight is 0
        dy = draw(*label.shape) if reduction == "none" else np.array(1.5, np.float32)

        def forward(v: Array, of: tuple[Any, ...] = (label, weight, ignore_index, reduction)) -> Array:
            return cross_entropy(v, *of)

        log_prob = log_softmax(logits, 1)
        expected = gradient(forward, logits, dy)
        attributes: dict[str, Any] = {"reduction": reduction}
        ignore_attribute = {} if ignore_index is None else {"ignore_index": ignore_index}
        optional = [] if weight is None else [weight]
        cases.append(
            Case(f"SoftmaxCrossEntropyLossGrad_{number}", "SoftmaxCrossEntropyLossGrad",
                 [dy, log_prob, label, *optional], [expected], attributes | ignore_attribute)
        )  # fmt: skip
        ignored = None if ignore_index is None else np.array(ignore_index)
        bias = draw(*shape) if number in (4, 7) else None
        total = expected if bias is None else expected + bias
        cases.append(
            Case(f"SoftmaxCrossEntropyLossInternalGrad_{number}", "SoftmaxCrossEntropyLossInternalGrad",
                 [dy, log_prob, label, weight, ignored, bias], [total], attributes)
        )  # fmt: skip
        loss = np.asarray(forward(logits.astype(np.float64)), np.float32)
        cases.append(
            Case(f"SoftmaxCrossEntropyLossInternal_{number}", "SoftmaxCrossEntropyLossInternal",
                 [logits, label, weight, ignored], [loss, log_prob], attributes)
        )  # fmt: skip
    return cases


def _indexing() -> list[Case]:
    draw = _rng(5)
    x = draw(4, 5, 6)
    shape = np.array(x.shape)
    cases = []
    for axis, indices in ((0, [[3, 1], [1, -1]]), (1, [2, 2, 0]), (-1, [[0, 5, 5, 3]]), (2, 4), (0, [2])):
        index = np.array(indices)
        dy = draw(*np.take(x, index, axis).shape)
        expected = gradient(lambda v, i=index, a=axis: np.take(v, i, a), x, dy)
        cases.append(Case(f"GatherGrad_{axis}_{index.ndim}", "GatherGrad", [shape, index, dy], [expected],
                          {"axis": axis}))  # fmt: skip
    index = np.array([[1, 1], [0, 3]], np.int32)
    dy = draw(2, 2, 5, 6)
    expected = gradient(lambda v: np.take(v, index, 0), x, dy)
    cases.append(Case("GatherGrad_int32", "GatherGrad", [shape, index, dy], [expected]))

    for axis in (1, -1):
        index = np.array([[[1, 0, 3, 3, 2, 1]] * 3, [[3, 3, 3, 0, 0, -1]] * 3])
        dy = draw(2, 3, 6)
        cut = (slice(0, 2), slice(None), slice(0, 6)) if axis == 1 else (slice(0, 2), slice(0, 3), slice(None))
        expected = gradient(lambda v, i=index, a=axis, c=cut: np.take_along_axis(v[c], i, a), x, dy)
        cases.append(Case(f"GatherElementsGrad_{axis}", "GatherElementsGrad", [dy, shape, index], [expected],
                          {"axis": axis}))  # fmt: skip

    tuples = np.array([[0, 1], [3, 4], [0, 1], [2, -1]])
    dy = draw(4, 6)
    expected = gradient(lambda v: v[tuples[:, 0], tuples[:, 1]], x, dy)
    cases.append(Case("GatherNDGrad", "GatherNDGrad", [shape, tuples, dy], [expected], {"batch_dims": 0}))
    batched = np.array([[[0], [4]], [[1], [1]], [[2], [3]], [[0], [0]]])
    dy = draw(4, 2, 6)
    rows = np.arange(4)[:, None]
    expected = gradient(lambda v: v[rows, batched[..., 0]], x, dy)
    cases.append(Case("GatherNDGrad_batch", "GatherNDGrad", [shape, batched, dy], [expected], {"batch_dims": 1}))

    slices = {
        "all": ([1, 0], [3, 2**31], [1, 0], [1, 2], (slice(0, None, 2), slice(1, 3))),
        "backwards": ([-1], [-100], [2], [-2], (slice(None), slice(None), slice(None, None, -2))),
        "no_axes": ([1, 2], [4, 5], None, None, (slice(1, 4), slice(2, 5))),
    }
    for name, (starts, ends, axes, steps, expression) in slices.items():
        dy = draw(*x[expression].shape)
        expected = gradient(lambda v, e=expression: v[e], x, dy)
        vectors = [None if values is None else np.array(values) for values in (starts, ends, axes, steps)]
        while vectors[-1] is None:
            vectors.pop()
        # An end before the first element ends 1.19.2's kernel with a narrowing error.
        cases.append(Case(f"SliceGrad_{name}", "SliceGrad", [dy, shape, *vectors], [expected],
                          is_recorded=name != "backwards"))  # fmt: skip
    return cases


def _broadcast_gathers() -> list[Case]:
    draw = _rng(11)
    x = draw(4, 5, 6)
    shape = np.array(x.shape)
    cases = []
    # What was picked is broadcast, before it and along an axis of length 1.
    for name, index, dy in (
        ("leading", np.array([[2, 0, 2]]), draw(2, 3, 5, 6)),
        ("more", np.array([2, 0, 2]), draw(4, 2, 3, 5, 6)),
        ("inner", np.array([[3], [1]]), draw(2, 3, 5, 6)),
        ("single", np.array([[1]]), draw(2, 3, 5, 6)),
    ):
        expected = gradient(lambda v, i=index, s=dy.shape: np.broadcast_to(np.take(v, i, 0), s), x, dy)
        cases.append(Case(f"GatherGrad_{name}", "GatherGrad", [shape, index, dy], [expected], is_recorded=False))
    return cases


def _normalization() -> list[Case]:
    draw = _rng(6)
    cases = []
    for name, shape, axis in (("last", (3, 4, 8), -1), ("two", (3, 4, 5), 1)):
        x, scale, dy = draw(*shape), draw(*shape[axis:]), draw(*shape)
        axes = tuple(range(len(shape)))[axis:]
        rows = tuple(range(len(shape)))[:axis]

        def rms(v: Array, s: Array, of: tuple[int, ...] = axes) -> Array:
            return v / np.sqrt((v * v).mean(of, keepdims=True) + 1e-6) * s

        inv_std = (1 / np.sqrt((x.astype(np.float64) ** 2).mean(axes, keepdims=True) + 1e-6)).astype(np.float32)
        dx = gradient(lambda v, f=rms, s=scale: f(v, s), x, dy)
        dscale = gradient(lambda s, f=rms, v=x: f(v.astype(np.float64), s), scale, dy)
        assert rows
        cases.append(
            Case(f"SimplifiedLayerNormalizationGrad_{name}", "SimplifiedLayerNormalizationGrad",
                 [dy, x, scale, inv_std], [dx, dscale], {"axis": axis})
        )  # fmt: skip

    for name, shape, axis in (("last", (3, 4, 8), -1), ("two", (3, 4, 5), 1)):
        cases += _layer_norm(draw, name, shape, axis)

    x, dy = draw(4, 3, 5, 2) + 1, draw(4, 3, 5, 2)
    scale, bias, mean0, var0 = draw(3), draw(3), draw(3), np.abs(draw(3)) + 1

    def batch_norm(v: Array, s: Array, b: Array) -> Array:
        centred = v - v.mean((0, 2, 3), keepdims=True)
        std = np.sqrt((centred**2).mean((0, 2, 3), keepdims=True) + 1e-5)
        return centred / std * s[:, None, None] + b[:, None, None]

    wide = x.astype(np.float64)
    mean = wide.mean((0, 2, 3))
    variance = wide.var((0, 2, 3))
    inv_std = 1 / np.sqrt(variance + 1e-5)
    gradients = [
        gradient(lambda v: batch_norm(v, scale, bias), x, dy),
        gradient(lambda s: batch_norm(wide, s, bias), scale, dy),
        gradient(lambda b: batch_norm(wide, scale, b), bias, dy),
    ]
    saved = [mean.astype(np.float32), inv_std.astype(np.float32)]
    cases.append(Case("BatchNormalizationGrad", "BatchNormalizationGrad", [dy, x, scale, *saved], gradients,
                      {"epsilon": 1e-5}))  # fmt: skip
    outputs = [batch_norm(wide, scale, bias), mean0 * 0.8 + mean * 0.2, var0 * 0.8 + variance * 0.2, mean, inv_std]
    cases.append(
        Case("BatchNormInternal", "BatchNormInternal", [x, scale, bias, mean0, var0],
             [each.astype(np.float32) for each in outputs], {"momentum": 0.8, "epsilon": 1e-5, "training_mode": 1})
    )  # fmt: skip
    return cases


def _layer_norm(draw: Callable[..., Array], name: str, shape: tuple[int, ...], axis: int) -> list[Case]:
    axes = tuple(range(len(shape)))[axis:]
    x, dy, scale, bias = draw(*shape) + 1, draw(*shape), draw(*shape[axis:]) + 2, draw(*shape[axis:])

    def layer_norm(v: Array, s: Array, b: Array) -> Array:
        centred = v - v.mean(axes, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5) * s + b

    wide = x.astype(np.float64)
    expected = [
        gradient(lambda v: layer_norm(v, scale, bias), x, dy),
        gradient(lambda s: layer_norm(wide, s, bias), scale, dy),
        gradient(lambda b: layer_norm(wide, scale, b), bias, dy),
    ]
    mean = wide.mean(axes, keepdims=True).astype(np.float32)
    inv_std = (1 / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)).astype(np.float32)
    y = layer_norm(wide, scale, bias).astype(np.float32)
    grad, invertible = "LayerNormalizationGrad", "InvertibleLayerNormalizationGrad"
    return [
        Case(f"{grad}_{name}", grad, [dy, x, scale, mean, inv_std], expected, {"axis": axis}),
        Case(f"{invertible}_{name}", invertible, [dy, y, scale, bias, inv_std], expected, {"axis": axis}),
    ]


def convolve(
    x: Array, w: Array, group: int, strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> Array:
    """Convolve, window by window."""
    kernel = w.shape[2:]
    axes = len(kernel)
    x = np.pad(x, ((0, 0), (0, 0), *((pads[axis], pads[axis + axes]) for axis in range(axes))))
    spans = [(kernel[axis] - 1) * dilations[axis] + 1 for axis in range(axes)]
    size = [(x.shape[2 + axis] - spans[axis]) // strides[axis] + 1 for axis in range(axes)]
    result = np.zeros((x.shape[0], w.shape[0], *size), x.dtype)
    per_group, out_per_group = w.shape[1], w.shape[0] // group
    for at in np.ndindex(*size):
        starts = [at[axis] * strides[axis] for axis in range(axes)]
        steps = (slice(starts[axis], starts[axis] + spans[axis], dilations[axis]) for axis in range(axes))
        window = x[(slice(None), slice(None), *steps)]
        for m in range(w.shape[0]):
            first = m // out_per_group * per_group
            result[:, m, *at] = (window[:, first : first + per_group] * w[m]).sum(tuple(range(1, 2 + axes)))
    return result


def _conv_grads(draw: Callable[..., Array], variants: Mapping[str, Any], *, is_recorded: bool = True) -> list[Case]:
    cases = []
    for name, (x_shape, w_shape, group, strides, dilations, pads) in variants.items():
        x, w = draw(*x_shape), draw(*w_shape)
        moves = (group, strides, dilations, pads)
        dy = draw(*convolve(x, w, *moves).shape)
        expected = [
            gradient(lambda v, w=w, m=moves: convolve(v, w.astype(np.float64), *m), x, dy),
            gradient(lambda v, x=x, m=moves: convolve(x.astype(np.float64), v, *m), w, dy),
            dy.sum((0, *range(2, dy.ndim))),
        ]
        attributes = {"group": group, "strides": strides, "dilations": dilations, "pads": pads,
                      "kernel_shape": w_shape[2:]}  # fmt: skip
        cases.append(Case(f"ConvGrad_{name}", "ConvGrad", [dy, x, w], expected, attributes, is_recorded=is_recorded))
    return cases


def _convolution() -> list[Case]:
    draw = _rng(7)
    cases = _conv_grads(
        draw,
        {
            "plain": ((2, 2, 5, 4), (3, 2, 3, 2), 1, [1, 1], [1, 1], [0, 0, 0, 0]),
            "strided": ((2, 2, 8, 7), (3, 2, 3, 2), 1, [2, 3], [1, 1], [1, 0, 0, 1]),
            "dilated": ((1, 2, 7, 8), (2, 2, 2, 3), 1, [1, 2], [2, 1], [1, 1, 1, 1]),
            "grouped": ((2, 4, 5, 5), (6, 2, 3, 3), 2, [2, 2], [1, 1], [1, 1, 1, 1]),
        },
    )

    x = draw(2, 3, 6, 6)
    for name, kernel, stride, pad in (("plain", 2, 2, 0), ("overlapping", 3, 2, 1)):
        pooled, indices = _max_pool(x, kernel, stride, pad)
        dy = draw(*pooled.shape)
        dx = gradient(lambda v, k=(kernel, stride, pad): _max_pool(v, *k)[0], x, dy)
        attributes: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        cases.append(Case(f"MaxPoolGrad_{name}", "MaxPoolGrad", [dy, indices], [dx], attributes, domain=""))
    for name, size, kernel, stride, pad, include in (
        ("plain", 6, 2, 2, 0, 0), ("padded", 7, 3, 2, 1, 0), ("include", 7, 3, 2, 1, 1), ("remainder", 7, 2, 2, 0, 0),
    ):  # fmt: skip
        x = draw(2, 3, size, size)
        settings = (kernel, stride, pad, include)
        dy = draw(*_average_pool(x, *settings).shape)
        dx = gradient(lambda v, s=settings: _average_pool(v, *s), x, dy)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4,
                      "count_include_pad": include}  # fmt: skip
        cases.append(Case(f"AveragePoolGrad_{name}", "AveragePoolGrad", [dy], [dx], attributes, domain=""))
    # With numbers of their own: those above are recorded.
    others = {
        "line": ((2, 4, 8), (4, 1, 2), 4, [3], [2], [1, 2]),
        "space": ((2, 2, 4, 3, 5), (2, 1, 2, 1, 2), 2, [1, 2, 2], [2, 1, 3], [1, 0, 1, 0, 1, 0]),
    }
    return cases + _conv_grads(_rng(8), others, is_recorded=False)


def _transposed_and_resized() -> list[Case]:
    draw = _rng(12)
    cases = []
    transposed: dict[str, tuple[Any, ...]] = {
        "plain": ((2, 3, 3, 4), (3, 2, 3, 2), (2, 2, 5, 5), {}),
        "grouped": ((1, 4, 3, 3), (4, 2, 3, 3), (1, 4, 6, 7),
                    {"group": 2, "strides": [2, 3], "pads": [1, 1, 0, 1], "output_padding": [0, 0]}),
        "padded": ((2, 2, 3, 4), (2, 1, 2, 3), (2, 1, 8, 9),
                   {"dilations": [2, 1], "strides": [2, 2], "pads": [0, 1, 0, 0], "output_padding": [1, 1]}),
        "line": ((2, 4, 3), (4, 1, 2), (2, 2, 10), {"group": 2, "dilations": [2], "strides": [3], "pads": [0, 1],
                                                   "output_padding": [2]}),
        "space": ((1, 2, 2, 1, 2), (2, 1, 2, 2, 1), (1, 1, 3, 2, 3), {"strides": [1, 1, 2]}),
    }  # fmt: skip
    for name, (x_shape, w_shape, dy_shape, attributes) in transposed.items():
        x, w, dy = draw(*x_shape), draw(*w_shape), draw(*dy_shape)
        expected = [adjoint("ConvTranspose", [x, w], at, dy, **attributes) for at in (0, 1)]
        expected.append(dy.sum((0, *range(2, dy.ndim))))
        attributes |= {"kernel_shape": w_shape[2:]}
        cases.append(Case(f"ConvTransposeGrad_{name}", "ConvTransposeGrad", [dy, x, w], expected, attributes,
                          is_recorded=False))  # fmt: skip
    resized: list[tuple[str, tuple[int, int], list[float] | None, dict[str, Any]]] = [
        ("scales", (6, 10), [1, 1, 2, 2.5], {"mode": "linear"}),
        ("sizes", (7, 3), None, {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
        ("nearest", (6, 2), [1, 1, 2, 0.5], {"mode": "nearest", "nearest_mode": "floor"}),
        ("cubic", (5, 9), None, {"mode": "cubic", "cubic_coeff_a": -0.5}),
    ]
    for name, size, scales, attributes in resized:
        x, dy = draw(2, 2, 3, 4), draw(2, 2, *size)
        factors = None if scales is None else np.array(scales, np.float32)
        sizes = np.array(dy.shape) if scales is None else None
        dx = adjoint("Resize", [x, None, factors, sizes], 0, dy, **attributes)
        cases.append(Case(f"ResizeGrad_{name}", "ResizeGrad", [dy, x, None, factors], [dx], attributes,
                          is_recorded=False))  # fmt: skip
    return cases


def _windows(x: Array, kernel: int, stride: int, pad: int, fill: float) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]


def _max_pool(x: Array, kernel: int, stride: int, pad: int) -> tuple[Array, Array]:
    positions = np.arange(x.size, dtype=np.int64).reshape(x.shape)
    windows = _windows(x, kernel, stride, pad, -np.inf)
    at = windows.reshape(*windows.shape[:4], -1).argmax(-1)
    places = _windows(positions, kernel, stride, pad, -1)
    indices = np.take_along_axis(places.reshape(*places.shape[:4], -1), at[..., None], -1)[..., 0]
    return windows.max((4, 5)), indices


def _average_pool(x: Array, kernel: int, stride: int, pad: int, include: int) -> Array:
    total = _windows(x, kernel, stride, pad, 0).sum((4, 5))
    return total / (kernel**2 if include else _windows(np.ones_like(x), kernel, stride, pad, 0).sum((4, 5)))


def _broadcasting() -> list[Case]:
    draw = _rng(8)
    cases = []
    operands: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
        ("same", (3, 4), (3, 4)),
        ("b", (2, 3, 4), (3, 1)),
        ("a", (1, 4), (5, 2, 4)),
        ("both", (3, 1, 4), (2, 1)),
        ("scalar", (2, 3), ()),
    ]
    for name, a_shape, b_shape in operands:
        a, b = draw(*a_shape), np.asarray(draw(*b_shape) + 3, np.float32)
        dy = draw(*np.broadcast_shapes(a_shape, b_shape))
        expected = [gradient(lambda v, b=b: v / b, a, dy), gradient(lambda v, a=a: a / v, b, dy)]
        cases.append(Case(f"DivGrad_{name}", "DivGrad", [dy, a, b], expected))
    for name, a_shape, b_shape, a_axes, b_axes in (
        ("same", (2, 3), (2, 3), [], []),
        ("b", (2, 3, 4), (3, 1), [], [2, 0]),
        ("both", (1, 4), (5, 2, 1), [1, 0], [2]),
        ("ones", (2, 1, 3), (1, 1), [], [2, 0]),
        ("leading_one", (1, 3), (3,), [], [0]),
        ("scalar", (2, 3), (), [], [1, 0]),
    ):  # fmt: skip
        shapes = [np.array(shape, np.int64) for shape in (a_shape, b_shape)]
        axes = [np.array(each, np.int64) for each in (a_axes, b_axes)]
        cases.append(Case(f"BroadcastGradientArgs_{name}", "BroadcastGradientArgs", shapes, axes))

    x, y = draw(2, 3, 4), draw(2, 5, 4)
    cases += [
        Case("ReduceSumTraining", "ReduceSumTraining", [x, np.array([0, -1])], [x.sum((0, 2), keepdims=True)],
             constants=(1,)),
        Case("ReduceSumTraining_flat", "ReduceSumTraining", [x, np.array([1])], [x.sum(1)], {"keepdims": 0},
             constants=(1,)),
        Case("ReduceSumTraining_noop", "ReduceSumTraining", [x, np.array([], np.int64)], [x],
             {"noop_with_empty_axes": 1}, constants=(1,)),
        Case("ReduceSumTraining_everything", "ReduceSumTraining", [x, np.array([], np.int64)],
             [np.asarray(x.sum())], {"keepdims": 0}, constants=(1,)),
        Case("ConcatTraining", "ConcatTraining", [x, y], [np.concatenate([x, y], 1), np.array([3, 5])], {"axis": 1}),
        Case("ConcatTraining_negative", "ConcatTraining", [x, y], [np.concatenate([x, y], -2), np.array([3, 5])],
             {"axis": -2}),
        Case("SplitTraining", "SplitTraining", [y, np.array([1, 4])], [y[:, :1], y[:, 1:]], {"axis": 1},
             constants=(1,)),
    ]  # fmt: skip
    return cases


def _accumulation() -> list[Case]:
    draw = _rng(9)
    buffer, value, scalar = draw(3, 4), draw(3, 4), np.array(2.5, np.float32)
    double = np.array(5.0, np.float32)
    on, off, done = np.array([True]), np.array([False]), np.array([True])
    return [
        Case("InPlaceAccumulatorV2_add", "InPlaceAccumulatorV2", [buffer, value, off], [done, buffer + value]),
        Case("InPlaceAccumulatorV2_overwrite", "InPlaceAccumulatorV2", [buffer, value, on], [done, value]),
        Case("InPlaceAccumulatorV2_no_flag", "InPlaceAccumulatorV2", [buffer, value], [done, buffer + value]),
        Case("InPlaceAccumulatorV2_scalar", "InPlaceAccumulatorV2", [scalar, double, on], [done, double]),
        Case("InPlaceAccumulator", "InPlaceAccumulator", [buffer, value], [buffer + value]),
        Case("InPlaceAccumulator_update", "InPlaceAccumulator", [buffer, value, on], [buffer + value]),
        Case("InPlaceAccumulator_no_update", "InPlaceAccumulator", [buffer, value, off], [buffer]),
        Case("ZeroGradient", "ZeroGradient", [buffer, on], [np.zeros_like(buffer)]),
    ]


CASES = [
    *_elementwise(),
    *_dropout(),
    *_softmax(),
    *_loss(),
    *_indexing(),
    *_normalization(),
    *_convolution(),
    *_broadcast_gathers(),
    *_transposed_and_resized(),
    *_broadcasting(),
    *_accumulation(),
]
