# SPDX-License-Identifier: Apache-2.0
"""decompose: where it looks for nodes, what it leaves alone, what it refuses."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from cases import Case
from hypothesis import given
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from operator_models import BOOL, DOUBLE, FLOAT, INT64, draw, function_model, info, make_model, operator, subgraph_model
from strategies import problems

import lnbp_onnx
from lnbp_onnx.running.runners import KernelRunner, PlainRunner, ReferenceRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
INT, TENSOR = AttributeProto.INT, AttributeProto.TENSOR
ENCODER = EXAMPLES / "torch_encoder_training_lnbp.onnx"


def all_nodes(model: ModelProto) -> list[NodeProto]:
    found = []
    graphs: list[Any] = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            found.append(node)
            for attribute in node.attribute:
                graphs += [attribute.g, *attribute.graphs]
    return found


def assert_standard(model: ModelProto) -> None:
    assert not [node for node in all_nodes(model) if node.domain == "lnbp"]
    assert not [function for function in model.functions if function.domain == "lnbp"]
    for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
        assert not [opset for opset in imports if opset.domain == "lnbp"]
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def assert_same_results(
    model: ModelProto, feeds: dict[str, Any], original: type[ReferenceRunner | KernelRunner] = ReferenceRunner
) -> ModelProto:
    """Decompose and compare the model, run in the evaluator unless said, with the result in plain ONNX Runtime."""
    result = lnbp_onnx.decompose(model)
    assert_standard(result)
    expected = original(model).run(feeds)
    found = PlainRunner(result).run(feeds)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        # The evaluator stacks the scan outputs of a Loop along their first axis.
        np.testing.assert_allclose(found[name].reshape(array.shape), array, rtol=1e-5, atol=1e-5)
    return result


@given(problems())
def test_properties(case: Case) -> None:
    for shapes in ("static", "symbolic"):
        result = lnbp_onnx.decompose(case.model(shapes=shapes))
        case.check(PlainRunner(result).run(case.arrays()))


@pytest.mark.parametrize("t", ["float", "double", "float16", "int64"])
@pytest.mark.parametrize("rewrite", [lnbp_onnx.decompose, lnbp_onnx.embed])
def test_no_columns_and_a_symbolic_number_of_rows(rewrite: Any, t: str) -> None:
    """The zeros had the wrong type unless they were of double or their shape was static."""
    case = Case(f"no-columns-{t}", (4, 3, 0), axis=1, t=t, gamma_shape=(3, 1))
    model = case.model()
    for value in (*model.graph.input, *model.graph.output):
        if len(value.type.tensor_type.shape.dim) == 3 or value.name in ("gamma", "gamma_delta"):
            value.type.tensor_type.shape.dim[0].dim_param = f"{value.name}_0"
    case.check(PlainRunner(rewrite(model)).run(case.arrays()))


def test_recorded_torch_gradients() -> None:
    result = lnbp_onnx.decompose(onnx.load(ENCODER))
    assert_standard(result)
    reference = np.load(EXAMPLES / "torch_encoder_training_reference.npz")
    feeds = {"ids": reference["ids"], "tgt": reference["tgt"]}
    for runner in (PlainRunner(result), ReferenceRunner(result), ReferenceRunner(onnx.load(ENCODER))):
        outputs = runner.run(feeds)
        assert len(outputs) == 30
        for name, output in outputs.items():
            assert np.abs(output - reference[name]).max() <= 5e-6 * np.abs(reference[name]).max(), (runner, name)


@pytest.mark.parametrize("cond", [True, False])
def test_subgraphs(cond: bool) -> None:
    feeds = draw(zero=[6], x=[4, 6], dy=[4, 6], g=[6]) | {"cond": np.array(cond), "n": np.array(3)}
    result = assert_same_results(subgraph_model(), feeds)
    names = [node.name for node in all_nodes(result) if node.name] + [
        output for node in all_nodes(result) for output in node.output if output
    ]
    # The three operators have one name and the inner values of each their own, wherever they are.
    assert max(Counter(name for name in names if name.startswith("inner/")).values()) == 2


def test_scan_body() -> None:
    body = helper.make_graph(
        [
            operator("row", "row_dy", "g", ["row_dx", "dg"], begin_norm_axis=0),
            helper.make_node("Add", ["s", "dg"], ["t"]),
        ],
        "body",
        [info("s", FLOAT, [6]), info("row", FLOAT, [6]), info("row_dy", FLOAT, [6])],
        [info("t", FLOAT, [6]), info("row_dx", FLOAT, [6])],
    )
    scan = helper.make_node("Scan", ["zero", "x", "dy"], ["dg", "dx"], body=body, num_scan_inputs=2)
    shapes = {"zero": [6], "x": [4, 6], "dy": [4, 6], "g": [6]}
    model = make_model(
        [scan],
        {name: (FLOAT, shape) for name, shape in shapes.items()},
        {"dg": (FLOAT, [6]), "dx": (FLOAT, [4, 6])},
    )
    feeds = draw(**shapes) | {"zero": np.zeros(6, np.float32)}
    result = lnbp_onnx.decompose(model)
    assert_standard(result)
    found = PlainRunner(result).run(feeds)
    expected = lnbp_onnx.layer_norm_backprop(feeds["x"], feeds["dy"], feeds["g"], use_stats=False)
    for name, array in zip(("dx", "dg"), expected, strict=False):
        assert array is not None
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ir_version", [8, 10])
def test_functions(ir_version: int) -> None:
    feeds = draw(x=[4, 6], dy=[4, 6], g=[6])
    feeds |= {f"{name}d": array.astype(np.float64) for name, array in feeds.items()}
    result = assert_same_results(function_model(ir_version), feeds)
    called = [node.op_type for node in result.graph.node]
    assert called == ["G", "G", "G_2", "G_3", "F"]
    assert {function.name for function in result.functions} == {"F", "F_2", "F_3", "G", "G_2", "G_3", "Unused"}
    assert all(bool(function.value_info) == (ir_version >= 10) for function in result.functions if "F" in function.name)


def test_function_that_holds_the_operator_and_is_never_called_goes() -> None:
    model = function_model(8)
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Identity", ["x"], ["dx0"]))
    del model.graph.output[1:]
    result = lnbp_onnx.decompose(model)
    assert [function.name for function in result.functions] == ["Unused"]
    assert [(opset.domain) for opset in result.opset_import] == ["", "my"]


def test_functions_that_call_each_other_are_refused() -> None:
    model = function_model(8)
    call = helper.make_node("G", ["x", "dy", "g"], ["u", "w"], domain="my")
    model.functions[0].node.append(call)
    with pytest.raises(lnbp_onnx.InvalidModelError, match="circle: my::F -> my::G -> my::F"):
        lnbp_onnx.decompose(model)


def test_function_called_without_an_optional_input() -> None:
    """What the caller omits is omitted in the function's body."""
    node = lnbp_onnx.make_node("x", "dy", gamma="g", beta="b", use_stats=False, outputs=["dx", "dg", "db"], name="op")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1)]
    function = helper.make_function("my", "F", ["x", "dy", "g", "b"], ["dx", "dg", "db"], [node], opsets)
    calls = [
        helper.make_node("F", ["x", "dy", "g", ""], ["dx0", "dg0", "db0"], domain="my"),
        helper.make_node("F", ["x", "dy", "g"], ["dx1", "dg1", "db1"], domain="my"),
        helper.make_node("F", ["x", "dy", "g", "b"], ["dx2", "dg2", "db2"], domain="my"),
    ]
    shapes = {"x": [4, 6], "dy": [4, 6], "g": [6], "b": [1]}
    outputs = {f"dx{i}": (FLOAT, [4, 6]) for i in range(3)} | {f"dg{i}": (FLOAT, [6]) for i in range(3)}
    outputs |= {f"db{i}": (FLOAT, [1 if i == 2 else 6]) for i in range(3)}
    inputs = {name: (FLOAT, shape) for name, shape in shapes.items()}
    assert_same_results(make_model(calls, inputs, outputs, functions=[function], domains=["my"]), draw(**shapes))


def reference(node: NodeProto, name: str, kind: int) -> NodeProto:
    """Return a node with an attribute that is that of the function around it, of the same name."""
    node.attribute.add(name=name, ref_attr_name="of_function", type=kind)
    return node


def test_shapes_that_follow_from_an_attribute_of_the_function() -> None:
    """Inference takes 0 for an attribute that is a reference; for a long row the body depends on the shape."""
    views = [reference(helper.make_node("Flatten", [each], [f"{each}_rows"]), "axis", INT) for each in ("x", "dy")]
    node = lnbp_onnx.make_node("x_rows", "dy_rows", use_affine=False, use_stats=False, outputs=["dx"])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1)]
    function = helper.make_function("my", "F", ["x", "dy"], ["dx"], [*views, node], opsets, attributes=["of_function"])
    shapes = {"x": [2, 2, 512], "dy": [2, 2, 512]}
    model = make_model(
        [helper.make_node("F", list(shapes), [f"dx{axis}"], domain="my", of_function=axis) for axis in (1, 2)],
        {name: (FLOAT, shape) for name, shape in shapes.items()},
        {"dx1": (FLOAT, [2, 1024]), "dx2": (FLOAT, [4, 512])},
        functions=[function],
        domains=["my"],
    )
    feeds = draw(**shapes)
    feeds["x"][1] *= 100
    assert_same_results(model, feeds)


def test_tensors_that_are_attributes_of_functions() -> None:
    """Each of two long tensors, which are alike where they begin and end, goes through two functions."""
    constant = reference(helper.make_node("Constant", [], ["g"]), "value", TENSOR)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1), helper.make_opsetid("my", 1)]
    nodes = [constant, operator("x", "dy", "g", ["dx"])]
    inner = helper.make_function("my", "F", ["x", "dy"], ["dx"], nodes, opsets[:2], attributes=["of_function"])
    call = reference(helper.make_node("F", ["x", "dy"], ["dx"], domain="my"), "of_function", TENSOR)
    outer = helper.make_function("my", "G", ["x", "dy"], ["dx"], [call], opsets, attributes=["of_function"])
    gammas = np.ones((2, 2000), np.float32)
    gammas[1, 1000] = 100
    calls = [
        helper.make_node("G", ["x", "dy"], [f"dx{index}"], domain="my", of_function=numpy_helper.from_array(gamma))
        for index, gamma in enumerate(gammas)
    ]
    shapes = {"x": [3, 2000], "dy": [3, 2000]}
    model = make_model(
        calls,
        {name: (FLOAT, shape) for name, shape in shapes.items()},
        {f"dx{index}": (FLOAT, [3, 2000]) for index in range(2)},
        functions=[inner, outer],
        domains=["my"],
    )
    assert_same_results(model, draw(**shapes), KernelRunner)


@pytest.mark.parametrize(("function_opset", "model_opset", "written"), [(13, 18, 18), (13, 17, 17), (18, 17, 17)])
def test_function_of_another_opset(function_opset: int, model_opset: int, written: int) -> None:
    """The checker and ONNX Runtime want the model's version, which is the same to the function's other nodes."""
    opsets = [helper.make_opsetid("", function_opset), helper.make_opsetid("lnbp", 1)]
    nodes = [operator("x", "dy", "g", ["dx", ""]), helper.make_node("Neg", ["dx"], ["minus"])]
    function = helper.make_function("my", "F", ["x", "dy", "g"], ["minus"], nodes, opsets)
    shapes = {"x": [4, 6], "dy": [4, 6], "g": [6]}
    model = make_model(
        [helper.make_node("F", list(shapes), ["y"], domain="my")],
        {name: (FLOAT, shape) for name, shape in shapes.items()},
        {"y": (FLOAT, [4, 6])},
        functions=[function],
        domains=["my"],
        opset=model_opset,
    )
    onnx.checker.check_model(model, full_check=True)
    # The evaluator needs the function inlined, which onnx_ir does only where the versions are equal.
    result = assert_same_results(model, draw(**shapes), KernelRunner)
    assert [(opset.domain, opset.version) for opset in result.functions[0].opset_import] == [("", written)]


def test_many_ways_to_call_a_function_take_linear_time() -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1)]
    function = helper.make_function("my", "F", ["x", "dy", "g"], ["dx"], [operator("x", "dy", "g", ["dx"])], opsets)
    seconds = {}
    for count in (50, 200):
        calls = []
        inputs: dict[str, tuple[int, list[int]]] = {}
        outputs: dict[str, tuple[int, list[int]]] = {}
        for i in range(count):
            calls.append(helper.make_node("F", [f"x{i}", f"dy{i}", f"g{i}"], [f"dx{i}"], domain="my"))
            inputs |= {f"x{i}": (FLOAT, [4, i + 1]), f"dy{i}": (FLOAT, [4, i + 1]), f"g{i}": (FLOAT, [i + 1])}
            outputs[f"dx{i}"] = (FLOAT, [4, i + 1])
        model = make_model(calls, inputs, outputs, functions=[function], domains=["my"])
        start = time.process_time()
        assert len(lnbp_onnx.decompose(model).functions) == count
        seconds[count] = time.process_time() - start
    assert seconds[200] < 8 * seconds[50]


def test_more_functions_than_can_be_copied_are_refused_before_inference() -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1), helper.make_opsetid("local", 1)]
    node = operator("x", "dy", "g", ["dx", "", ""])
    functions = [helper.make_function("local", "f", ["x", "dy", "g"], ["dx"], [node], opsets)]
    calls = []
    for index in range(3000):
        call = helper.make_node("f", ["x", "dy", "g"], ["dx"], domain="local")
        functions.append(helper.make_function("local", f"f{index}", ["x", "dy", "g"], ["dx"], [call], opsets))
        calls.append(helper.make_node(f"f{index}", ["x", "dy", "g"], [f"dx{index}"], domain="local"))
    inputs = {"x": (FLOAT, [4, 6]), "dy": (FLOAT, [4, 6]), "g": (FLOAT, [6])}
    model = make_model(calls, inputs, {"dx0": (FLOAT, [4, 6])}, domains=["local"], functions=functions)
    start = time.process_time()
    with pytest.raises(lnbp_onnx.InvalidModelError, match="called in more than 256 ways"):
        lnbp_onnx.decompose(model)
    assert time.process_time() - start < 5


def test_bodies_in_a_graph_share_constants() -> None:
    nodes = [operator("x", dy, "g", [dx, "", ""], name=dx) for dy, dx in (("dy", "a"), ("a", "b"), ("b", "c"))]
    inputs = {"x": (FLOAT, [4, 6]), "dy": (FLOAT, [4, 6]), "g": (FLOAT, [6])}
    model = make_model(nodes, inputs, {"c": (FLOAT, [4, 6])})
    result = lnbp_onnx.decompose(model)
    onnx.checker.check_model(result, full_check=True)
    values = [node.attribute[0].t.SerializeToString() for node in result.graph.node if node.op_type == "Constant"]
    assert len(set(values)) == len(values)
    kinds = Counter((node.name.partition("/")[0], node.op_type == "Constant") for node in result.graph.node)
    assert kinds.keys() == {("a", True), ("a", False), ("b", False), ("c", False)}
    feeds = draw(x=[4, 6], dy=[4, 6], g=[6])
    expected, found = ReferenceRunner(model).run(feeds), PlainRunner(result).run(feeds)
    np.testing.assert_allclose(found["c"], expected["c"], rtol=1e-4, atol=1e-5)


def test_operands_that_come_from_nowhere() -> None:
    """A sparse initializer, which onnx_ir has no object for, and a dangling name."""
    shapes = {"x": [4, 6], "dy": [4, 6]}
    model = make_model(
        [operator("x", "dy", "gamma", ["dx", "dg"], name="op")],
        {name: (FLOAT, shape) for name, shape in shapes.items()},
        {"dx": (FLOAT, [4, 6]), "dg": (FLOAT, [6])},
    )
    for _ in range(2):
        with pytest.raises(lnbp_onnx.InvalidNodeError, match="'op': the element type of gamma is not known"):
            lnbp_onnx.decompose(model)
        model.graph.sparse_initializer.append(sparse("gamma"))


def test_training_info_with_the_operator_is_refused() -> None:
    model = onnx.load(ENCODER)
    model.training_info.add().algorithm.node.append(operator("x", "dy", "g", ["dx"]))
    with pytest.raises(lnbp_onnx.InvalidModelError, match="training_info holds nodes of domain 'lnbp'"):
        lnbp_onnx.decompose(model)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """List the fields in which two messages differ."""
    if type(a) is not type(b):
        return [path]
    if not hasattr(a, "ListFields"):
        return [] if a == b else [path]
    fields = {descriptor.name for message in (a, b) for descriptor, _ in message.ListFields()}
    found = []
    for name in sorted(fields):
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, str | bytes | int | float) or hasattr(left, "ListFields"):
            if a.HasField(name) != b.HasField(name):
                found.append(f"{path}.{name}")
            else:
                found += differences(left, right, f"{path}.{name}")
        elif len(left) != len(right):
            found.append(f"{path}.{name}")
        else:
            for index, (x, y) in enumerate(zip(left, right, strict=True)):
                found += differences(x, y, f"{path}.{name}[{index}]")
    return found


def sparse(name: str) -> onnx.SparseTensorProto:
    tensor = helper.make_sparse_tensor(
        helper.make_tensor("values", FLOAT, [2], [1.0, 2.0]), helper.make_tensor("indices", INT64, [2], [0, 3]), [6]
    )
    tensor.values.name = name
    return tensor


def ornate_model() -> ModelProto:
    """A model that uses every field of the format beside the operator."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["g", "sparse_inner"], ["t"])], "b", [], [info("t", FLOAT, [6])]
    )
    branch.sparse_initializer.append(sparse("sparse_inner"))
    branch.doc_string = "a branch"
    other = helper.make_graph([operator("x", "dy", "g", ["h", "t2"])], "c", [], [info("t2", FLOAT, [6])])
    nodes = [
        helper.make_node("Add", ["g", "sparse_outer"], ["sum"], name="add", doc_string="adds"),
        helper.make_node("If", ["cond"], ["either"], then_branch=branch, else_branch=other, name="if"),
        helper.make_node("Dropout", ["either"], ["o", ""], name="dropped"),
        operator("x", "dy", "g", ["dx", "dg"], name="op"),
        helper.make_node("Strange", ["o", "", ""], ["p", ""], domain="odd", name="s", overload="v", k=[1, 2]),
        helper.make_node("SequenceConstruct", ["o"], ["seq"]),
    ]
    nodes[0].metadata_props.add(key="node", value="kept")
    nodes[3].metadata_props.add(key="from", value="layer 3")
    inputs: dict[str, tuple[int, list[int | str]]] = {
        "x": (FLOAT, ["N", 6]),
        "dy": (FLOAT, ["N", 6]),
        "g": (FLOAT, [6]),
        "cond": (BOOL, []),
    }
    outputs: dict[str, tuple[int, list[int | str]]] = {"dx": (FLOAT, ["N", 6]), "dg": (FLOAT, [6])}
    function = helper.make_function(
        "odd",
        "F",
        ["a"],
        ["b"],
        [helper.make_node("Neg", ["a"], ["b"], name="n")],
        [helper.make_opsetid("", 17)],
        ["k"],
    )
    function.doc_string = "a function"
    function.value_info.append(info("a", FLOAT, [1]))
    model = make_model(
        nodes, inputs, outputs, ir_version=11, functions=[function], domains=["odd", "unused"], producer_name="test"
    )
    graph = model.graph
    model.doc_string, model.domain, model.model_version, model.producer_version = "doc", "org.test", 3, "1.2"
    model.metadata_props.add(key="model", value="kept")
    model.configuration.add(name="two", num_devices=2)
    training = model.training_info.add()
    training.algorithm.name = "step"
    training.update_binding.add(key="a", value="b")
    graph.doc_string = "the graph"
    graph.metadata_props.add(key="graph", value="kept")
    graph.input[0].doc_string = "x"
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    sequence = graph.output.add(name="seq")
    sequence.type.sequence_type.elem_type.tensor_type.elem_type = FLOAT
    graph.initializer.append(helper.make_tensor("weights", TensorProto.BFLOAT16, [2], [1.0, 2.0]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(["a"], object), "strings"))
    graph.initializer[0].doc_string = "w"
    graph.initializer[0].metadata_props.add(key="tensor", value="kept")
    graph.sparse_initializer.append(sparse("sparse_outer"))
    graph.value_info.extend([info("sum", FLOAT, [6]), info("nowhere", FLOAT, [3])])
    graph.value_info[0].metadata_props.add(key="value", value="kept")
    graph.quantization_annotation.add(tensor_name="sum").quant_parameter_tensor_names.add(key="SCALE", value="weights")
    return model


def test_all_that_need_not_change_stays() -> None:
    model = ornate_model()
    untouched = model.SerializeToString(deterministic=True)
    result = lnbp_onnx.decompose(model)
    assert model.SerializeToString(deterministic=True) == untouched

    def without_operator(graph: GraphProto, names: set[str]) -> None:
        """Remove the operator and what decompose put in its place."""
        kept = [node for node in graph.node if node.domain != "lnbp" and node.name.split("/")[0] not in names]
        del graph.node[:]
        graph.node.extend(kept)
        infos = [value for value in graph.value_info if value.name.split("/")[0] not in names]
        del graph.value_info[:]
        graph.value_info.extend(infos)

    for each in (model, result):
        without_operator(each.graph, {"op"})
        branches = next(node for node in each.graph.node if node.op_type == "If").attribute
        without_operator(next(branch for branch in branches if branch.name == "else_branch").g, {"h"})
    assert differences(model, result) == [".opset_import"]
    assert [opset.domain for opset in result.opset_import] == ["", "odd", "unused"]


def test_what_is_added() -> None:
    result = lnbp_onnx.decompose(ornate_model())
    added = [node for node in result.graph.node if node.name.startswith("op/")]
    assert len(added) > 10
    assert all({p.key: p.value for p in node.metadata_props} == {"from": "layer 3"} for node in added)
    typed = {value.name for value in result.graph.value_info}
    assert {output for node in added for output in node.output} - {"dx", "dg"} <= typed


def test_idempotent_and_nothing_to_do() -> None:
    once = lnbp_onnx.decompose(onnx.load(ENCODER))
    assert lnbp_onnx.decompose(once) == once


def test_onnx_ir_models() -> None:
    model = ir.load(ENCODER)
    result = lnbp_onnx.decompose(model)
    assert isinstance(result, ir.Model)
    assert sum(node.domain == "lnbp" for node in model.graph) == 5
    assert_standard(ir.to_proto(result))


def several_in_a_row() -> ModelProto:
    """Nodes with metadata, of one name or none, and without some outputs; one result is declared and others not."""
    nodes = [
        operator("x", "dy", "g", ["a", "ag"], name="norm"),
        operator("a", "a", "g", ["b", "", ""], name="norm"),
        helper.make_node("Neg", ["b"], ["norm/d"], name="norm/dy_d"),
        lnbp_onnx.make_node("x", "norm/d", gamma="g", beta="g", use_stats=False, outputs=["c", "", "cb"]),
        operator("x", "c", "h", ["d"], name="other", begin_norm_axis=1),
    ]
    for index, node in enumerate(nodes):
        node.metadata_props.add(key="z", value=str(index))
        node.metadata_props.add(key="a", value="first by name")
    rows: tuple[int, list[Any]] = (FLOAT, ["n", 4, 6])
    inputs: dict[str, tuple[int, list[Any]]] = {"x": rows, "dy": rows, "g": (FLOAT, [6]), "h": (FLOAT, [4, 6])}
    model = make_model(nodes, inputs, {"d": rows, "cb": (FLOAT, [6])})
    model.graph.value_info.append(info("a", FLOAT, ["n", 4, 6]))
    return model


@pytest.mark.parametrize("make", [several_in_a_row, subgraph_model, lambda: chain(3), lambda: onnx.load(ENCODER)])
def test_bodies_are_the_same_as_protos_and_as_objects(make: Callable[[], ModelProto]) -> None:
    model = make()
    # Read and written once more, for what onnx_ir writes in another way or leaves out.
    as_protos = ir.to_proto(ir.from_proto(lnbp_onnx.decompose(model)))
    as_objects = ir.to_proto(lnbp_onnx.decompose(ir.from_proto(model)))
    assert differences(as_protos.graph, as_objects.graph) == []


def test_model_without_default_domain_gets_one() -> None:
    shapes = {"x": [4, 6], "dy": [4, 6], "g": [6]}
    model = make_model(
        [operator("x", "dy", "g", ["dx"])],
        {name: (FLOAT, shape) for name, shape in shapes.items()},
        {"dx": (FLOAT, [4, 6])},
        opset=None,
        ir_version=4,
    )
    result = assert_same_results(model, draw(**shapes))
    assert [(opset.domain, opset.version) for opset in result.opset_import] == [("", 17)]
    assert result.ir_version == 8


def test_embedded_function_is_dropped() -> None:
    """A model-local function that stands for the operator is not what decides: the operator's definition is."""
    shapes = {"x": [4, 6], "dy": [4, 6], "g": [6]}
    model = make_model(
        [operator("x", "dy", "g", ["dx"])],
        {name: (FLOAT, shape) for name, shape in shapes.items()},
        {"dx": (FLOAT, [4, 6])},
    )
    body = [helper.make_node("Neg", ["dy"], ["dx"])]
    model.functions.append(
        helper.make_function("lnbp", "LayerNormBackprop", ["x", "dy", "g"], ["dx"], body, [helper.make_opsetid("", 17)])
    )
    result = lnbp_onnx.decompose(model)
    assert not result.functions
    assert "Neg" not in {node.op_type for node in result.graph.node}
    assert_standard(result)


@pytest.mark.parametrize(
    ("case", "opset", "shapes", "message"),
    [
        (Case("r", (4, 6)), 10, "static", "'norm_grad': the default-domain opset is 10; .* from 11 on"),
        (Case("r", (4, 6)), 99, "static", "opset is 99; the installed onnx package knows opsets up to"),
        (Case("r", (4, 6), t="bfloat16"), 12, "static", "type is bfloat16, .* from opset 13 on; the model's is 12"),
        (Case("r", (4, 6), gamma_shape=(1,)), 12, "unknown", "rank of gamma .* from opset 13 on; the model's is 12"),
    ],
)
def test_opsets_that_are_too_old(case: Case, opset: int, shapes: str, message: str) -> None:
    with pytest.raises(lnbp_onnx.LnbpError, match=message):
        lnbp_onnx.decompose(case.model(opset, shapes))


def test_unknown_element_type_is_refused() -> None:
    model = make_model(
        [
            helper.make_node("Mystery", ["a"], ["x", "dy"], domain="odd"),
            lnbp_onnx.make_node("x", "dy", use_affine=False, use_stats=False, outputs=["dx"], name="op"),
        ],
        {"a": (FLOAT, [1])},
        {"dx": (FLOAT, [2, 3])},
        domains=["odd"],
    )
    with pytest.raises(lnbp_onnx.InvalidNodeError, match=r"'op': the element type of input_forward .*value_info"):
        lnbp_onnx.decompose(model)
    model.graph.value_info.append(info("x", FLOAT, [2, 3]))
    assert_standard_domain_odd(lnbp_onnx.decompose(model))


def assert_standard_domain_odd(model: ModelProto) -> None:
    assert {node.domain for node in model.graph.node} == {"", "odd"}


def test_newer_version_of_the_operator_is_refused() -> None:
    model = Case("r", (4, 6)).model()
    model.opset_import[1].version = 2
    with pytest.raises(lnbp_onnx.InvalidModelError, match="imports version 2 of domain 'lnbp'; it must be 1"):
        lnbp_onnx.decompose(model)


def test_model_that_onnxruntime_wrote(tmp_path: Path) -> None:
    """Once a kernel is registered, ONNX Runtime adds an import of the domain, in a version of its own."""
    model = Case("r", (4, 6)).model()
    lnbp_onnx.inference_session(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "written.onnx")
    PlainRunner(lnbp_onnx.decompose(model), options)
    written = onnx.load(tmp_path / "written.onnx")
    assert {opset.domain: opset.version for opset in written.opset_import}["lnbp"] != 1
    fused = lnbp_onnx.fuse(written)
    assert {opset.domain: opset.version for opset in fused.opset_import}["lnbp"] == 1
    assert lnbp_onnx.compare(model, fused).ok
    assert lnbp_onnx.compare(model, lnbp_onnx.decompose(fused)).ok
    assert "lnbp" not in {opset.domain for opset in lnbp_onnx.decompose(written).opset_import}


def test_function_named_as_a_training_operator_has_its_own_types() -> None:
    """The model's own com.microsoft::Scale, unlike ONNX Runtime's, returns another type than it gets."""
    body = [helper.make_node("Cast", ["a"], ["b"], to=DOUBLE)]
    function = helper.make_function("com.microsoft", "Scale", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    calls = [helper.make_node("Scale", [name], [f"{name}d"], domain="com.microsoft") for name in ("x", "dy")]
    node = lnbp_onnx.make_node("xd", "dyd", outputs=["dx", "", ""], use_affine=False, use_stats=False)
    inputs = {"x": (FLOAT, [4, 6]), "dy": (FLOAT, [4, 6])}
    outputs = {"dx": (DOUBLE, [4, 6])}
    model = make_model([*calls, node], inputs, outputs, domains=["com.microsoft"], functions=[function])
    result = lnbp_onnx.decompose(model)
    values = draw(x=[4, 6], dy=[4, 6])
    expected, _, _ = lnbp_onnx.layer_norm_backprop(
        *(values[name].astype(np.float64) for name in ("x", "dy")), use_affine=False, use_stats=False
    )
    np.testing.assert_allclose(PlainRunner(result).run(values)["dx"], expected, atol=1e-12)


def chain(length: int) -> ModelProto:
    """A chain of operator nodes."""
    nodes = []
    for index in range(length):
        dy = "dy" if index == 0 else f"dx{index - 1}"
        nodes.append(operator("x", dy, "g", [f"dx{index}", f"dg{index}"], name=f"norm{index}"))
    outputs = {f"dg{index}": (FLOAT, [8]) for index in range(length)}
    inputs = {"x": (FLOAT, [4, 8]), "dy": (FLOAT, [4, 8]), "g": (FLOAT, [8])}
    return make_model(nodes, inputs, outputs | {f"dx{length - 1}": (FLOAT, [4, 8])})


@pytest.mark.product
def test_time_grows_linearly(tmp_path: Path, share: str) -> None:
    seconds = {}
    shorter = 1_000 if share == "whole" else 200
    for length in (shorter, 10 * shorter):
        onnx.save(chain(length), tmp_path / "chain.onnx")
        start = time.process_time()
        result = lnbp_onnx.decompose(onnx.load(tmp_path / "chain.onnx"))
        onnx.save(result, tmp_path / "result.onnx")
        seconds[length] = time.process_time() - start
        assert not any(node.domain for node in result.graph.node)
    assert seconds[10 * shorter] < 20 * seconds[shorter]
