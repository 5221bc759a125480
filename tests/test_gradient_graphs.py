# SPDX-License-Identifier: Apache-2.0
"""Gradients of graphs in unusual forms, against finite differences in double."""

from typing import Any

import numpy as np
import onnx
import pytest
from finite_differences import check, draw, run, run_in_onnxruntime
from onnx import ModelProto

import lnbp_onnx

X = draw(3, 4)


def parsed(text: str, opset: int = 18) -> ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "local": 1]> {text}')


GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "one operand twice": (
        """m (double[3, 3] x) => (double y) {
            a = Add (x, x)
            b = Mul (x, x)
            c = Sub (a, b)
            d = MatMul (x, x)
            e = Gemm <transA = 1> (x, x, x)
            f = Concat <axis = 0> (x, x)
            g = Div (x, x)
            h = Sum (c, d, e, g, x, x)
            i = ReduceSum <keepdims = 0> (h)
            j = ReduceSumSquare <keepdims = 0> (f)
            y = Add (i, j)
        }""",
        {"x": draw(3, 3) + 0.1},
    ),
    "one operand twice, batched": (
        """m (double[2, 3, 3] x) => (double y) {
            z = Constant <value = double {0.0}> ()
            t = Greater (x, z)
            a = MatMul (x, x)
            b = Einsum <equation = "bij,bkj->bik"> (x, a)
            c = Pow (x, x)
            d = Where (t, x, x)
            e = Max (x, x)
            f = Sum (b, c, d, e)
            y = ReduceSum <keepdims = 0> (f)
        }""",
        {"x": draw(2, 3, 3, low=0.5, high=1.5)},
    ),
    "scalars": (
        """m (double x, double w) => (double y) {
            a = Mul (x, w)
            b = Sin (a)
            c = ReduceSum <keepdims = 0> (b)
            d = ReduceMean (c)
            e = Max (d, w)
            f = Pow (e, x)
            y = Sub (f, x)
        }""",
        {"x": np.array(1.3), "w": np.array(0.7)},
    ),
    "broadcast along everything": (
        """m (double[3, 1, 2] x, double[4, 1] w, double v) => (double[3, 4, 2] y) {
            a = Mul (x, w)
            b = Add (a, v)
            c = Div (b, w)
            y = Sub (v, c)
        }""",
        {"x": draw(3, 1, 2), "w": draw(4, 1, low=1.0, high=2.0), "v": np.array(0.3)},
    ),
    "no rows": (
        """m (double[n, 4] x, double[4, 2] w) => (double y) {
            a = MatMul (x, w)
            b = Relu (a)
            c = Softmax (b)
            d = Concat <axis = 0> (c, c)
            e = Transpose (d)
            y = ReduceSum <keepdims = 0> (e)
        }""",
        {"x": np.zeros((0, 4)), "w": draw(4, 2)},
    ),
    "an empty part": (
        """m (double[3, 4] x) => (double[3, 4] y) {
            s = Constant <value_ints = [0, 4]> ()
            a, b = Split <axis = 1> (x, s)
            e = Exp (a)
            c = Concat <axis = 1> (e, b)
            y = Mul (c, x)
        }""",
        {"x": X},
    ),
    "parts that are used twice or not at all": (
        """m (double[3, 7] x) => (double[3, 3] y) {
            a, b, c = Split <axis = 1, num_outputs = 3> (x)
            d = Mul (b, a)
            y = Add (d, a)
        }""",
        {"x": draw(3, 7)},
    ),
    "a slice without axes": (
        """m (double[3, 4] x) => (double[2, 2] y) {
            s = Constant <value_ints = [2, 3]> ()
            e = Constant <value_ints = [-9, 0]> ()
            t = Constant <value_ints = [-2, -2]> ()
            y = Slice (x, s, e, , t)
        }""",
        {"x": X},
    ),
    "shapes of zeros and minus one": (
        """m (double[a, b, 4] x) => (double[a, c] y) {
            s = Constant <value_ints = [0, -1]> ()
            r = Reshape (x, s)
            y = Sin (r)
        }""",
        {"x": draw(2, 3, 4)},
    ),
    "lengths that are computed": (
        """m (double[a, b] x, double[4] w) => (double[c] y) {
            f = Constant <value_ints = [4]> ()
            two = Constant <value_ints = [1, 2]> ()
            minus = Constant <value_ints = [-1]> ()
            k = Constant <value = double[3] {1.0, 2.0, -1.0}> ()
            s = Shape (x)
            o = Constant <value_ints = [0]> ()
            n = Gather (s, o)
            m = Concat <axis = 0> (n, f)
            e = Expand (w, m)
            t = Tile (e, two)
            u = Sin (x)
            g = MatMul (u, k)
            h = ReduceSum (g)
            j = Mul (t, h)
            r = Reshape (j, minus)
            y = Sin (r)
        }""",
        {"x": draw(2, 3), "w": draw(4)},
    ),
    "ties": (
        """m (double[3, 4] x) => (double y) {
            z = Constant <value_ints = [1]> ()
            a = ReduceMax <keepdims = 0> (x, z)
            b = Max (x, x, x)
            c = Relu (x)
            d = Mul (a, a)
            e = ReduceSum <keepdims = 0> (d)
            f = Mul (b, c)
            g = ReduceSum <keepdims = 0> (f)
            y = Add (e, g)
        }""",
        {"x": X},
    ),
    "a branch within a loop": (
        """m (double[3] x, double[3] w) => (double[3] y, double[4, 3] z) {
            four = Constant <value = int64 {4}> ()
            yes = Constant <value = bool {1}> ()
            two = Constant <value = int64 {2}> ()
            y, z = Loop (four, yes, x) <body = b (int64 i, bool c, double[3] s) => (bool d, double[3] t, double[3] o) {
                d = Identity (c)
                first = Less (i, two)
                t = If (first) <
                    then_branch = u () => (double[3] p) { p = Mul (s, w) },
                    else_branch = v () => (double[3] q) { q0 = Sin (s) q = Add (q0, x) }
                >
                o = Mul (t, s)
            }>
        }""",
        {"x": draw(3) / 2, "w": draw(3)},
    ),
    "a loop of no iterations": (
        """m (double[3] x, double[3] w) => (double[3] y) {
            none = Constant <value = int64 {0}> () yes = Constant <value = bool {1}> ()
            s = Loop (none, yes, x) <body = b (int64 i, bool c, double[3] s) => (bool d, double[3] t) {
                d = Identity (c) t = Mul (s, w)
            }>
            y = Mul (s, w)
        }""",
        {"x": draw(3), "w": draw(3)},
    ),
    "functions in functions": (
        """m (double[3] x, double[3] w) => (double[3] y) { a = local.twice <slope = 0.3> (x) b = local.twice
            <slope = 0.7> (a) y = Mul (b, w) }
        <domain: "local", opset_import: ["": 18, "local": 1]>
        twice <slope> (x) => (y) { a = local.once <alpha: float = @slope> (x) y = Mul (a, x) }
        <domain: "local", opset_import: ["": 18]>
        once <alpha> (x) => (y) { y = LeakyRelu <alpha: float = @alpha> (x) }""",
        {"x": draw(3), "w": draw(3)},
    ),
    "a value that goes on": (
        """m (double[3, 4] x) => (double[3, 4] z, double[3, 4] y) {
            y = Sin (x)
            z = Exp (y)
        }""",
        {"x": X},
    ),
    "what has no gradient on the way": (
        """m (double[3, 4] x) => (double[3, 4] y) {
            f = Floor (x)
            s = Sign (x)
            g = Greater (x, f)
            c = Cast <to = 11> (g)
            i = ArgMax <axis = 1, keepdims = 1> (x)
            j = GatherElements <axis = 1> (x, i)
            k = Mul (x, s)
            l = Mul (k, c)
            y = Mul (l, j)
        }""",
        {"x": X},
    ),
    "indices that repeat, negative and of several axes": (
        """m (double[3, 4] x, double[2, 2] w) => (double[3, 2, 2] y) {
            i = Constant <value = int64[2, 2] {-1, 0, 3, 0}> ()
            g = Gather <axis = -1> (x, i)
            y = Mul (g, w)
        }""",
        {"x": X, "w": draw(2, 2)},
    ),
    "one input of many": (
        """m (double[3, 4] x) => (double[3, 4] y) {
            a = Max (x)
            b = Sum (a)
            c = Mean (b)
            d = Min (c)
            e = Concat <axis = 0> (d)
            y = Sin (e)
        }""",
        {"x": X},
    ),
    "a power of integers": (
        """m (double[3, 4] x) => (double[3, 4] y) {
            n = Constant <value = int64[4] {0, 1, 2, 3}> ()
            y = Pow (x, n)
        }""",
        {"x": X},
    ),
    "an empty list of axes": (
        """m (double[3, 4] x) => (double[3, 4] y) {
            z = Constant <value = int64[0] {}> ()
            a = ReduceSum <noop_with_empty_axes = 1> (x, z)
            b = ReduceMax (x, z)
            c = Mul (a, b)
            y = Mul (c, x)
        }""",
        {"x": X},
    ),
    "a squeeze of all": (
        """m (double[1, 3, 1] x) => (double[3] y) {
            s = Squeeze (x)
            y = Sin (s)
        }""",
        {"x": draw(1, 3, 1)},
    ),
    "masks that are broadcast": (
        """m (double[3, 4] x, double w) => (double[2, 3, 4] y) {
            c = Constant <value = bool[2, 1, 4] {1, 0, 0, 1, 0, 1, 1, 0}> ()
            y = Where (c, x, w)
        }""",
        {"x": X, "w": np.array(0.4)},
    ),
    "layers that share parameters": (
        """m (double[2, 3, 4] x, double[3] w) => (double[2, 3, 4] y) {
            m = Mul (w, w)
            a = BatchNormalization <epsilon = 0.1> (x, w, w, w, m)
            y = InstanceNormalization <epsilon = 0.1> (a, w, w)
        }""",
        {"x": draw(2, 3, 4), "w": draw(3, low=0.5, high=1.5)},
    ),
    "layer norms of one length and of many": (
        """m (double[2, 3, 4] x, double[3, 4] w, double[4] v) => (double[2, 3, 4] y) {
            a = LayerNormalization <axis = 1, epsilon = 0.1> (x, w)
            y, i, j = LayerNormalization <epsilon = 0.1> (a, v, v)
        }""",
        {"x": draw(2, 3, 4), "w": draw(3, 4), "v": draw(4)},
    ),
    "names that gradients would have": (
        """m (double[3] x, double[3] "x.grad_sum") => (double[3] y) {
            "y/Mul" = Sin (x)
            a = Mul ("y/Mul", x)
            y = Mul (a, "x.grad_sum")
        }""",
        {"x": draw(3), "x.grad_sum": draw(3)},
    ),
    "a chain of reshapes": (
        """m (double[2, 3, 4] x) => (double[4, 6] y) {
            f = Flatten <axis = 0> (x)
            t = Transpose (f)
            s = Constant <value_ints = [4, 6]> ()
            r = Reshape (t, s)
            y = Exp (r)
        }""",
        {"x": draw(2, 3, 4)},
    ),
    "a repetition of nothing": (
        """m (double[3, 4] x) => (double y) {
            n = Constant <value_ints = [0, 1]> ()
            t = Tile (x, n)
            c = Concat <axis = 0> (t, x)
            e = Exp (c)
            y = ReduceSum <keepdims = 0> (e)
        }""",
        {"x": X},
    ),
    "a scan over columns from the end": (
        """m (double[3, 4] x, double[3] w) => (double[3, 4] y) {
            s, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
                scan_output_axes = [1], body = b (double[3] s, double[3] c) => (double[3] t, double[3] o) {
                    p = Mul (s, c) t = Add (p, w) o = Sin (t) }> (w, x)
        }""",
        {"x": X, "w": draw(3)},
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str) -> None:
    text, given = GRAPHS[name]
    is_beyond_the_evaluator = any(word in name for word in ("functions", "norms", "no iterations", "scan"))
    check(parsed(text), given, run=run_in_onnxruntime if is_beyond_the_evaluator else run)


@pytest.mark.parametrize("is_used_outside", [False, True])
def test_an_initializer_that_subgraphs_read(is_used_outside: bool) -> None:
    model = parsed(
        """m (double[3] x) => (double y) {
            zero = Constant <value = double {0.0}> ()
            s = ReduceSum <keepdims = 0> (x)
            positive = Greater (s, zero)
            a = If (positive) <
                then_branch = u () => (double[3] p) { p = Mul (x, w) },
                else_branch = v () => (double[3] q) { q = Identity (x) }
            >
            b = Mul (a, OTHER)
            y = ReduceSum <keepdims = 0> (b)
        }""".replace("OTHER", "w" if is_used_outside else "x")
    )
    w = np.array([1.0, 2.0, 3.0])
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    result = lnbp_onnx.gradient(model, of="y")
    assert [output.name for output in result.graph.output] == ["y", "w.grad"]
    for sign in (1, -1):
        x = sign * np.array([1.0, 2.0, -0.5])
        expected = (2 * x * w if is_used_outside else x * x) if sign == 1 else (x if is_used_outside else 0 * x)
        np.testing.assert_allclose(run_in_onnxruntime(result, {"x": x})["w.grad"], expected)


REFUSED: dict[str, tuple[str, str, str]] = {
    "an intermediate": ("a = Sin (x) y = Exp (a)", "a", "neither an input nor an initializer 'a'"),
    "nothing but its shape": ("s = Shape (x) y = Cast <to = 11> (s)", "x", "does not depend on 'x'"),
    "its largest place": ("s = ArgMax (x) y = Cast <to = 11> (s)", "x", "does not depend on 'x'"),
    "integers of it": ("s = Cast <to = 7> (x) y = Cast <to = 11> (s)", "x", "does not depend on 'x'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_gradient(name: str) -> None:
    body, wrt, message = REFUSED[name]
    model = parsed(f"m (double[3] x) => (double[k] y) {{ {body} }}")
    with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
        lnbp_onnx.gradient(model, of="y", wrt=[wrt], seed="seed")


def test_all_that_is_not_covered_is_named() -> None:
    model = parsed("m (double[3] x) => (double[3] y) { a = Mod <fmod = 1> (x, x) b = Hardmax (x) y = Mul (a, b) }")
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"Mod node .*; Hardmax node"):
        lnbp_onnx.gradient(model, of="y", wrt=["x"], seed="seed")
