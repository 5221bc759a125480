# SPDX-License-Identifier: Apache-2.0
"""embed: what the function computes where there is no kernel, which nodes it serves, what is left alone."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from cases import CASES, SMALL_CASES, Case
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import lnbp_onnx
from lnbp_onnx.graphs.edit import apply, apply_in_place
from lnbp_onnx.graphs.operators import Operator
from lnbp_onnx.passes.embed import EmbedPass, EmbedResult
from lnbp_onnx.running.runners import PlainRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
Tensors = dict[str, np.ndarray[Any, Any]]
OPERATOR = ("lnbp", "LayerNormBackprop")

by_name = {case.name: case for case in CASES}


def embed(model: ModelProto) -> ModelProto:
    """Embed, and check what holds of every result."""
    before = model.SerializeToString()
    onnx.checker.check_model(model, full_check=True)
    result = apply(model, EmbedPass())
    assert model.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
    [function] = [function for function in result.functions if (function.domain, function.name) == OPERATOR]
    assert {opset.domain for opset in function.opset_import} == {""}
    for node in calls(result):
        assert len(node.input) == len(function.input) == 6
        assert len(node.output) == len(function.output)
        assert set(function.attribute) <= {attribute.name for attribute in node.attribute}
    again = apply(result, EmbedPass())
    by_identifier = [{(f.domain, f.name): f for f in each.functions} for each in (again, result)]
    assert by_identifier[0] == by_identifier[1]
    del again.functions[:]
    again.functions.extend(result.functions)
    assert again == result
    return result


def embedding(model: ModelProto) -> EmbedResult:
    """Return what became of the nodes."""
    result = EmbedPass()(ir.from_proto(model))
    assert isinstance(result, EmbedResult)
    return result


def nodes_of(model: ModelProto) -> Iterable[NodeProto]:
    stack = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                stack += graph.node


def calls(model: ModelProto) -> list[NodeProto]:
    return [node for node in nodes_of(model) if (node.domain, node.op_type) == OPERATOR]


def in_onnxruntime(model: ModelProto, feeds: Tensors, folder: Path) -> list[Tensors]:
    """Run without any library, with optimisations off and on; what ran was standard operators."""
    results = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(folder / "ran.onnx")
        results.append(PlainRunner(model, options).run(feeds))
        assert not calls(onnx.load(folder / "ran.onnx"))
    return results


def in_evaluator(model: ModelProto, feeds: Tensors, **arguments: Any) -> Tensors:
    evaluator = ReferenceEvaluator(model, **arguments)
    with np.errstate(all="ignore"):
        return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


CASES_RUN = [*SMALL_CASES, *(case for case in CASES if case.name.startswith("large") and case.t == "float")]


@pytest.mark.product
@pytest.mark.parametrize("runtime", ["onnxruntime", "evaluator"])
@pytest.mark.parametrize("case", CASES_RUN, ids=lambda case: case.name)
def test_case(case: Case, runtime: str, tmp_path: Path) -> None:
    model = embed(case.model())
    assert len(model.graph.node) == len(calls(model)) == 1
    if runtime == "evaluator":
        case.check(in_evaluator(model, case.arrays()))
        return
    for results in in_onnxruntime(model, case.arrays(), tmp_path):
        case.check(results)


VARIED = [
    "attributes-11-0.0",
    "attributes-10-1e-05",
    "attributes-01-0.0",
    "attributes-00-0.5",
    "outputs-101",
    "axes-3--2",
    "gamma-3x4x5",
    "gamma-4x1",
    "gamma-scalar",
    "gamma-broadcast-beta-flat",
    "types-float16-float-float",
    "types-double-double-float",
    "types-int64-computed",
    "columns-1000",
    "empty-2x0x3-2-1",
]


@pytest.mark.product
@pytest.mark.parametrize("opset", [11, 12, 13, 14, 18, 26])
@pytest.mark.parametrize("name", VARIED)
def test_opsets(name: str, opset: int, tmp_path: Path) -> None:
    case = by_name[name]
    model = embed(case.model(opset))
    for results in in_onnxruntime(model, case.arrays(), tmp_path):
        case.check(results)


@pytest.mark.product
@pytest.mark.parametrize("shapes", ["symbolic", "unknown"])
@pytest.mark.parametrize("name", VARIED)
def test_shapes_known_only_at_run_time(name: str, shapes: str, tmp_path: Path) -> None:
    case = by_name[name]
    model = embed(case.model(shapes=shapes))
    for results in in_onnxruntime(model, case.feeds(shapes), tmp_path):
        case.check(results)


# Which nodes share the function

BASE = Case("base", (4, 6, 8))


def combined(cases: Sequence[Case], opset: int = 17) -> ModelProto:
    """Return a model with a node for each case, the names of the nth prefixed with "n/"."""
    models = [compose.add_prefix(case.model(opset), f"{n}/") for n, case in enumerate(cases)]
    for model in models[1:]:
        for field in ("node", "input", "output"):
            getattr(models[0].graph, field).extend(getattr(model.graph, field))
    return models[0]


def combined_feeds(cases: Sequence[Case]) -> Tensors:
    return {f"{n}/{name}": array for n, case in enumerate(cases) for name, array in case.arrays().items()}


def check_combined(cases: Sequence[Case], results: Tensors) -> None:
    for n, case in enumerate(cases):
        prefix = f"{n}/"
        case.check({name.removeprefix(prefix): array for name, array in results.items() if name.startswith(prefix)})


def names(operators: Iterable[Operator]) -> list[str | None]:
    return [operator.node.name for operator in operators]


SHARING = {
    "epsilon": Case("b", (4, 6, 8), epsilon=0.5),
    "epsilon-zero": Case("b", (4, 6, 8), epsilon=0.0),
    "rows": Case("b", (3, 2, 8)),
    "columns": Case("b", (4, 6, 11)),
    "rank": Case("b", (9, 8)),
    "higher-rank": Case("b", (2, 1, 3, 8)),
    "no-rows-axis": Case("b", (8,)),
    "axis-from-the-left": Case("b", (4, 6, 8), axis=2),
    "statistics-kept": Case("b", (4, 6, 8), mean_layout="kept", variance_layout="flat"),
    "no-beta": Case("b", (4, 6, 8), beta=False),
}
SEPARATING = {
    "axis": Case("b", (4, 6, 8), axis=1),
    "plain": Case("b", (4, 6, 8), affine=False),
    "computed": Case("b", (4, 6, 8), stats=False),
    "outputs": Case("b", (4, 6, 8), outputs=(True, True, False)),
    "type": Case("b", (4, 6, 8), t="double"),
    "parameter-type": Case("b", (4, 6, 8), t="float16", p="float"),
    "broadcast": Case("b", (4, 6, 8), gamma_shape=(1,)),
    "beta-broadcast": Case("b", (4, 6, 8), beta_shape=(1,)),
    "empty": Case("b", (0, 6, 8)),
}


@pytest.mark.parametrize("other", [*SHARING, *SEPARATING])
def test_configurations(other: str, tmp_path: Path) -> None:
    served = other in SHARING
    cases = [(SHARING if served else SEPARATING)[other], BASE, BASE]
    model = combined(cases)
    result = embedding(model)
    assert names(result.served) == (["0/norm_grad"] if served else []) + ["1/norm_grad", "2/norm_grad"]
    assert names(result.decomposed) == ([] if served else ["0/norm_grad"])
    embedded = embed(model)
    assert len(calls(embedded)) == len(result.served)
    for results in in_onnxruntime(embedded, combined_feeds(cases), tmp_path):
        check_combined(cases, results)
    check_combined(cases, in_evaluator(embedded, combined_feeds(cases)))
    check_combined(cases, in_evaluator(embedded, combined_feeds(cases), new_ops=[lnbp_onnx.LayerNormBackprop]))


def test_lengths_matter_to_computed_statistics_of_long_rows(tmp_path: Path) -> None:
    cases = [Case("a", (4, 1000), stats=False), Case("b", (7, 1000), stats=False), Case("c", (4, 1024), stats=False)]
    model = embed(combined(cases))
    assert [node.name for node in model.graph.node if node in calls(model)] == ["0/norm_grad", "1/norm_grad"]
    for results in in_onnxruntime(model, combined_feeds(cases), tmp_path):
        check_combined(cases, results)


def test_epsilon_is_part_of_the_configuration_before_opset_12(tmp_path: Path) -> None:
    cases = [BASE, Case("b", (4, 6, 8), epsilon=0.5), BASE]
    model = embed(combined(cases, opset=11))
    assert len(calls(model)) == 2
    for results in in_onnxruntime(model, combined_feeds(cases), tmp_path):
        check_combined(cases, results)


def test_the_first_of_equally_frequent_configurations_is_served() -> None:
    model = combined([BASE, SEPARATING["type"]])
    result = embedding(model)
    assert names(result.served) == ["0/norm_grad"]
    assert names(result.decomposed) == ["1/norm_grad"]


def test_an_ignored_input_and_a_default_epsilon(tmp_path: Path) -> None:
    case = Case("ignored", (4, 6, 8), affine=False, stats=False)
    model = case.model()
    [node] = model.graph.node
    node.input[:] = ["input_forward", "output_delta", "input_forward", "", "output_delta"]
    del node.attribute[2]
    assert all(attribute.name != "epsilon" for attribute in node.attribute)
    model = embed(model)
    assert list(model.graph.node[0].input) == ["input_forward", "output_delta", "input_forward", "", "output_delta", ""]
    for results in in_onnxruntime(model, case.arrays(), tmp_path):
        case.check(results)
    case.check(in_evaluator(model, case.arrays()))


@pytest.mark.parametrize("padding", [[], [""], ["", ""]])
def test_omitted_outputs_survive_a_round_trip(padding: list[str], tmp_path: Path) -> None:
    case = by_name["outputs-1"]
    model = case.model()
    model.graph.node[0].output[1:] = padding
    model = ir.to_proto(ir.from_proto(embed(model)))
    for results in in_onnxruntime(model, case.arrays(), tmp_path):
        case.check(results)
    model = ir.to_proto(apply(ir.from_proto(case.model()), EmbedPass()))
    case.check(in_onnxruntime(model, case.arrays(), tmp_path)[1])


# Where nodes are

MIXED = [BASE, SEPARATING["type"], SHARING["epsilon"], SEPARATING["computed"], SHARING["rank"], SEPARATING["type"]]


def test_in_branches(tmp_path: Path) -> None:
    model = combined(MIXED)
    branches = []
    for label in ("then", "else"):
        branch = GraphProto()
        branch.CopyFrom(model.graph)
        branch.ClearField("input")
        branches.append(compose.add_prefix_graph(branch, f"{label}/"))
        for node in branches[-1].node:
            node.input[:] = [name.removeprefix(f"{label}/") for name in node.input]
    outputs = [value.name for value in model.graph.output]
    choice = helper.make_node("If", ["condition"], outputs, "choice", then_branch=branches[0], else_branch=branches[1])
    model.graph.ClearField("node")
    model.graph.node.append(choice)
    model.graph.input.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
    embedded = embed(model)
    assert len(calls(embedded)) == 6
    for condition in (True, False):
        feeds = combined_feeds(MIXED) | {"condition": np.array(condition)}
        for results in in_onnxruntime(embedded, feeds, tmp_path):
            check_combined(MIXED, results)
        check_combined(MIXED, in_evaluator(embedded, feeds))


def test_in_a_loop(tmp_path: Path) -> None:
    model = combined(MIXED)
    flag = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    count = helper.make_tensor_value_info("step", TensorProto.INT64, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still_going"]), *model.graph.node],
        "body",
        [count, flag],
        [helper.make_tensor_value_info("still_going", TensorProto.BOOL, []), *model.graph.output],
    )
    for node in body.node:
        node.output[:] = [f"in_loop/{name}" if name[0].isdigit() else name for name in node.output]
    for value in body.output[1:]:
        value.name = f"in_loop/{value.name}"
    for value in model.graph.output:
        dims = list(value.type.tensor_type.shape.dim)
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension(dim_param="steps"), *dims])
    graph = helper.make_graph(
        [helper.make_node("Loop", ["steps", ""], [value.name for value in model.graph.output], "loop", body=body)],
        "main",
        [*model.graph.input, helper.make_tensor_value_info("steps", TensorProto.INT64, [])],
        model.graph.output,
    )
    looped = helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)
    embedded = embed(looped)
    assert len(calls(embedded)) == 3
    feeds = combined_feeds(MIXED) | {"steps": np.array(2)}
    for results in in_onnxruntime(embedded, feeds, tmp_path):
        for step in (0, 1):
            check_combined(MIXED, {name: array[step] for name, array in results.items()})


def with_function(cases: Sequence[Case], nested: bool) -> ModelProto:
    """Return a model whose nodes are calls of a function that holds the operator; `nested`, through another one."""
    model = combined(cases)
    inputs, outputs = [*"abcdef"], [*"xyz"]
    node = lnbp_onnx.make_node("a", "b", gamma="c", beta="d", mean="e", variance="f", outputs=outputs)
    for attribute in node.attribute:
        if attribute.name == "epsilon":
            attribute.Clear()
            attribute.name, attribute.ref_attr_name, attribute.type = "epsilon", "eps", onnx.AttributeProto.FLOAT
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1), helper.make_opsetid("local", 1)]
    model.functions.append(helper.make_function("local", "Norm", inputs, outputs, [node], opsets, ["eps"]))
    if nested:
        call = helper.make_node("Norm", inputs, outputs, domain="local")
        call.attribute.add(name="eps", ref_attr_name="outer_eps", type=onnx.AttributeProto.FLOAT)
        model.functions.append(helper.make_function("local", "Outer", inputs, outputs, [call], opsets, ["outer_eps"]))
    for node, case in zip(model.graph.node, cases, strict=True):
        node.domain, node.op_type = "local", "Outer" if nested else "Norm"
        node.ClearField("attribute")
        node.attribute.append(helper.make_attribute("outer_eps" if nested else "eps", case.epsilon))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


@pytest.mark.parametrize("nested", [False, True])
def test_in_functions(nested: bool, tmp_path: Path) -> None:
    cases = [BASE, SEPARATING["type"], SHARING["epsilon"], SHARING["rank"], SEPARATING["type"]]
    embedded = embed(with_function(cases, nested))
    assert len(calls(embedded)) == 3
    for results in in_onnxruntime(embedded, combined_feeds(cases), tmp_path):
        check_combined(cases, results)
    if not nested:
        check_combined(cases, in_evaluator(embedded, combined_feeds(cases)))


# What is left alone, and what is refused


def test_decompose_undoes_it(tmp_path: Path) -> None:
    model = combined(MIXED)
    result = lnbp_onnx.decompose(embed(model))
    assert all(node.domain == "" for node in nodes_of(result))
    assert not result.functions
    assert [opset.domain for opset in result.opset_import] == [""]
    # Constants are shared by what one pass writes, and here two have written.
    computed = [
        [node.op_type for node in each.graph.node if node.op_type != "Constant"]
        for each in (result, lnbp_onnx.decompose(model))
    ]
    assert computed[0] == computed[1]
    for results in in_onnxruntime(result, combined_feeds(MIXED), tmp_path):
        check_combined(MIXED, results)


def test_the_function_of_an_earlier_run() -> None:
    model = embed(BASE.model())
    assert not apply_in_place(EmbedPass(), model).modified
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    model.functions[0].node[0].attribute[0].i = 0
    assert apply(model, EmbedPass()) == expected


def test_nothing_to_do() -> None:
    graph = helper.make_graph([], "empty", [], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1)])
    result = embedding(model)
    assert (result.modified, result.served, result.decomposed) == (False, (), ())
    assert apply(model, EmbedPass()) == model
    orphaned = onnx.ModelProto()
    orphaned.CopyFrom(model)
    orphaned.functions.extend(embed(BASE.model()).functions)
    assert apply(orphaned, EmbedPass()) == model


def test_a_model_without_the_default_domain(tmp_path: Path) -> None:
    model = BASE.model()
    del model.opset_import[0]
    model.ir_version = 4
    result = apply(model, EmbedPass())
    assert {opset.domain: opset.version for opset in result.opset_import} == {"lnbp": 1, "": 17}
    assert result.ir_version == 8
    for results in in_onnxruntime(result, BASE.arrays(), tmp_path):
        BASE.check(results)


def test_all_else_stays() -> None:
    model = combined([BASE, SEPARATING["type"], BASE, BASE])
    node = model.graph.node[0]
    node.doc_string, node.output[1:] = "a node", ["", ""]
    node.metadata_props.add(key="k", value="v")
    del model.graph.output[1:3]
    model.metadata_props.add(key="author", value="someone")
    model.producer_name, model.doc_string = "producer", "a model"
    model.graph.value_info.append(helper.make_tensor_value_info("unrelated", TensorProto.FLOAT, [3]))
    model.graph.quantization_annotation.add(tensor_name="0/gamma")
    values = numpy_helper.from_array(np.array([1.0], np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([2], np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [5]))
    model.training_info.add().algorithm.node.add(op_type="Identity", input=["a"], output=["b"])
    result = apply(model, EmbedPass())
    assert result.opset_import == model.opset_import
    served = [node for node in result.graph.node if node in calls(result)]
    assert [node.name for node in served] == ["2/norm_grad", "3/norm_grad"]
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    expected.graph.node[0].CopyFrom(result.graph.node[0])
    for field in ("node", "value_info"):
        expected.graph.ClearField(field)
        getattr(expected.graph, field).extend(getattr(result.graph, field))
    expected.functions.extend(result.functions)
    assert result == expected
    assert model.graph.value_info[0] in result.graph.value_info


def test_refused() -> None:
    untyped = BASE.model()
    untyped.graph.node.insert(0, helper.make_node("Unknown", ["input_forward"], ["x"], domain="elsewhere"))
    untyped.graph.node.insert(1, helper.make_node("Unknown", ["output_delta"], ["dy"], domain="elsewhere"))
    untyped.graph.node[2].input[:2] = ["x", "dy"]
    untyped.opset_import.append(helper.make_opsetid("elsewhere", 1))
    untyped.graph.node[2].input[2:] = ["", "", "", ""]
    untyped.graph.node[2].output[1:] = ["", ""]
    del untyped.graph.output[1:]
    untyped.graph.node[2].attribute[1].i = untyped.graph.node[2].attribute[3].i = 0
    with pytest.raises(
        lnbp_onnx.InvalidNodeError, match=r"'norm_grad': the element type of input_forward is not known"
    ):
        apply(untyped, EmbedPass())
    with pytest.raises(lnbp_onnx.InvalidModelError, match="opset is 10"):
        apply(BASE.model(opset=10), EmbedPass())
    bad = BASE.model()
    bad.graph.node[0].attribute[0].i = 7
    with pytest.raises(lnbp_onnx.InvalidNodeError, match="'begin_norm_axis' is 7"):
        apply(bad, EmbedPass())
    newer = BASE.model()
    newer.opset_import[1].version = 2
    with pytest.raises(lnbp_onnx.InvalidModelError, match="version 2 of domain 'lnbp'"):
        apply(newer, EmbedPass())


def test_training_graph_of_torch(tmp_path: Path) -> None:
    model = onnx.load(EXAMPLES / "torch_encoder_training_lnbp.onnx")
    reference: Mapping[str, np.ndarray[Any, Any]] = np.load(EXAMPLES / "torch_encoder_training_reference.npz")
    feeds = {value.name: reference[value.name] for value in model.graph.input}
    embedded = embed(model)
    assert len(calls(embedded)) == 5
    for results in in_onnxruntime(embedded, feeds, tmp_path):
        for name, found in results.items():
            expected = reference[name].astype(np.float64)
            assert np.abs(found - expected).max() <= 5e-6 * np.abs(expected).max(), name
