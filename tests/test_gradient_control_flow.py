# SPDX-License-Identifier: Apache-2.0
"""Gradients through branches, loops and calls of functions, against finite differences in double."""

import time

import numpy as np
import onnx
import pytest
from finite_differences import DOUBLE, Runtime, check, draw, run, run_in_onnxruntime
from onnx import helper

import lnbp_onnx

A, B, W, X = draw(3), draw(2, 3), draw(3) * 0.9, draw(5, 3) * 0.5


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 18, "own": 1]> ' + text)


IF = """m (bool c, double[3] a, double[2, 3] b) => (double[2, 3] y) {
    s = Neg (a)
    y = If (c) <
        then_branch = t () => (double[2, 3] u) { w = Mul (a, b) u = Mul (w, s) },
        else_branch = e () => (double[2, 3] v) { v = Sin (b) }
    >
}"""


@pytest.mark.parametrize("runtime", [run, run_in_onnxruntime])
@pytest.mark.parametrize("condition", [True, False])
def test_if(condition: bool, runtime: Runtime) -> None:
    result = check(parse(IF), {"a": A, "b": B}, run=runtime, also={"c": np.array(condition)})
    assert [node.op_type for node in result.graph.node].count("If") == 2


def test_initializers_of_branches_of_one_name() -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op_type, ["a", "k"], ["o"])],
            name,
            [],
            [helper.make_tensor_value_info("o", DOUBLE, [3])],
            [onnx.numpy_helper.from_array(np.array(factors), "k")],
        )
        for name, op_type, factors in (("then", "Mul", [1.0, 2.0, 3.0]), ("else", "Div", [4.0, 5.0, 6.0]))
    }
    model = parse("m (bool c, double[3] a) => (double[3] y) { y = Identity (a) }")
    model.graph.node[0].CopyFrom(helper.make_node("If", ["c"], ["y"], **branches))
    for condition in (True, False):
        check(model, {"a": A}, run=run_in_onnxruntime, also={"c": np.array(condition)})


LOOP = """m (int64 n, double[3] a, double[3] w) => (double[3] y) {
    true = Constant <value = bool {1}> ()
    last, each = Loop (n, true, a) <
        body = b (int64 i, bool c, double[3] s) => (bool co, double[3] so, double[3] zo) {
            q = Cast <to = 11> (i) r = Mul (s, w) k = Sin (r) so = Add (k, q) zo = Mul (s, so) co = Identity (c)
        }
    >
    total = ReduceSum <keepdims = 0> (each)
    y = Mul (last, total)
}"""


@pytest.mark.parametrize("count", [0, 1, 3])
def test_loop(count: int) -> None:
    check(parse(LOOP), {"a": A, "w": W}, run=run_in_onnxruntime, also={"n": np.array(count)})


def test_loop_that_ends_by_its_condition() -> None:
    text = """m (double[3] a) => (double[3] y) {
        n = Constant <value = int64 {100}> ()
        y, steps = Loop (n, , a) <
            body = b (int64 i, bool c, double[3] s) => (bool co, double[3] so, int64 io) {
                k = Constant <value = double {1.3}> ()
                limit = Constant <value = double {9.0}> ()
                so = Mul (s, k)
                longest = ReduceMax <keepdims = 0> (so)
                co = Less (longest, limit)
                io = Identity (i)
            }
        >
    }"""
    check(parse(text), {"a": A}, run=run_in_onnxruntime)


SCAN = """m (double[3] a, double[5, 3] x, double[3] w) => (double[3, 5] y) {
    last, each = Scan <
        num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [1],
        body = b (double[3] s, double[3] e) => (double[3] so, double[3] zo) {
            p = Mul (s, w) q = Add (p, e) so = Tanh (q) zo = Mul (so, e)
        }
    > (a, x)
    column = Unsqueeze (last, one)
    y = Add (each, column)
}"""


def test_scan() -> None:
    model = parse(SCAN)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    check(model, {"a": A, "x": X, "w": W}, run=run_in_onnxruntime)


def test_layer_norm_in_a_scan() -> None:
    text = """m (double[2, 4] a, double[3, 2, 4] x, double[4] g) => (double[2, 4] y) {
        y = Scan <
            num_scan_inputs = 1,
            body = b (double[2, 4] s, double[2, 4] e) => (double[2, 4] so) {
                t = Add (s, e) so = LayerNormalization <epsilon = 0.1> (t, g)
            }
        > (a, x)
    }"""
    result = check(parse(text), {"a": draw(2, 4), "x": draw(3, 2, 4), "g": draw(4)}, run=run_in_onnxruntime)
    backwards = result.graph.node[-1] if result.graph.node[-1].op_type == "Scan" else None
    assert backwards is not None
    body = next(attribute.g for attribute in backwards.attribute if attribute.name == "body")
    assert [each.op_type for each in body.node if each.domain == lnbp_onnx.DOMAIN] == ["LayerNormBackprop"]
    onnx.checker.check_model(lnbp_onnx.decompose(result))


def test_branch_in_a_scan() -> None:
    text = """m (double[3] a, double[5, 3] x, double[3] w) => (double[3] y) {
        y = Scan <
            num_scan_inputs = 1,
            body = b (double[3] s, double[3] e) => (double[3] so) {
                zero = Constant <value = double {0.0}> ()
                total = ReduceSum <keepdims = 0> (e)
                c = Greater (total, zero)
                r = If (c) <
                    then_branch = t () => (double[3] u) { m = Mul (s, w) u = Add (m, e) },
                    else_branch = f () => (double[3] v) { v = Mul (s, e) }
                >
                so = Sin (r)
            }
        > (a, x)
    }"""
    check(parse(text), {"a": A, "x": X, "w": W}, run=run_in_onnxruntime)


def test_states_that_lead_to_each_other() -> None:
    # By the second state the result depends on a only after two iterations, and on an integer never.
    text = """m (double[3] a, double[3] b, double[3] w) => (double[3] y) {
        n = Constant <value = int64 {4}> ()
        zero = Constant <value = int64 {0}> ()
        y, p2, q2, k2 = Loop (n, , b, b, a, zero) <
            body = g (int64 i, bool c, double[3] s, double[3] p, double[3] q, int64 k)
                => (bool co, double[3] so, double[3] po, double[3] qo, int64 ko) {
                co = Identity (c)
                so = Mul (s, p)
                po = Sin (q)
                qo = Mul (q, w)
                ko = Add (k, i)
            }
        >
    }"""
    check(parse(text), {"a": A, "b": W, "w": W + 0.1}, run=run_in_onnxruntime)


def test_states_without_a_declared_shape() -> None:
    text = """m (double[2, 3] a, double[3, 3] w) => (double[2, 3] y) {
        n = Constant <value = int64 {3}> ()
        y = Loop (n, , a) <
            body = b (int64 i, bool c, s) => (bool co, so) {
                co = Identity (c)
                m = Constant <value = int64 {2}> ()
                r = Loop (m, , s) <
                    body = d (int64 j, bool e, t) => (bool eo, to) { eo = Identity (e) to = MatMul (t, w) }
                >
                so = Tanh (r)
            }
        >
    }"""
    check(parse(text), {"a": B, "w": draw(3, 3)}, run=run_in_onnxruntime)


def test_a_state_that_grows_is_refused() -> None:
    text = """m (double[2, 3] a) => (double[n, 3] y) {
        n = Constant <value = int64 {3}> ()
        y = Loop (n, , a) <
            body = b (int64 i, bool c, s) => (bool co, so) { co = Identity (c) so = Concat <axis = 0> (s, a) }
        >
    }"""
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"'s' changes its shape from \[2, 3\] to \[4, 3\]"):
        lnbp_onnx.gradient(parse(text), of="y", wrt=["a"], seed="seed")


def test_what_does_not_pass_a_loop_stays() -> None:
    text = """m (double[3] a) => (double[3] y) {
        n = Constant <value = int64 {2}> ()
        z = Loop (n, , n) <
            body = b (int64 i, bool c, int64 s) => (bool co, int64 so) { co = Identity (c) so = Add (s, i) }
        >
        d = Cast <to = 11> (z)
        y = Mul (a, d)
    }"""
    result = check(parse(text), {"a": A}, run=run_in_onnxruntime)
    assert [len(node.output) for node in result.graph.node if node.op_type == "Loop"] == [1]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("q = Det (s) so = Mul (s, q)", "Det node 'q'"),
        ("m = RandomNormalLike (s) so = Mul (s, m)", "draws random numbers"),
    ],
)
def test_refusals(body: str, part: str) -> None:
    text = """m (double[2, 2] a) => (double[2, 2] y) {
        n = Constant <value = int64 {2}> ()
        y = Loop (n, , a) <
            body = b (int64 i, bool c, double[2, 2] s) => (bool co, double[2, 2] so) { co = Identity (c) BODY }
        >
    }"""
    with pytest.raises(lnbp_onnx.InvalidModelError, match=part):
        lnbp_onnx.gradient(parse(text.replace("BODY", body)), of="y", wrt=["a"], seed="seed")


def test_functions_in_functions_and_branches() -> None:
    model = parse(
        """main (bool c, double[3] a, double[3] w) => (double[3] y) {
            y = If (c) <
                then_branch = t () => (double[3] u) { u, same = own.Twice <power = 3.0> (a, w) },
                else_branch = e () => (double[3] v) { v = own.Times (a) }
            >
        }
        <opset_import: ["": 18, "own": 1], domain: "own"> Twice <power> (x, w) => (z, x)
        { s = own.Times <power: float = @power> (x) t = own.Times (s, w) z = Mul (s, t) }
        <opset_import: ["": 18], domain: "own"> Times <power: float = 2.0> (x, w) => (z)
        { p = Constant <value_float: float = @power> () q = CastLike (p, x) z = Pow (x, q) }"""
    )
    for condition in (True, False):
        result = lnbp_onnx.gradient(model, of="y", wrt=["a"], seed="seed")
        assert not result.functions
        found = run(result, {"a": W + 2, "w": W, "seed": np.ones(3), "c": np.array(condition)})
        power = 3.0 + 6.0 if condition else 2.0
        np.testing.assert_allclose(found["a.grad"], power * (W + 2) ** (power - 1), rtol=1e-6)


def test_time_to_inline_grows_with_the_calls() -> None:
    def seconds(calls: int) -> float:
        body = " ".join(f"v{number + 1} = own.F (v{number})" for number in range(calls))
        model = parse(
            f"""main (double[3] v0) => (double[3] v{calls}) {{ {body} }}
            <opset_import: ["": 18], domain: "own"> F (x) => (z) {{ s = Mul (x, x) z = Add (s, x) }}"""
        )
        start = time.process_time()
        result = lnbp_onnx.gradient(model, of=f"v{calls}", wrt=["v0"], seed="seed")
        assert len(result.graph.node) > 4 * calls
        return time.process_time() - start

    few = min(seconds(200) for _ in range(2))
    assert seconds(1600) < 20 * few
