# SPDX-License-Identifier: Apache-2.0
"""Whole graphs that onnxruntime-training 1.19.2 wrote, in plain ONNX Runtime, and what is refused.

`data/ort_training_*.onnx` are training models of ``onnxruntime.training.artifacts.generate_artifacts``: a two-layer
GPT, an encoder layer with dropout of ratio 0 and a symbolic batch, and a convolutional network with batch
normalisation. The loss and the gradients beside them were computed by PyTorch's autograd (GPT) and by
onnxruntime-training 1.19.2 itself, from the same inputs and parameters.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from command_line import command
from onnx import TensorProto, helper
from training_op_cases import fast_gelu, gelu, gradient

import lnbp_onnx
from lnbp_onnx.passes import scatter_reductions

DATA = Path(__file__).parent / "data"
TOLERANCE = 2e-6
Array = np.ndarray


@dataclass(frozen=True)
class Graph:
    model: onnx.ModelProto
    feeds: dict[str, Array]
    loss: Array
    gradients: dict[str, Array]

    @property
    def loss_name(self) -> str:
        return self.model.graph.output[0].name


def load(name: str) -> Graph:
    model = onnx.load(DATA / f"ort_training_{name}.onnx")
    if name == "gpt":
        reference = np.load(DATA / "ort_training_gpt_reference.npz")
        feeds = {"ids": reference["ids"], "labels": reference["tgt"]}
        feeds |= {key.removeprefix("p."): value for key, value in reference.items() if key.startswith("p.")}
        gradients = {key.removeprefix("g."): value for key, value in reference.items() if key.startswith("g.")}
        return Graph(model, feeds, reference["loss"], gradients)
    reference = np.load(DATA / f"ort_training_{name}.npz")
    feeds = {key.removeprefix("in/"): value for key, value in reference.items() if key.startswith("in/")}
    outputs = {key.removeprefix("out/"): value for key, value in reference.items() if key.startswith("out/")}
    loss = outputs.pop(model.graph.output[0].name)
    return Graph(model, feeds, loss, {key.removesuffix("_grad"): value for key, value in outputs.items()})


def with_buffers(graph: Graph, model: onnx.ModelProto, *, reset: bool = True) -> dict[str, Array]:
    """Return the feeds with buffers full of ones."""
    feeds = dict(graph.feeds) | {"lazy_reset_grad": np.array([reset])}
    for info in model.graph.input:
        if info.name.endswith(".buffer"):
            feeds[info.name] = np.ones([dim.dim_value for dim in info.type.tensor_type.shape.dim], np.float32)
    return feeds


def plain(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, feeds: dict[str, Array]) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def updated(outputs: dict[str, Array], parameter: str) -> Array:
    return outputs[f"{parameter}_grad.accumulation.buffer.updated"]


def check(graph: Graph, outputs: dict[str, Array]) -> None:
    np.testing.assert_allclose(outputs[graph.loss_name], graph.loss, rtol=TOLERANCE)
    for name, gradient_ in graph.gradients.items():
        error = np.abs(updated(outputs, name) - gradient_).max() / np.abs(gradient_).max()
        assert error <= TOLERANCE, name


def op_types(model: onnx.ModelProto) -> Counter[tuple[str, str]]:
    return Counter((node.domain, node.op_type) for node in model.graph.node)


GRAPHS = pytest.mark.parametrize("name", ["gpt", "encoder", "convnet"])


@GRAPHS
def test_current_runtime_refuses_the_original(name: str) -> None:
    with pytest.raises(Exception, match="is not a registered function/op"):
        plain(load(name).model)


@GRAPHS
@pytest.mark.parametrize("fuse_first", [False, True])
def test_standard_operators(name: str, fuse_first: bool) -> None:
    graph = load(name)
    model = lnbp_onnx.decompose(lnbp_onnx.fuse(graph.model) if fuse_first else graph.model, training_ops=True)
    onnx.checker.check_model(model, full_check=True)
    # What an inference package of ONNX Runtime has stays.
    kept = {"FusedMatMul", "Gelu", "FastGelu"}
    before = {key: count for key, count in op_types(graph.model).items() if key[1] in kept}
    assert {key: count for key, count in op_types(model).items() if key[0]} == before
    check(graph, run(plain(model), with_buffers(graph, model)))
    assert not scatter_reductions(model)
    again = lnbp_onnx.decompose(model, training_ops=True)
    assert again == model


def test_broadcast_position_table() -> None:
    """1.19.2 leaves out a ReduceSum over the batch; the gradients are PyTorch's all the same."""
    reference = np.load(DATA / "ort_training_positions_reference.npz")
    model = lnbp_onnx.decompose(onnx.load(DATA / "ort_training_positions.onnx"), training_ops=True)
    graph = Graph(
        model,
        {"x": reference["a.0"], "labels": reference["t.0"]}
        | {key.removeprefix("p."): value for key, value in reference.items() if key.startswith("p.")},
        reference["loss"],
        {key.removeprefix("g."): value for key, value in reference.items() if key.startswith("g.")},
    )
    taken = {info.name for info in model.graph.input}
    feeds = {name: value for name, value in with_buffers(graph, model).items() if name in taken}
    outputs = run(plain(model), feeds)
    for name in ("w.weight", "p.weight", "h.weight", "h.bias"):
        np.testing.assert_allclose(updated(outputs, name), graph.gradients[name], atol=TOLERANCE)


@GRAPHS
def test_kernel(name: str) -> None:
    graph = load(name)
    model = lnbp_onnx.fuse(lnbp_onnx.decompose(graph.model, training_ops=True))
    expected = op_types(graph.model)["com.microsoft", "LayerNormalizationGrad"]
    assert op_types(model)["lnbp", "LayerNormBackprop"] == expected == {"gpt": 5, "encoder": 2, "convnet": 0}[name]
    session = lnbp_onnx.inference_session(model)
    check(graph, run(session, with_buffers(graph, model)))


@pytest.mark.parametrize("name", ["gpt", "encoder"])
def test_without_value_info(name: str) -> None:
    """Types and shapes are inferred through the operators that ONNX does not know.

    The convolutional network is not among them: nothing but its value_info tells the shape of AveragePoolGrad's output.
    """
    graph = load(name)
    stripped = onnx.ModelProto.FromString(graph.model.SerializeToString())
    del stripped.graph.value_info[:]
    model = lnbp_onnx.decompose(stripped, training_ops=True)
    check(graph, run(plain(model), with_buffers(graph, model)))


def test_inputs_and_outputs_stay() -> None:
    graph = load("gpt")
    model = lnbp_onnx.decompose(graph.model, training_ops=True)
    assert model.graph.input == graph.model.graph.input
    count = len(graph.model.graph.output)
    assert model.graph.output[:count] == graph.model.graph.output[:]
    buffers = [info for info in graph.model.graph.input if info.name.endswith(".buffer")]
    added = model.graph.output[count:]
    assert {info.name for info in added} == {f"{info.name}.updated" for info in buffers}
    types = {f"{info.name}.updated": info.type for info in buffers}
    assert all(info.type == types[info.name] for info in added)


def test_gradients_accumulate() -> None:
    graph = load("encoder")
    model = lnbp_onnx.decompose(graph.model, training_ops=True)
    outputs = run(plain(model), with_buffers(graph, model, reset=False))
    for name, expected in graph.gradients.items():
        np.testing.assert_allclose(updated(outputs, name), 1 + expected, rtol=1e-6, atol=1e-6)
        assert outputs[f"{name}_grad.accumulation.out"].tolist() == [True]


def test_batch_statistics_come_out() -> None:
    """BatchNormInternal changes its running statistics in place, where the recording found them; here they come out."""
    graph = load("convnet")
    model = lnbp_onnx.decompose(graph.model, training_ops=True)
    outputs = run(plain(model), with_buffers(graph, model))
    recorded = np.load(DATA / "ort_training_convnet.npz")
    for name in ("mean0", "var0"):
        assert not np.array_equal(recorded[f"updated/{name}"], graph.feeds[name])
        np.testing.assert_allclose(outputs[f"{name}.updated"], recorded[f"updated/{name}"], rtol=1e-6, atol=1e-8)


def test_another_batch_size() -> None:
    """The encoder's batch is symbolic: a batch of one twice over has the loss and the gradients of one of it."""
    graph = load("encoder")
    model = lnbp_onnx.decompose(graph.model, training_ops=True)
    session = plain(model)
    one = with_buffers(graph, model) | {"ids": graph.feeds["ids"][:1], "target": graph.feeds["target"][:1]}
    three = one | {"ids": np.repeat(one["ids"], 3, 0), "target": np.repeat(one["target"], 3, 0)}
    outputs, repeated = run(session, one), run(session, three)
    for name in graph.gradients:
        largest = np.abs(updated(outputs, name)).max()
        assert np.abs(updated(repeated, name) - updated(outputs, name)).max() <= 1e-5 * largest


def test_ir_model() -> None:
    graph = load("encoder")
    given = ir.from_proto(graph.model)
    result = lnbp_onnx.decompose(given, training_ops=True)
    assert isinstance(result, ir.Model)
    assert sum(node.op_type == "SliceGrad" for node in given.graph) == 1
    proto = ir.to_proto(result)
    check(graph, run(plain(proto), with_buffers(graph, proto)))


# Single nodes in other places


def tensor(name: str, shape: list[int | str], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def training_node(op_type: str, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=f"the_{op_type}", domain="com.microsoft")


def make_model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    functions: list[onnx.FunctionProto] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid(*item) for item in (("", opset), ("com.microsoft", 1), ("local", 1))]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions or [])


DRAW = np.random.default_rng(0)
DY, X = (DRAW.standard_normal((3, 4)).astype(np.float32) for _ in range(2))


def test_subgraphs() -> None:
    def branch(op_type: str) -> onnx.GraphProto:
        return helper.make_graph([training_node(op_type, ["dy", "x"], ["r"])], op_type, [], [tensor("r", [3, 4])])

    node = helper.make_node(
        "If", ["c"], ["dx"], then_branch=branch("GeluGrad"), else_branch=branch("FastGeluGrad"), name="if"
    )
    inputs = [tensor("c", [], TensorProto.BOOL), tensor("dy", [3, 4]), tensor("x", [3, 4])]
    model = lnbp_onnx.decompose(make_model([node], inputs, [tensor("dx", [3, 4])]), training_ops=True)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.domain for opset in model.opset_import] == ["", "local"]
    for condition, forward in ((True, gelu), (False, fast_gelu)):
        outputs = run(plain(model), {"c": np.array(condition), "dy": DY, "x": X})
        np.testing.assert_allclose(outputs["dx"], gradient(forward, X, DY), rtol=1e-5, atol=1e-6)


def test_functions() -> None:
    body = [training_node("GeluGrad", ["a", "b"], ["c"])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    function = helper.make_function("local", "F", ["a", "b"], ["c"], body, opsets)
    node = helper.make_node("F", ["dy", "x"], ["dx"], domain="local")
    model = make_model([node], [tensor("dy", [3, 4]), tensor("x", [3, 4])], [tensor("dx", [3, 4])], [function])
    result = lnbp_onnx.decompose(model, training_ops=True)
    onnx.checker.check_model(result, full_check=True)
    outputs = run(plain(result), {"dy": DY, "x": X})
    np.testing.assert_allclose(outputs["dx"], gradient(gelu, X, DY), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op_type", ["GeluGrad", "YieldOp"])
def test_functions_of_these_names_stay(op_type: str) -> None:
    opsets = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Sub", ["a", "b"], ["c"])]
    function = helper.make_function("com.microsoft", op_type, ["a", "b"], ["c"], body, opsets)
    node = training_node(op_type, ["dy", "x"], ["y"])
    model = make_model([node], [tensor("dy", [3, 4]), tensor("x", [3, 4])], [tensor("y", [3, 4])], [function])
    assert lnbp_onnx.decompose(model, training_ops=True) == model


def refused(model: onnx.ModelProto) -> str:
    before = onnx.ModelProto.FromString(model.SerializeToString())
    with pytest.raises(lnbp_onnx.InvalidModelError) as caught:
        lnbp_onnx.decompose(model, training_ops=True)
    assert model == before
    return str(caught.value)


def not_covered() -> onnx.ModelProto:
    nodes = [
        training_node("GeluGrad", ["dy", "x"], ["a"]),
        training_node("YieldOp", ["a"], ["b"]),
        training_node("LSTMGrad", ["b"], ["c"]),
        training_node("YieldOp", ["c"], ["d"]),
    ]
    return make_model(nodes, [tensor("dy", [3, 4]), tensor("x", [3, 4])], [tensor("d", [3, 4])])


def test_what_is_not_covered_is_named() -> None:
    message = refused(not_covered())
    assert "YieldOp (node 'the_YieldOp' in graph and 1 more)" in message
    assert "LSTMGrad (node 'the_LSTMGrad' in graph)" in message
    assert "GeluGrad" not in message


def accumulator_in_subgraph() -> onnx.ModelProto:
    inner = [training_node("InPlaceAccumulatorV2", ["x", "dy"], ["r"])]
    branch = helper.make_graph(inner, "branch", [], [tensor("r", [1], TensorProto.BOOL)])
    node = helper.make_node("If", ["c"], ["done"], then_branch=branch, else_branch=branch, name="if")
    inputs = [tensor("c", [], TensorProto.BOOL), tensor("dy", [3, 4]), tensor("x", [3, 4])]
    return make_model([node], inputs, [tensor("done", [1], TensorProto.BOOL)])


def one(op_type: str, names: list[str], opset: int = 17, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    inputs = [tensor(name, [3, 4], dtype) for name in names if name]
    return make_model([training_node(op_type, names, ["y"])], inputs, [tensor("y", [3, 4], dtype)], opset=opset)


def with_attribute(model: onnx.ModelProto, **attributes: object) -> onnx.ModelProto:
    model.graph.node[0].attribute.extend(helper.make_attribute(*item) for item in attributes.items())
    return model


def untyped() -> onnx.ModelProto:
    model = one("GeluGrad", ["a", "b"])
    model.graph.node.insert(0, helper.make_node("Unknown", ["dy"], ["a", "b"], domain="com.microsoft"))
    del model.graph.input[:]
    model.graph.input.append(tensor("dy", [3, 4]))
    model.graph.node[1].output[0] = "c"
    model.graph.node.append(helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            accumulator_in_subgraph,
            r"InPlaceAccumulatorV2 node 'the_.*' in graph / If 'if' .*: it changes 'x' in place",
        ),
        (lambda: one("GeluGrad", ["dy"]), "GeluGrad node 'the_GeluGrad': its input X is missing"),
        (lambda: one("GeluGrad", ["dy", ""]), "GeluGrad node 'the_GeluGrad': its input X is missing"),
        (lambda: one("GeluGrad", ["dy", "x"], 10), "opset is 10; .* from 11 on"),
        (lambda: one("GeluGrad", ["dy", "x"], 11, TensorProto.BFLOAT16), "bfloat16, .* from opset 13 on; .* is 11"),
        (untyped, "GeluGrad node 'the_GeluGrad': the element type of its inputs is not known"),
        (
            lambda: with_attribute(one("SoftmaxCrossEntropyLossGrad", ["a", "b", "c"]), reduction="max"),
            "reduction is 'max'; it must be none, sum or mean",
        ),
        (
            lambda: with_attribute(one("ConvGrad", ["a", "b", "c"]), auto_pad="SAME"),
            "auto_pad is 'SAME'; it must be NOTSET",
        ),
        (lambda: one("LayerNormalizationGrad", ["a", "b"]), "LayerNormalizationGrad node .* has 2 of its 5 inputs"),
    ],
)
def test_refusals(make: Callable[[], onnx.ModelProto], message: str) -> None:

    assert re.search(message, refused(make()))


# The command line


def test_command(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    done = command("decompose", "--training-ops", "--json", DATA / "ort_training_encoder.onnx", target)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert Counter(each["operator"] for each in report["training_ops"])["InPlaceAccumulatorV2"] == 13
    assert len(report["nodes"]) == 2
    graph, model = load("encoder"), onnx.load(target)
    assert {name for each in report["training_ops"] for name in each["updated"]} == {
        f"{name}_grad.accumulation.buffer.updated" for name in graph.gradients
    }
    check(graph, run(plain(model), with_buffers(graph, model)))

    verbose = command("decompose", "--training-ops", "-v", "--force", DATA / "ort_training_encoder.onnx", target)
    assert f"Training operators rewritten: {len(report['training_ops'])}" in verbose.stdout
    assert "SliceGrad" in verbose.stdout
    again = command("decompose", "--training-ops", target, tmp_path / "again.onnx")
    assert again.returncode == 0
    assert "and no operator of ONNX Runtime training" in again.stdout


def test_without_the_option_it_is_named(tmp_path: Path) -> None:
    """`decompose` alone leaves training operators, and says so; so does a session that cannot be made of them."""
    source = DATA / "ort_training_positions.onnx"
    done = command("decompose", source, tmp_path / "out.onnx")
    assert done.returncode == 0
    said = (
        "which no current runtime loads: 2 GatherGrad, 4 InPlaceAccumulatorV2, 1 Scale, 1 SoftmaxCrossEntropyLossGrad"
    )
    assert f"{said} (lnbp-onnx decompose --training-ops rewrites them)" in done.stderr
    for name, *options in (("decompose", "--dry-run", "-q"), ("inspect",)):
        done = command(name, source, "--json", *options)
        assert done.returncode == 0
        assert done.stderr.startswith("Warning: ")
        [warning] = json.loads(done.stdout)["warnings"]
        assert said in warning
        assert warning in done.stderr
    for model in (source, onnx.load(source)):
        with pytest.raises(lnbp_onnx.InvalidModelError, match=r"2 GatherGrad.*training_ops=True.*--training-ops"):
            lnbp_onnx.inference_session(model)
    rewritten = command("decompose", "--training-ops", source, tmp_path / "rewritten.onnx")
    assert rewritten.stderr == ""


def test_command_refuses(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(not_covered(), source)
    failed = command("decompose", "--training-ops", source, target)
    assert failed.returncode == 2
    assert "YieldOp (node 'the_YieldOp' in graph and 1 more)" in failed.stderr
    assert not target.exists()
    for arguments in (("decompose", "--training-ops", "--check"), ("fuse", "--training-ops")):
        failed = command(*arguments, DATA / "ort_training_encoder.onnx", target)
        assert failed.returncode == 2
        assert not target.exists()
