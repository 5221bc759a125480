# SPDX-License-Identifier: Apache-2.0
"""The gradients of drawn operators, shapes, attributes and opsets, against finite differences in double."""

import math
from typing import Any

import numpy as np
import onnx
from finite_differences import check, check_linear, draw, ints, make_model, node, run, run_in_onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto

from lnbp_onnx.gradients import RULES

SMOOTH = ["Cos", "Cosh", "Exp", "Identity", "Mish", "Neg", "Sigmoid", "Sin", "Sinh", "Softplus", "Tanh", "Erf", "Atan"]
SMOOTH += ["Asinh", "Cast", "Dropout", "Gelu"]
NARROW = ["Acos", "Asin", "Atanh", "Tan"]
BENT = ["Abs", "Celu", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Selu", "Softsign"]
POSITIVE = ["Acosh", "Log", "Reciprocal", "Sqrt"]
RANGES = {
    **dict.fromkeys(NARROW, (-0.8, 0.8)),
    **dict.fromkeys(POSITIVE, (0.2, 3.0)),
    "Acosh": (1.2, 3.0),
}
SINCE = {"Gelu": 20, "HardSwish": 14, "Mish": 18}
SLOPED = {"Elu": "alpha", "Celu": "alpha", "LeakyRelu": "alpha", "Selu": "gamma", "HardSigmoid": "alpha"}
REDUCTIONS = ["ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"]
REDUCTIONS += ["ReduceProd", "ReduceSum", "ReduceSumSquare"]
BROADCAST = ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Where"]
BOUNDED = ["Clip", "PRelu"]
PRODUCTS = ["Einsum", "Gemm", "MatMul"]
MOVES = ["Slice", "Pad", "Tile", "Transpose", "Gather", "Concat", "Split", "Expand"]
SHAPES = ["DepthToSpace", "Reshape", "ReverseSequence", "SpaceToDepth", "Squeeze", "Trilu", "Unsqueeze"]
OVER_AN_AXIS = ["Softmax", "LogSoftmax", "LpNormalization", "CumSum", "TopK", "LayerNormalization", "Flatten"]
WINDOWS = ["Conv", "ConvTranspose", "AveragePool"]
POOLS = ["GlobalAveragePool", "GlobalMaxPool", "MaxPool"]
LAYERS = ["BatchNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"]
LOSSES = ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"]
INDICES = ["GatherElements", "GatherND", "ScatterElements", "ScatterND"]
DRAWN = [*SMOOTH, *NARROW, *BENT, *POSITIVE, *REDUCTIONS, *BROADCAST, *BOUNDED, *PRODUCTS, *MOVES, *SHAPES]
DRAWN += [*OVER_AN_AXIS, *WINDOWS, *POOLS, *LAYERS, *LOSSES, *INDICES, "Resize"]

opsets = st.integers(13, onnx.defs.onnx_opset_version())
dynamic = st.booleans()
dims = st.integers(1, 3)


def shapes(least: int = 0, most: int = 4) -> st.SearchStrategy[list[int]]:
    return st.lists(dims, min_size=least, max_size=most)


# It is ONNX Runtime's alone, which has it for other types; tests/test_gradient_bodies.py has it.
NOT_DRAWN = {"SimplifiedLayerNormalization"}


def test_every_rule_takes_part() -> None:
    assert sorted(DRAWN) == sorted(set(RULES) - NOT_DRAWN)


@st.composite
def broadcast_shapes(data: st.DrawFn, count: int) -> list[list[int]]:
    """Shapes that broadcast to one, each with fewer axes or with axes of length 1."""
    whole = data(shapes())
    results = []
    for _ in range(count):
        shape = [data(st.sampled_from([1, length])) for length in whole]
        results.append(shape[data(st.integers(0, len(whole))) :])
    return results


def compare(operator: NodeProto, arrays: dict[str, Any], opset: int, *, is_dynamic: bool = False) -> None:
    check(make_model([operator], arrays, opset=opset, dynamic=is_dynamic), arrays)


@settings(max_examples=40)
@given(st.data())
def test_unary(data: st.DataObject) -> None:
    op_type = data.draw(st.sampled_from([*SMOOTH, *NARROW, *BENT, *POSITIVE]))
    low, high = RANGES.get(op_type, (-2.0, 2.0))
    opset = max(data.draw(opsets), SINCE.get(op_type, 0))
    attributes: dict[str, Any] = {}
    if op_type in SLOPED and data.draw(st.booleans()):
        attributes[SLOPED[op_type]] = data.draw(st.sampled_from([0.1, 0.4]))
    elif op_type == "Gelu":
        attributes["approximate"] = "tanh"  # ONNX's evaluator has the other one in float
    elif op_type == "Cast":
        attributes["to"] = onnx.TensorProto.DOUBLE
    # ONNX's evaluator has no Softsign of a scalar.
    arrays = {"a": draw(*data.draw(shapes(op_type == "Softsign")), low=low, high=high)}
    compare(node(op_type, "a", **attributes), arrays, opset, is_dynamic=data.draw(dynamic))


@settings(max_examples=40)
@given(st.data())
def test_broadcast(data: st.DataObject) -> None:
    op_type = data.draw(st.sampled_from(BROADCAST))
    a, b, c = data.draw(broadcast_shapes(3))
    if op_type == "Mean":  # ONNX's evaluator adds in place
        a = list(np.broadcast_shapes(tuple(a), tuple(b), tuple(c)))
    values = {"a": draw(*a, low=0.5, high=2.0), "b": draw(*b, low=0.6, high=1.9) + 0.01}
    inputs = "a b"
    if op_type == "Where":
        inputs, values = "c a b", {"c": draw(*c) > 0, **values}
    elif op_type in ("Min", "Max", "Sum", "Mean"):
        inputs, values = "a b c", {**values, "c": draw(*c, low=0.7, high=1.8) + 0.02}
    compare(node(op_type, inputs), values, data.draw(opsets), is_dynamic=data.draw(dynamic))


@settings(max_examples=40)
@given(st.data())
def test_reductions(data: st.DataObject) -> None:
    op_type, opset, shape = data.draw(st.sampled_from(REDUCTIONS)), data.draw(opsets), data.draw(shapes(1))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    axes = [axis - data.draw(st.sampled_from([0, len(shape)])) for axis in axes]
    arrays: dict[str, Any] = {"a": draw(*shape, low=0.2, high=2.0)}
    attributes: dict[str, Any] = {"keepdims": data.draw(st.integers(0, 1))}
    inputs = "a"
    if axes and (opset >= 18 or op_type == "ReduceSum"):
        inputs, arrays["axes"] = "a axes", ints(*axes)
    elif axes:
        attributes["axes"] = axes
    if opset >= 18 or op_type == "ReduceSum":
        attributes["noop_with_empty_axes"] = data.draw(st.integers(0, 1)) if axes else 0
    compare(node(op_type, inputs, **attributes), arrays, opset, is_dynamic=data.draw(dynamic))


@settings(max_examples=30)
@given(st.data())
def test_products(data: st.DataObject) -> None:
    m, k, n = data.draw(dims), data.draw(dims), data.draw(dims)
    if data.draw(st.booleans()):
        a, b = data.draw(broadcast_shapes(2))
        left, right = data.draw(st.sampled_from([[m, k], [k]])), data.draw(st.sampled_from([[k, n], [k]]))
        # A vector has no axes before its own.
        arrays = {"a": draw(*(a if len(left) > 1 else []), *left), "b": draw(*(b if len(right) > 1 else []), *right)}
        operator = node("MatMul", "a b")
    else:
        flip_a, flip_b = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
        bias = data.draw(st.sampled_from([[m, n], [1, n], [m, 1], [n], [1], []]))
        arrays = {
            "a": draw(*([k, m] if flip_a else [m, k])),
            "b": draw(*([n, k] if flip_b else [k, n])),
            "c": draw(*bias),
        }
        alpha, beta = data.draw(st.sampled_from([(1.0, 1.0), (0.5, 2.0)]))
        operator = node("Gemm", "a b c", transA=flip_a, transB=flip_b, alpha=alpha, beta=beta)
    compare(operator, arrays, data.draw(opsets), is_dynamic=data.draw(dynamic))


@settings(max_examples=30)
@given(st.data())
def test_einsum(data: st.DataObject) -> None:
    lengths = {letter: data.draw(dims) for letter in "ijk"}
    terms = data.draw(st.lists(st.text("ijk", min_size=1, max_size=3), min_size=1, max_size=3))
    letters = sorted(set("".join(terms)))
    result = "".join(data.draw(st.permutations(letters)))[: data.draw(st.integers(0, len(letters)))]
    batch = data.draw(st.sampled_from([[], [2], [3, 2]]))
    ellipsis = "..." if batch else ""
    arrays = {}
    for name, term in zip("abc", terms, strict=False):
        own = [data.draw(st.sampled_from([1, length])) for length in batch]
        arrays[name] = draw(*own, *(lengths[letter] for letter in term)) + 0.01
    equation = ",".join(ellipsis + term for term in terms) + "->" + ellipsis + result
    compare(node("Einsum", " ".join(arrays), equation=equation), arrays, 18)


@settings(max_examples=40)
@given(st.data())
def test_moves(data: st.DataObject) -> None:
    """Operators that pick, place and repeat elements."""
    shape, opset = data.draw(shapes(1)), data.draw(opsets)
    rank = len(shape)
    axis = data.draw(st.integers(-rank, rank - 1))
    length = shape[axis]
    arrays: dict[str, Any] = {"a": draw(*shape)}
    op_type = data.draw(st.sampled_from(MOVES))
    if op_type == "Slice":
        start, end = data.draw(st.integers(-4, 4)), data.draw(st.integers(-4, 4))
        step = data.draw(st.sampled_from([1, 1, 2, -1, -2]))
        arrays |= {"s": ints(start), "e": ints(end), "x": ints(axis), "t": ints(step)}
        operator = node(op_type, "a s e x t")
    elif op_type == "Pad":
        mode = data.draw(st.sampled_from(["constant", "reflect", "edge"]))
        most = min(shape) - 1 if mode == "reflect" else 2
        pads = data.draw(st.lists(st.integers(0, most), min_size=2 * rank, max_size=2 * rank))
        arrays["p"] = ints(*pads)
        operator = node(op_type, "a p", mode=mode)
    elif op_type == "Tile":
        arrays["r"] = ints(*(data.draw(dims) for _ in shape))
        operator = node(op_type, "a r")
    elif op_type == "Transpose":
        operator = node(op_type, "a", perm=data.draw(st.permutations(range(rank))))
    elif op_type == "Gather":
        arrays["i"] = np.array(data.draw(st.lists(st.integers(-length, length - 1), min_size=1, max_size=4)))
        operator = node(op_type, "a i", axis=axis)
    elif op_type == "Concat":
        arrays["b"] = draw(*shape) + 0.5
        operator = node(op_type, "a b a", axis=axis)
    elif op_type == "Split":
        first = data.draw(st.integers(0, length))
        arrays["s"] = ints(first, length - first)
        operator = node(op_type, "a s", axis=axis, outputs=data.draw(st.sampled_from([["y", "z"], ["z", "y"]])))
    else:
        arrays["a"] = draw(*(1 if data.draw(st.booleans()) else each for each in shape))
        arrays["s"] = ints(*data.draw(shapes(most=1)), *shape)
        operator = node(op_type, "a s")
    compare(operator, arrays, opset, is_dynamic=data.draw(dynamic))


@settings(max_examples=30)
@given(st.data())
def test_over_an_axis(data: st.DataObject) -> None:
    shape, opset = data.draw(shapes(1)), data.draw(st.integers(17, onnx.defs.onnx_opset_version()))
    rank = len(shape)
    axis = data.draw(st.integers(-rank, rank - 1))
    norm = shape[axis % rank :]
    arrays: dict[str, Any] = {"a": draw(*shape)}
    op_type = data.draw(st.sampled_from(OVER_AN_AXIS))
    if op_type == "CumSum":
        arrays["x"] = np.array(axis)
        operator = node(op_type, "a x", exclusive=data.draw(st.integers(0, 1)), reverse=data.draw(st.integers(0, 1)))
    elif op_type == "TopK":
        arrays["k"] = ints(data.draw(st.integers(1, shape[axis])))
        operator = node(op_type, "a k", axis=axis, largest=data.draw(st.integers(0, 1)), outputs=["y", "i"])
    elif op_type == "LayerNormalization":
        if math.prod(norm) == 1:
            norm = shape
        arrays |= {"g": draw(*norm), "b": draw(*norm)}
        operator = node(op_type, "a g b", axis=-len(norm), epsilon=0.1)
    elif op_type == "LpNormalization":
        arrays["a"] = draw(*shape, low=0.2, high=3.0)
        operator = node(op_type, "a", axis=axis, p=data.draw(st.integers(1, 2)))
    else:
        operator = node(op_type, "a", axis=axis)
    compare(operator, arrays, opset, is_dynamic=data.draw(dynamic))


@settings(max_examples=30)
@given(st.data())
def test_bounded(data: st.DataObject) -> None:
    op_type, shape = data.draw(st.sampled_from(BOUNDED)), data.draw(shapes())
    arrays: dict[str, Any] = {"a": draw(*shape)}
    if op_type == "PRelu":
        slope = [data.draw(st.sampled_from([1, length])) for length in shape]
        arrays["b"] = draw(*slope[data.draw(st.integers(0, len(shape))) :])
        inputs = "a b"
    else:
        bounds = {"l": np.array(-0.7), "h": np.array(data.draw(st.sampled_from([0.9, -1.1])))}
        given_bounds = data.draw(st.sampled_from(["", "l", "h", "lh"]))
        arrays |= {name: bound for name, bound in bounds.items() if name in given_bounds}
        inputs = " ".join(["a", *(name if name in given_bounds else "" for name in "lh")]).rstrip()
    compare(node(op_type, inputs), arrays, data.draw(opsets), is_dynamic=data.draw(dynamic))


@settings(max_examples=40)
@given(st.data())
def test_shapes(data: st.DataObject) -> None:
    op_type, opset = data.draw(st.sampled_from(SHAPES)), data.draw(opsets)
    shape = data.draw(shapes(2))
    arrays: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    inputs = "a"
    if op_type.endswith(("ToSpace", "ToDepth")):
        size = attributes["blocksize"] = data.draw(st.integers(1, 3))
        batch, channels, *lengths = (data.draw(st.integers(1, 2)) for _ in range(4))
        if op_type == "DepthToSpace":
            attributes["mode"] = data.draw(st.sampled_from(["DCR", "CRD"]))
            shape = [batch, channels * size * size, *lengths]
        else:
            shape = [batch, channels, *(length * size for length in lengths)]
    elif op_type == "Reshape":
        inputs, arrays["s"] = "a s", ints(*data.draw(st.permutations(shape)))
        if data.draw(st.booleans()):
            arrays["s"][data.draw(st.integers(0, len(shape) - 1))] = -1
    elif op_type == "ReverseSequence":
        attributes["batch_axis"], attributes["time_axis"] = data.draw(st.permutations([0, 1]))
        length = st.integers(1, shape[attributes["time_axis"]])
        inputs, arrays["s"] = "a s", ints(*(data.draw(length) for _ in range(shape[attributes["batch_axis"]])))
    elif op_type == "Trilu":
        attributes["upper"] = data.draw(st.integers(0, 1))
        opset = max(opset, 14)
        if data.draw(st.booleans()):
            inputs, arrays["s"] = "a s", np.array(data.draw(st.integers(-3, 3)))
    else:
        axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=2, unique=True))
        inputs, arrays["s"] = "a s", ints(*axes)
        if op_type == "Squeeze":
            shape = [1 if axis in axes else length for axis, length in enumerate(shape)]
    compare(node(op_type, inputs, **attributes), {"a": draw(*shape), **arrays}, opset, is_dynamic=data.draw(dynamic))


@settings(max_examples=30)
@given(st.data())
def test_pools(data: st.DataObject) -> None:
    op_type = data.draw(st.sampled_from(POOLS))
    # ONNX's evaluator has GlobalMaxPool of two axes alone.
    axes = 2 if op_type == "GlobalMaxPool" else data.draw(st.integers(1, 2))
    lengths = [data.draw(st.integers(3, 5)) for _ in range(axes)]
    attributes: dict[str, Any] = {}
    if op_type == "MaxPool":
        kernel = [data.draw(st.integers(1, 3)) for _ in range(axes)]
        attributes = {"kernel_shape": kernel, "strides": [data.draw(st.integers(1, 2)) for _ in range(axes)]}
        attributes["pads"] = [data.draw(st.integers(0, size - 1)) for size in kernel] * 2
    arrays = {"a": draw(data.draw(st.integers(1, 2)), 2, *lengths)}
    runs = run_in_onnxruntime if op_type == "MaxPool" else run
    model = make_model([node(op_type, "a", **attributes)], arrays, opset=data.draw(st.integers(13, 21)), runs=runs)
    check(model, arrays, run=runs)


@settings(max_examples=30)
@given(st.data())
def test_windows(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 2))

    def each(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(axes)]

    op_type = data.draw(st.sampled_from(WINDOWS))
    kernel, lengths = each(1, 3), each(5, 7)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": each(1, 3)}
    auto_pad = data.draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    # ONNX Runtime has these with neither gaps between the windows nor dilations.
    is_same = auto_pad.startswith("SAME")
    if is_same:
        attributes["strides"] = [min(pair) for pair in zip(attributes["strides"], kernel, strict=True)]
    if auto_pad != "NOTSET":
        attributes["auto_pad"] = auto_pad
    else:
        attributes["pads"] = [min(pad, size - 1) for pad, size in zip(each(0, 2), kernel, strict=True)] * 2
    arrays = {"a": draw(2, 2, *lengths).astype(np.float32)}
    if op_type == "AveragePool":
        attributes["count_include_pad"] = data.draw(st.integers(0, 1))
        attributes["ceil_mode"] = data.draw(st.integers(0, int(auto_pad == "NOTSET")))
    else:
        group = data.draw(st.sampled_from([1, 2]))
        channels = (2, 3) if op_type == "ConvTranspose" else (4, 2 // group)
        arrays["w"] = draw(*channels, *kernel).astype(np.float32)
        attributes |= {"group": group, "dilations": each(1, 1 if is_same else 2)}
    operator, opset = node(op_type, " ".join(arrays), **attributes), data.draw(st.integers(13, 22))
    check_linear(make_model([operator], arrays, opset=opset, dtype=np.float32), arrays)


@settings(max_examples=40)
@given(st.data())
def test_layers(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 2))
    channels = groups * data.draw(st.integers(1, 2))
    shape = [data.draw(st.integers(1, 2)), channels, *data.draw(st.lists(st.integers(2, 3), min_size=1, max_size=2))]
    arrays: dict[str, Any] = {"a": draw(*shape), "g": draw(channels), "b": draw(channels)}
    attributes: dict[str, Any] = {"epsilon": 0.1}
    op_type = data.draw(st.sampled_from(LAYERS))
    opset = data.draw(st.integers(15, onnx.defs.onnx_opset_version()))
    outputs, inputs = ["y"], "a g b"
    if op_type == "BatchNormalization":
        inputs = "a g b m v"
        arrays |= {"m": draw(channels), "v": draw(channels, low=0.5, high=2.0)}
        if data.draw(st.booleans()):
            attributes["training_mode"], outputs = 1, ["y", "m2", "v2"]
            arrays |= {"m": np.zeros(channels, np.float32), "v": np.ones(channels, np.float32)}
    elif op_type == "GroupNormalization":
        attributes |= {"num_groups": groups, "stash_type": onnx.TensorProto.DOUBLE}
        opset = max(opset, 21)
    elif op_type == "RMSNormalization":
        axis = data.draw(st.integers(1, len(shape) - 1))
        inputs, arrays["g"], attributes["axis"] = "a g", draw(*shape[axis:]), axis - len(shape)
        opset = max(opset, 23)
    arrays = {name: arrays[name] for name in inputs.split()}
    compare(node(op_type, inputs, outputs=outputs, **attributes), arrays, opset)


@settings(max_examples=30)
@given(st.data())
def test_losses(data: st.DataObject) -> None:
    op_type = data.draw(st.sampled_from(LOSSES))
    batch, classes, places = data.draw(dims), data.draw(dims), data.draw(st.sampled_from([[], [2], [1, 2]]))
    count = batch * math.prod(places)
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    arrays = {"a": draw(batch, classes, *places), "l": np.array(labels).reshape(batch, *places)}
    attributes: dict[str, Any] = {"reduction": data.draw(st.sampled_from(["none", "sum", "mean"]))}
    inputs = "a l"
    if data.draw(st.booleans()):
        inputs, arrays["w"] = "a l w", draw(classes, low=0.5, high=2.0)
    # A mean over nothing has no value.
    if data.draw(st.booleans()) and len(set(labels)) > 1:
        attributes["ignore_index"] = labels[0]
    compare(node(op_type, inputs, **attributes), arrays, data.draw(opsets))


@settings(max_examples=40)
@given(st.data())
def test_indices(data: st.DataObject) -> None:
    shape, opset = data.draw(shapes(1, 3)), data.draw(opsets)
    axis = data.draw(st.integers(0, len(shape) - 1))
    arrays: dict[str, Any] = {"a": draw(*shape)}
    op_type = data.draw(st.sampled_from(INDICES))
    repeats = op_type.startswith("Gather")
    attributes: dict[str, Any] = {}
    if op_type.endswith("ND"):
        depth = data.draw(st.integers(1, len(shape)))
        places = [data.draw(st.integers(0, length - 1)) for length in shape[:depth]]
        arrays["i"] = np.array([places] * (2 if repeats else 1))
        picked = [len(arrays["i"]), *shape[depth:]]
    else:
        picked = list(shape)
        if not repeats:
            picked[axis] = 1
        arrays["i"] = np.full(picked, data.draw(st.integers(-shape[axis], shape[axis] - 1)))
        # ONNX's evaluator gathers fewer elements along no negative axis, as the gradient does.
        attributes["axis"] = axis - (data.draw(st.sampled_from([0, len(shape)])) if repeats else 0)
    inputs = "a i"
    if not repeats:
        inputs, arrays["u"] = "a i u", draw(*picked)
        if opset >= 16:
            attributes["reduction"] = data.draw(st.sampled_from(["none", "add"]))
    compare(node(op_type, inputs, **attributes), arrays, opset)


@settings(max_examples=25)
@given(st.data())
def test_resize(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["nearest", "linear"]))
    shape = data.draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    scales = [data.draw(st.sampled_from([1.0, 0.5, 1.7, 2.0])) for _ in shape]
    transformation = data.draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]))
    arrays = {"a": draw(*shape), "s": np.array(scales, np.float32)}
    operator = node("Resize", "a  s", mode=mode, coordinate_transformation_mode=transformation)
    compare(operator, arrays, data.draw(opsets), is_dynamic=data.draw(dynamic))
