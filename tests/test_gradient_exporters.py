# SPDX-License-Identifier: Apache-2.0
"""Forms that exporters write, against finite differences in double: sequences of parts, lists that are computed."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from finite_differences import check, draw, run_in_onnxruntime
from onnx import ModelProto

import lnbp_onnx
from lnbp_onnx.graphs.constants import fold_lists

X = draw(3, 5)


def parsed(body: str, opset: int = 18) -> ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> m (double[3, 5] x) => (double y) {{ {body} }}'
    )


def ints_node(name: str, values: str) -> str:
    return f"{name} = Constant <value = int64[{values.count(',') + 1}] {{{values}}}> () "


def int_node(name: str, value: int) -> str:
    return f"{name} = Constant <value = int64 {{{value}}}> () "


WRITTEN = {
    "parts of lengths": ints_node("n", "2, 3")
    + int_node("one", 1)
    + int_node("last", -2)
    + "s = SplitToSequence <axis = -1> (x, n) a = SequenceAt (s, one) b = SequenceAt (s, last)"
    " c = Sin (a) d = Exp (b) e = Concat <axis = 1> (c, d, a) y = ReduceSum <keepdims = 0> (e)",
    "parts of a length": int_node("n", 2)
    + int_node("zero", 0)
    + "s = SplitToSequence (x, n) a = SequenceAt (s, zero) b = Exp (a) y = ReduceSum <keepdims = 0> (b)",
    "single rows": int_node("zero", 0)
    + int_node("two", 2)
    + "s = SplitToSequence <keepdims = 0> (x) a = SequenceAt (s, zero) b = SequenceAt (s, two) c = Mul (a, b)"
    " y = ReduceSum <keepdims = 0> (c)",
    "a sequence that is joined again": int_node("n", 1)
    + "e = Exp (x) s = SplitToSequence (x, n) t = SequenceConstruct (e, x)"
    " a = ConcatFromSequence <axis = 0, new_axis = 1> (t) b = ConcatFromSequence <axis = 0> (s) c = Mul (a, b)"
    " y = ReduceSum <keepdims = 0> (c)",
    "axes that are reshaped": int_node("one", 1)
    + ints_node("minus", "-1")
    + "axes = Reshape (one, minus) m = ReduceMean (x, axes) e = Exp (m) y = ReduceSum <keepdims = 0> (e)",
    "axes that are joined and cast": ints_node("a", "0")
    + "b = Constant <value = int32 {1}> () c = Cast <to = 7> (b) d = Unsqueeze (c, a) axes = Concat <axis = 0> (a, d)"
    " e = Exp (x) y = ReduceMean <keepdims = 0> (e, axes)",
    "one element": int_node("one", 1)
    + int_node("last", -1)
    + "r = Gather <axis = 0> (x, one) e = Gather <axis = 0> (r, last) y = Exp (e)",
    "a slice of all": ints_node("zero", "0")
    + ints_node("end", "9223372036854775807")
    + "s = Slice (x, zero, end, zero) e = Exp (s) y = ReduceSum <keepdims = 0> (e)",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_forms(name: str) -> None:
    result = check(parsed(WRITTEN[name]), {"x": X})
    assert not {node.op_type for node in result.graph.node} & {"SplitToSequence", "SequenceAt", "SequenceConstruct"}


def test_other_readers_of_a_sequence() -> None:
    body = "s = SplitToSequence (x, n) a = SequenceAt (s, zero) c = SequenceLength (s) d = Cast <to = 11> (c)"
    body += " b = Exp (a) e = Mul (b, d) y = ReduceSum <keepdims = 0> (e)"
    check(parsed(int_node("n", 1) + int_node("zero", 0) + body), {"x": X})
    result = lnbp_onnx.gradient(parsed(int_node("n", 1) + int_node("zero", 0) + body), of="y", wrt=["x"])
    onnx.checker.check_model(result, full_check=True)


REFUSED = {
    "its position is computed": int_node("n", 1)
    + "s = SplitToSequence (x, n) f = ReduceSum <keepdims = 0> (x) i = Cast <to = 7> (f) a = SequenceAt (s, i)"
    " y = ReduceSum <keepdims = 0> (a)",
    "into how many parts": "f = ReduceSum <keepdims = 0> (x) n = Cast <to = 7> (f) s = SplitToSequence (x, n)"
    + int_node(" zero", 0)
    + "a = SequenceAt (s, zero) y = ReduceSum <keepdims = 0> (a)",
    "its position is 3": int_node("n", 2)
    + int_node("three", 3)
    + "s = SplitToSequence (x, n) a = SequenceAt (s, three) y = ReduceSum <keepdims = 0> (a)",
    "comes neither from": int_node("zero", 0)
    + "e = SequenceEmpty <dtype = 11> () s = SequenceInsert (e, x) a = SequenceAt (s, zero)"
    " y = ReduceSum <keepdims = 0> (a)",
}


@pytest.mark.parametrize("message", REFUSED)
def test_sequences_that_are_known_at_run_time_only(message: str) -> None:
    with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
        lnbp_onnx.gradient(parsed(REFUSED[message]), of="y", wrt=["x"])


def test_lists_that_cannot_be_computed_stay() -> None:
    body = ints_node("a", "0, 1, 2") + ints_node("b", "7, 7") + "c = Reshape (a, b) y = ReduceSum <keepdims = 0> (x, c)"
    model = ir.from_proto(parsed(body))
    fold_lists(model.graph, model.opset_imports)
    assert "Reshape" in [node.op_type for node in model.graph]


def test_lists_do_not_grow_without_an_end() -> None:
    doubled = " ".join(f"a{place + 1} = Concat <axis = 0> (a{place}, a{place})" for place in range(60))
    model = ir.from_proto(parsed(ints_node("a0", "0, 1") + doubled + " y = ReduceSum <keepdims = 0> (x, a0)"))
    fold_lists(model.graph, model.opset_imports)
    constants = [node for node in model.graph if node.op_type == "Constant"]
    assert len(constants) == 10  # the last has 1,024 elements


def test_parameters_are_not_folded() -> None:
    """A number of a floating type may be a parameter, whatever is cast or shaped of it."""
    model = parsed("m = Mul (x, scaled) y = ReduceSum <keepdims = 0> (m)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2.0, np.float32), "scale"))
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["scale"], ["scaled"], to=onnx.TensorProto.DOUBLE))
    result = lnbp_onnx.gradient(model, of="y", wrt=["scale"])
    found = run_in_onnxruntime(result, {"x": X})["scale.grad"]
    np.testing.assert_allclose(found, X.sum(), rtol=1e-6)


@pytest.mark.parametrize("sizes", [(2, 8, 6), (2, 4, 3)], ids=["larger", "as it is"])
def test_resize_to_sizes_in_onnxruntime(sizes: tuple[int, ...]) -> None:
    """With a batch of any size ONNX Runtime finds no length of what its sizes are a part of."""
    inputs = "float[n, 4, 3] x, float[n, 4, 3] other"
    text = ", ".join(map(str, sizes))
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> m ({inputs}) => (float[n, 2, {sizes[1]}, {sizes[2]}] y)'
        f'<int64[3] s = {{{text}}}, int64[1] one = {{1}}> {{ r = Resize <mode = "linear"> (x, , , s)'
        " e = Unsqueeze (r, one) y = Concat <axis = 1> (e, e) }"
    )
    result = lnbp_onnx.gradient(model, of="y", wrt=["x"], seed="seed")
    x: Any = np.zeros((2, 4, 3), np.float32)
    seed = np.ones((2, 2, *sizes[1:]), np.float32)
    found = run_in_onnxruntime(result, {"x": x, "other": x, "seed": seed})["x.grad"]
    np.testing.assert_allclose(found.sum(), seed.sum(), rtol=1e-6)
