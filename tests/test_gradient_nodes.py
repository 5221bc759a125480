# SPDX-License-Identifier: Apache-2.0
"""ONNX's operator Gradient, against outputs that ONNX records and derivatives that are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from command_line import command
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

import lnbp_onnx
from lnbp_onnx.graphs import opsets

Arrays = dict[str, np.ndarray[Any, Any]]

RECORDED = Path(onnx.__file__).parent / "backend/test/data/simple"


def parsed(text: str, opset: int = 18) -> ModelProto:
    domains = f'"": {opset}, "ai.onnx.preview.training": 1, "own": 1'
    return onnx.parser.parse_model(
        f"<ir_version: 10, opset_import: [{domains}]>" + text.replace("Gradient", "ai.onnx.preview.training.Gradient")
    )


def expanded(model: ModelProto) -> ModelProto:
    before = model.SerializeToString()
    result = lnbp_onnx.decompose(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    assert all(node.domain == "" for node in result.graph.node)
    assert "ai.onnx.preview.training" not in {each.domain for each in result.opset_import}
    assert list(result.graph.output) == list(model.graph.output)
    return result


def run(model: ModelProto, **feeds: Any) -> Arrays:
    results = ReferenceEvaluator(expanded(model)).run(None, {name: np.array(each) for name, each in feeds.items()})
    return {output.name: np.asarray(each) for output, each in zip(model.graph.output, results, strict=True)}


@pytest.mark.parametrize("name", ["test_gradient_of_add", "test_gradient_of_add_and_mul"])
def test_recorded_by_onnx(name: str) -> None:
    model = onnx.load(RECORDED / name / "model.onnx")
    tensors = {
        path.stem: numpy_helper.to_array(onnx.load_tensor(path)) for path in (RECORDED / name).glob("test_data_set_0/*")
    }
    assert len(tensors) == 5
    session = onnxruntime.InferenceSession(expanded(model).SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(None, {"a": tensors["input_0"], "b": tensors["input_1"]})
    for index, result in enumerate(results):
        np.testing.assert_array_equal(result, tensors[f"output_{index}"])


# y = x w + z, with h = x w.
LINEAR = (
    "m (double[2, 3] x, double[3, 2] w, double[2] z{more}) => ({outputs})"
    " {{ h = MatMul (x, w) y = Add (h, z) {nodes} }}"
)
X, W = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2) - 2


def linear(nodes: str, outputs: str, more: str = "") -> ModelProto:
    return parsed(LINEAR.format(nodes=nodes, outputs=outputs, more=more))


def test_several_elements_of_y_are_summed() -> None:
    model = linear('dw, dz = Gradient <xs=["w", "z"], zs=["x"], y="y"> (w, z, x)', "double[3, 2] dw, double[2] dz")
    found = run(model, x=X, w=W, z=np.zeros(2))
    np.testing.assert_array_equal(found["dw"], np.outer(X.sum(0), np.ones(2)))
    np.testing.assert_array_equal(found["dz"], [2, 2])


def test_intermediate_values_are_differentiated_by() -> None:
    model = linear('"", dz = Gradient <xs=["h", "z"], y="y"> (h, z)', "double[2] dz")
    np.testing.assert_array_equal(run(model, x=X, w=W, z=np.zeros(2))["dz"], [2, 2])
    model = linear('dh = Gradient <xs=["h"], y="s"> (h) s = Mul (h, h)', "double[2, 2] dh")
    np.testing.assert_array_equal(run(model, x=X, w=W, z=np.zeros(2))["dh"], 2 * X @ W)


def test_values_at_other_inputs() -> None:
    """The forward values are of x and w, those of the gradient of v and u."""
    model = linear(
        's = Mul (y, y) dw, dz = Gradient <xs=["w", "z"], zs=["x"], y="s"> (u, z, v)',
        "double[2, 2] s, double[3, 2] dw, double[2] dz",
        ", double[3, 2] u, double[5, 3] v",
    )
    u, v, z = W + 1, np.arange(15.0).reshape(5, 3), np.array([1.0, -1.0])
    found = run(model, x=X, w=W, z=z, u=u, v=v)
    np.testing.assert_array_equal(found["s"], (X @ W + z) ** 2)
    np.testing.assert_array_equal(found["dw"], v.T @ (2 * (v @ u + z)))
    np.testing.assert_array_equal(found["dz"], (2 * (v @ u + z)).sum(0))


def test_one_input_for_two_variables() -> None:
    model = parsed(
        'm (double a, double b, double c) => (double da, double db) { y = Mul (a, b) da, db = Gradient <xs=["a", "b"],'
        ' y="y"> (c, e) e = Neg (c) }'
    )
    model.graph.node.insert(1, model.graph.node.pop())
    assert run(model, a=1.0, b=1.0, c=5.0) == {"da": -5.0, "db": 5.0}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_second_order(order: tuple[int, ...]) -> None:
    """Of x^3 w, whatever the order of the nodes: what a node's y comes from is no input of it."""
    model = parsed(
        """m (double[2] x, double w) => (double[2] dx, double[2] dxdx, double dxdw) {
            cube = Pow (x, three)
            y = Mul (cube, w)
            dx = Gradient <xs=["x"], zs=["w"], y="y"> (x, w)
            dxdx, dxdw = Gradient <xs=["x", "w"], y="dx"> (x, w)
        }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(3.0), "three"))
    nodes = [model.graph.node[index] for index in order]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    x = np.array([2.0, -3.0])
    found = run(model, x=x, w=0.5)
    np.testing.assert_allclose(found["dx"], 1.5 * x**2)
    np.testing.assert_allclose(found["dxdx"], 3 * x)
    np.testing.assert_allclose(found["dxdw"], np.sum(3 * x**2))


def test_layer_norms_leave_no_node_of_lnbp() -> None:
    model = parsed(
        """m (float[2, 3] x, float[3] g, float[2, 3] t) => (float[2, 3] dx) {
            n = LayerNormalization (x, g) p = Mul (n, t) y = ReduceSum <keepdims=0> (p)
            dx = Gradient <xs=["x"], zs=["g", "t"], y="y"> (x, g, t)
        }"""
    )
    x, g, t = (np.random.default_rng(1).normal(size=shape).astype(np.float32) for shape in ((2, 3), 3, (2, 3)))
    expected = lnbp_onnx.layer_norm_backprop(x, t, g, use_stats=False)[0]
    np.testing.assert_allclose(run(model, x=x, g=g, t=t)["dx"], expected, rtol=1e-5, atol=1e-6)


def test_functions_and_objects() -> None:
    model = parsed(
        """m (double a) => (double da) { da = own.Slope (a) }
        <opset_import: ["": 18, "ai.onnx.preview.training": 1], domain: "own"> Slope (x) => (d) {
            y = Mul (x, x) d = Gradient <xs=["x"], y="y"> (x)
        }"""
    )
    result = lnbp_onnx.decompose(ir.from_proto(model))
    assert not result.functions
    assert ReferenceEvaluator(ir.to_proto(result)).run(None, {"a": np.array(3.0)}) == [6.0]


def refusal(model: ModelProto) -> str:
    with pytest.raises(lnbp_onnx.InvalidModelError) as error:
        lnbp_onnx.decompose(model)
    return str(error.value)


@pytest.mark.parametrize(
    ("nodes", "part"),
    [
        ('d = Gradient <xs=["w"], zs=["x"], y="y"> (w)', "has 1 inputs, xs names 1 and zs 1"),
        ('d = Gradient <xs=["v"], y="y"> (w)', "xs: the graph has no value 'v'"),
        ('d = Gradient <xs=["w"], y="u"> (w)', "y: no node of the graph computes 'u'"),
        ('d = Gradient <xs=["w"]> (w)', "attribute y is missing"),
        ('d = Gradient <xs="w", y="y"> (w)', "attribute xs is no list of strings"),
        ('d, e = Gradient <xs=["w"], y="y"> (w)', "has 2 outputs"),
        ('d = Gradient <xs=["w", "w"], y="y"> (w, w)', "a name twice"),
        ('d = Gradient <xs=["w", "h"], y="y"> (w, h)', "'h' is among xs and zs and is computed"),
        ('d = Gradient <xs=["w"], zs=["h"], y="y"> (w, h)', "'h' is among xs and zs and is computed"),
        ('u = Hardmax (y) d = Gradient <xs=["w"], y="u"> (w)', "Hardmax node 'u'"),
        ('u = Shape (y) v = Cast <to=11> (u) d = Gradient <xs=["w"], y="v"> (w)', "does not depend on 'w'"),
    ],
)
def test_refusals(nodes: str, part: str) -> None:
    text = refusal(linear(nodes, "double[3, 2] d"))
    assert text.startswith("Gradient node 'd'")
    assert part in text


def test_integers_have_no_gradient() -> None:
    model = parsed(
        'm (int64 a, float b) => (int64 d) { c = Cast <to=1> (a) y = Mul (b, c) d = Gradient <xs=["a"], y="y"> (a) }'
    )
    assert "xs: 'a' is not known to be of type float" in refusal(model)


def test_branches_at_other_inputs() -> None:
    model = parsed(
        """m (bool c, float a, float b) => (float d) { y = If (c) <
            then_branch = t () => (float u) { u = Mul (a, a) },
            else_branch = e () => (float v) { v = Neg (a) }> d = Gradient <xs=["a"], y="y"> (b) }"""
    )
    assert "If node 'y' leads to y and holds a graph" in refusal(model)


def test_a_circle() -> None:
    assert "y that depends on itself" in refusal(linear('d = Gradient <xs=["w"], y="d"> (w)', "double[3, 2] d"))


def test_in_a_subgraph() -> None:
    model = parsed(
        """m (bool c, float a) => (float d) { y = Mul (a, a) d = If (c) <
            then_branch = t () => (float u) { u = Gradient <xs=["a"], y="y"> (a) },
            else_branch = e () => (float v) { v = Neg (a) }> }"""
    )
    assert "Gradient node 'u' in graph / If" in refusal(model)


def test_opset_12_is_raised_where_its_operators_are_those_of_13() -> None:
    text = 'm (float[2, 2] a) => (float[2, 2] d) { y = OP (a) d = Gradient <xs=["a"], y="y"> (a) }'
    raised = expanded(parsed(text.replace("OP", "Tanh"), 12))
    assert [each.version for each in raised.opset_import if each.domain == ""] == [13]
    assert "in which Softmax have another form" in refusal(parsed(text.replace("OP", "Softmax"), 12))
    assert "opset is 11" in refusal(parsed(text.replace("OP", "Tanh"), 11))
    plain = parsed("m (float a) => (float b) { b = Abs (a) }", 12)
    assert lnbp_onnx.decompose(plain) == plain


def test_operators_that_opset_13_changed() -> None:
    """The others have the same attributes, with the same defaults, and inputs; these are more optional in three."""

    def form(name: str, opset: int) -> object:
        schema = onnx.defs.get_schema(name, opset)
        attributes = {name: each.default_value.SerializeToString() for name, each in schema.attributes.items()}
        return schema.deprecated, attributes, len(schema.inputs), len(schema.outputs)

    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    changed = set()
    for name in names:
        try:
            if form(name, 12) != form(name, 13):
                changed.add(name)
        except onnx.defs.SchemaError:  # of a later opset
            continue
    assert changed - {"DequantizeLinear", "QuantizeLinear"} == opsets._CHANGED_IN_13


def test_command(tmp_path: Path) -> None:
    model = linear('d = Gradient <xs=["w"], zs=["x"], y="y"> (w, x)', "double[3, 2] d")
    onnx.save(model, tmp_path / "m.onnx")
    result = command("decompose", "m.onnx", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Gradient nodes expanded: d." in result.stdout
    assert onnx.load(tmp_path / "m.decomposed.onnx") == lnbp_onnx.decompose(model)
    data = json.loads(command("decompose", "m.onnx", "--json", "--force", cwd=tmp_path).stdout)
    assert (data["gradient_nodes"], data["nodes"]) == (["d"], [])
