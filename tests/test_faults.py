# SPDX-License-Identifier: Apache-2.0
"""Models with a fault: what the fuzzer of the graphs found, and that nothing else is blamed on a model."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from cases import Case
from layer_norm_graphs import Style, Writer
from onnx import helper

import lnbp_onnx
from lnbp_onnx.files.model_io import load_model
from lnbp_onnx.graphs.edit import apply
from lnbp_onnx.running.runners import PlainRunner

CASE = Case("fault", (4, 6))


def model_in_branches() -> onnx.ModelProto:
    model = CASE.model()
    node = model.graph.node[0]
    outputs = list(model.graph.output)
    branches = [helper.make_graph([node], name, [], outputs) for name in ("then", "else")]
    wrapped = helper.make_node("If", ["condition"], list(node.output), then_branch=branches[0], else_branch=branches[1])
    model.graph.node[0].CopyFrom(wrapped)
    model.graph.input.append(helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []))
    return model


def with_text_that_is_not_utf8() -> onnx.ModelProto:
    content = CASE.model().SerializeToString()
    return onnx.ModelProto.FromString(content.replace(b"output_delta", b"output_d\xc3lta"))


def with_an_undefined_output() -> onnx.ModelProto:
    model = model_in_branches()
    model.graph.node[0].attribute[0].g.output[0].name = "nothing"
    return model


def model_with_a_call() -> onnx.ModelProto:
    model = CASE.model()
    node = model.graph.node[0]
    function = helper.make_function("local", "f", list(node.input), list(node.output), [node], model.opset_import)
    model.functions.append(function)
    call = helper.make_node("f", list(node.input), list(node.output), name="call", domain="local")
    model.graph.node[0].CopyFrom(call)
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def with_too_many_inputs_in_a_call() -> onnx.ModelProto:
    model = model_with_a_call()
    model.graph.node[0].input.append("mean")
    return model


def with_another_version_in_a_function() -> onnx.ModelProto:
    model = model_with_a_call()
    model.functions[0].opset_import[1].version = 2
    return model


def with_a_tensor_of_another_size() -> onnx.ModelProto:
    model = Writer(Style(choices=(1,))).write()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT64)
    tensor.raw_data += b"\0"
    return model


def with_an_axis_that_ends_onnx() -> onnx.ModelProto:
    model = Writer(Style(choices=(1,))).write()
    forward = onnx.helper.make_node("LayerNormalization", ["x", "gamma"], ["y", "m"], name="forward", axis=2**31)
    model.graph.node.insert(0, forward)
    return model


def with_a_tensor_of_no_type() -> onnx.ModelProto:
    model = Writer(Style(choices=(1,))).write()
    model.graph.initializer[0].data_type = onnx.TensorProto.UNDEFINED
    return model


def with_a_reference_outside_of_a_function() -> onnx.ModelProto:
    model = model_in_branches()
    model.graph.node[0].attribute[0].ref_attr_name = "nothing"
    return model


def with_an_axis_that_ends_onnx_beside_a_fault() -> onnx.ModelProto:
    model = model_in_branches()
    model.graph.node[0].attribute[0].g.output[0].name = "nothing"
    model.graph.node.append(
        helper.make_node("LayerNormalization", ["input_forward", "gamma"], ["y", "m"], name="late", axis=2**32 - 1)
    )
    return model


def with_a_device_without_a_name() -> onnx.ModelProto:
    model = CASE.model(shapes="symbolic")
    model.ir_version = 11
    model.graph.node[0].device_configurations.add().pipeline_stage = 1
    return model


def with_a_name_that_nothing_gives_inside_a_function() -> onnx.ModelProto:
    """A branch in a function reads what is not among its inputs; onnx checks no functions in so old a model."""
    model = model_in_branches()
    model.ir_version = 7
    branching = model.graph.node[0]
    function = helper.make_function(
        "local", "f", ["condition"], list(branching.output), [branching], model.opset_import
    )
    model.functions.append(function)
    model.graph.node[0].CopyFrom(helper.make_node("f", ["condition"], list(branching.output), domain="local"))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def with_an_own_function(name: str) -> onnx.ModelProto:
    """A function that is called like a standard operator and holds the operator."""
    model = model_with_a_call()
    function, call = model.functions[0], model.graph.node[0]
    function.domain, function.name = "", name
    call.domain, call.op_type = "", name
    return model


@pytest.mark.parametrize("rewrite", [lnbp_onnx.decompose, lnbp_onnx.embed])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_an_undefined_output, "nothing"),
        (with_a_reference_outside_of_a_function, "'else_branch' refers to the attribute 'nothing' of a function"),
        (with_an_axis_that_ends_onnx_beside_a_fault, "nothing|attribute 'axis' is 4294967295"),
        (with_a_device_without_a_name, "NodeDeviceConfiguration without a configuration"),
        (
            with_a_name_that_nothing_gives_inside_a_function,
            "input 'input_forward' of node: \nname: norm_grad",
        ),
        (lambda: with_an_own_function("MatMul"), "a function of its own that is called like the standard operator"),
    ],
)
def test_both_kinds_of_models_are_refused_alike(
    make: Callable[[], onnx.ModelProto], rewrite: Callable[..., object], message: str
) -> None:
    model = make()
    before = model.SerializeToString(deterministic=True)
    kinds: list[onnx.ModelProto | ir.Model] = [model, ir.from_proto(model)]
    for kind in kinds:
        if rewrite is lnbp_onnx.embed and make is with_a_device_without_a_name:
            continue  # the nodes stay as they are
        with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
            rewrite(kind)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("through_onnx_ir", [False, True])
def test_an_own_function_is_not_taken_for_the_operator(through_onnx_ir: bool) -> None:
    """Where a model says what Reciprocal is, it is that: here the identity, and the formula is no gradient."""
    model = lnbp_onnx.decompose(CASE.model())
    node = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(helper.make_function("", "Reciprocal", ["x"], ["y"], [node], model.opset_import))
    assert any(each.op_type == "Reciprocal" for each in model.graph.node)
    fused = ir.to_proto(lnbp_onnx.fuse(ir.from_proto(model))) if through_onnx_ir else lnbp_onnx.fuse(model)
    assert [each.op_type for each in fused.graph.node] == [each.op_type for each in model.graph.node]
    assert [(each.domain, each.name) for each in fused.functions] == [("", "Reciprocal")]
    assert {each.domain for each in fused.opset_import} == {each.domain for each in model.opset_import}


def test_an_own_function_of_the_default_domain() -> None:
    """It may be called like an operator that the body does not need, and keeps its domain."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(lnbp_onnx.DOMAIN, 1)]
    node = lnbp_onnx.make_node("x", "dy", use_affine=False, use_stats=False, outputs=["dx", "", ""])
    function = helper.make_function("", "Max", ["x", "dy"], ["dx"], [node], opsets)
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, 4]) for name in ("x", "dy", "dx")]
    graph = helper.make_graph([helper.make_node("Max", ["x", "dy"], ["dx"])], "own", infos[:2], infos[2:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])
    onnx.checker.check_model(model, full_check=True)
    for rewrite in (lnbp_onnx.decompose, lnbp_onnx.embed):
        onnx.checker.check_model(rewrite(model), full_check=True)


@pytest.mark.parametrize(
    ("make", "rewrite", "message"),
    [
        (with_text_that_is_not_utf8, lnbp_onnx.decompose, "text that is not UTF-8, as "),
        (with_an_undefined_output, lnbp_onnx.decompose, "nothing"),
        (with_too_many_inputs_in_a_call, lnbp_onnx.decompose, "'call' calls the function local::f with 7 inputs"),
        (with_another_version_in_a_function, lnbp_onnx.decompose, "The function local::f imports version 2"),
        (with_a_tensor_of_another_size, lnbp_onnx.fuse, "cannot be read"),
        (with_a_tensor_of_no_type, lnbp_onnx.fuse, "cannot be read"),
        (with_an_axis_that_ends_onnx, lnbp_onnx.fuse, "'forward': attribute 'axis' is 2147483648; it must be in"),
    ],
)
def test_the_fault_is_named(
    make: Callable[[], onnx.ModelProto], rewrite: Callable[[onnx.ModelProto], onnx.ModelProto], message: str
) -> None:
    with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
        rewrite(make())


def test_a_file_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(with_text_that_is_not_utf8().SerializeToString())
    with pytest.raises(lnbp_onnx.InvalidModelError, match="text that is not UTF-8"):
        load_model(path)


def test_a_sound_model_is_not_blamed() -> None:
    class Broken(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            raise KeyError(model.graph.name)

    with pytest.raises(lnbp_onnx.LnbpError, match=r"KeyError: .*no fault was found in the model") as refusal:
        apply(CASE.model(), Broken())
    assert not isinstance(refusal.value, lnbp_onnx.InvalidModelError)


def test_graphs_beside_a_graph_are_not_looked_at() -> None:
    """An attribute's type says which of its fields counts."""
    model = model_in_branches()
    attribute = model.graph.node[0].attribute[0]
    attribute.graphs.extend([attribute.g, attribute.g])
    result = lnbp_onnx.decompose(model)
    assert result.graph.node[0].attribute[0].g.node[0].domain == ""


@pytest.mark.parametrize("through_onnx_ir", [False, True])
@pytest.mark.parametrize("opset", [11, 17])
def test_both_names_of_the_default_domain(opset: int, through_onnx_ir: bool) -> None:
    """Imported as ai.onnx, it was not seen, and imported in another version."""
    model = CASE.model(opset)
    model.opset_import[0].domain = "ai.onnx"
    ways = lnbp_onnx.decompose, lambda proto: ir.to_proto(lnbp_onnx.decompose(ir.from_proto(proto)))
    result = ways[through_onnx_ir](model)
    assert [opset_id.version for opset_id in result.opset_import] == [opset]
    onnx.checker.check_model(result, full_check=True)
    CASE.check(PlainRunner(result).run(CASE.arrays()))


def test_default_domain_of_functions_alone() -> None:
    """ONNX Runtime reads functions in the model's version of it, and in the newest where the model has none."""
    model = model_with_a_call()
    del model.opset_import[0]
    onnx.checker.check_model(model, full_check=True)
    result = lnbp_onnx.decompose(model)
    assert {each.domain: each.version for each in result.opset_import} == {"": 17, "local": 1}
    CASE.check(PlainRunner(result).run(CASE.arrays()))
