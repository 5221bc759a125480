# SPDX-License-Identifier: Apache-2.0
"""Activations that are computed again: the same bits, in less memory."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import command
from finite_differences import run_in_onnxruntime
from onnx import ModelProto, TensorProto, helper

import lnbp_onnx

PATTERNS = ["norm*", "hidden*", "active*"]


def blocks(layers: int, width: int, hidden: int) -> ModelProto:
    """Blocks of a layer norm and two layers, each added to what it read."""
    rng = np.random.default_rng(0)
    nodes, parameters = [], {}
    for layer in range(layers):
        shapes = {"g": (width,), "b": (width,), "v": (width, hidden), "w": (hidden, width)}
        for name, shape in shapes.items():
            parameters[f"{name}{layer}"] = rng.normal(size=shape).astype(np.float32) / 10
        nodes += [
            helper.make_node("LayerNormalization", [f"x{layer}", f"g{layer}", f"b{layer}"], [f"norm{layer}"]),
            helper.make_node("MatMul", [f"norm{layer}", f"v{layer}"], [f"hidden{layer}"]),
            helper.make_node("Gelu", [f"hidden{layer}"], [f"active{layer}"]),
            helper.make_node("MatMul", [f"active{layer}", f"w{layer}"], [f"out{layer}"]),
            helper.make_node("Add", [f"x{layer}", f"out{layer}"], [f"x{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("Mul", [f"x{layers}", f"x{layers}"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["loss"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])],
        [onnx.numpy_helper.from_array(value, name) for name, value in parameters.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("patterns", [["hidden*"], PATTERNS, ["norm1", "*2"], ["*"]], ids=" ".join)
@pytest.mark.parametrize("is_decomposed", [False, True], ids=["kernel", "decomposed"])
def test_gradients_have_the_same_bits(patterns: list[str], is_decomposed: bool) -> None:
    forward = blocks(3, 8, 16)
    models = [lnbp_onnx.gradient(forward, of="loss", recompute=each) for each in ([], patterns)]
    onnx.checker.check_model(models[1], full_check=True)
    assert len(models[1].graph.node) > len(models[0].graph.node)
    feeds = {"x0": np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)}
    kept, again = (
        run_in_onnxruntime(lnbp_onnx.decompose(model) if is_decomposed else model, feeds) for model in models
    )
    assert kept.keys() == again.keys()
    for name, value in kept.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


PEAK = r"""
import re, sys
from pathlib import Path
import numpy as np, onnxruntime

def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
x = np.zeros((2048, 64), np.float32)
before = peak()
session.run(None, {"x0": x})
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peak of a process of its own")
def test_memory_is_that_of_one_block(tmp_path: Path) -> None:
    """Of what blocks keep, 17 times their width, ONNX Runtime needs that of one at a time, and x of each."""
    peaks = []
    for patterns in ([], PATTERNS):
        model = lnbp_onnx.decompose(lnbp_onnx.gradient(blocks(8, 64, 512), of="loss", recompute=patterns))
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        run = subprocess.run([sys.executable, "-c", PEAK, path], check=True, capture_output=True, text=True)
        peaks.append(int(run.stdout))
    assert peaks[1] < 0.5 * peaks[0]


def test_several_uses_and_parts() -> None:
    """Branches that share what is computed again, outputs that are kept anyway, and nodes of several outputs."""
    text = """<ir_version: 10, opset_import: ["": 18]>
        m (float[4, 6] x) => (float loss, float[4, 6] shown) <float[6, 6] w, float[6, 6] v>
        {
            shown = Tanh (x)
            a, b = Split <axis = 1, num_outputs = 2> (shown)
            joined = Concat <axis = 1> (b, a)
            p = MatMul (joined, w)
            q = MatMul (joined, v)
            s = Sigmoid (p)
            both = Mul (s, q)
            loss = ReduceSumSquare <keepdims = 0> (both)
        }"""
    forward = onnx.parser.parse_model(text)
    rng = np.random.default_rng(4)
    for name in ("w", "v"):
        forward.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=(6, 6)).astype(np.float32), name))
    feeds = {"x": rng.normal(size=(4, 6)).astype(np.float32)}
    wrt = ["x", "w", "v"]
    again = lnbp_onnx.gradient(forward, of="loss", wrt=wrt, recompute=["*"])
    copied = [node.op_type for node in again.graph.node if ".again" in node.name]
    assert copied.count("Split") == copied.count("MatMul") // 2 == 1
    assert "Tanh" not in copied  # it is an output
    found, expected = (
        run_in_onnxruntime(model, feeds) for model in (again, lnbp_onnx.gradient(forward, of="loss", wrt=wrt))
    )
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


BATCH_NORM = """
    s = Sin (x)
    y, mean2, var2 = BatchNormalization <training_mode = 1> (s, scale, b, mean, var)
    cubes = Mul (y, y)
"""
THEN = f"() => (float[6, 3] cubes, float[3] mean2) {{ {BATCH_NORM} }}"
ELSE = THEN.replace("mean2", "mean3").replace("cubes", "cubes3")
UPDATING = {
    "y": BATCH_NORM,
    "*": BATCH_NORM,
    "branches": f"""
    total = ReduceSum <keepdims = 0> (x)
    zero = Constant <value = float {{0}}> ()
    is_more = Greater (total, zero)
    cubes, mean2 = If (is_more) <then_branch = a {THEN}, else_branch = b {ELSE}>
    """,
}


@pytest.mark.parametrize("name", UPDATING)
def test_running_statistics_are_updated_once(name: str) -> None:
    """ONNX Runtime writes them over the old ones, which a copy has in common with the first node, and the next run."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 18]> g (float[6, 3] x) => (float loss, float[3] mean2)
        <float[3] scale = {{1, 2, 3}}, float[3] b = {{1, 0, 2}},
        float[3] mean = {{1, 2, 0}}, float[3] var = {{1, 2, 4}}>
        {{ {UPDATING[name]} squares = Mul (cubes, x) loss = ReduceSumSquare <keepdims = 0> (squares) }}"""
    )
    recompute = () if name == "branches" else (name,)
    result = lnbp_onnx.gradient(model, of="loss", wrt=["x"], recompute=recompute)
    onnx.checker.check_model(result, full_check=True)
    session = lnbp_onnx.inference_session(result)
    feeds = {"x": np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)}
    expected = run_in_onnxruntime(model, feeds)["mean2"]
    for _ in range(2):
        np.testing.assert_array_equal(session.run(["mean2"], feeds)[0], expected)


DROPPED = """<ir_version: 10, opset_import: ["": 18]>
    m (float[4, 6] x, bool c) => (float loss) <float[6] w, float ratio = {0.5}, bool yes = {1}>
    {
        noise = RandomNormal <shape = [6]> ()
        noisy = Mul (w, noise)
        scaled = Mul (x, noisy)
        dropped = Dropout (scaled, ratio, yes)
        chosen = If (c) <
            then_branch = then () => (float[4, 6] t) { t = Exp (dropped) },
            else_branch = other () => (float[4, 6] o) { o = Sin (dropped) }
        >
        cubes = Mul (chosen, scaled)
        loss = ReduceSumSquare <keepdims = 0> (cubes)
    }"""

REFUSED = {
    "RandomNormal node 'noise' cannot be computed again: it draws": ["noise"],
    "Dropout node 'dropped' cannot be computed again: it draws random numbers": ["dropped"],
    "If node 'chosen' cannot be computed again: it holds a graph": ["c*"],
    "'drop' matches none of the values .* those are 'cubes', ": ["cubes", "drop"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_computed_again(message: str) -> None:
    model = onnx.parser.parse_model(DROPPED)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(6, np.float32), "w"))
    for node in model.graph.node:
        node.name = node.output[0]
    with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
        lnbp_onnx.gradient(model, of="loss", wrt=["w"], recompute=REFUSED[message])


def test_a_dropout_that_drops_nothing_is_computed_again() -> None:
    model = onnx.parser.parse_model(DROPPED.replace("bool yes = {1}", "bool yes = {0}"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(6, np.float32), "w"))
    result = lnbp_onnx.gradient(model, of="loss", wrt=["w"], recompute=["dropped"])
    assert sum(node.op_type == "Dropout" for node in result.graph.node) == 2


def test_training_step_and_command_line(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(blocks(2, 8, 16), path)
    sgd = lnbp_onnx.SGD()
    step = lnbp_onnx.training_step(str(path), of="loss", optimizer=sgd, recompute=["active*", "norm*"])
    options = ["--recompute", "active*", "--recompute", "norm*"]
    assert command("train-step", path, out, "--of", "loss", "--optimizer", "sgd", *options).returncode == 0
    assert onnx.load(out) == step
    assert command("gradient", path, tmp_path / "g.onnx", "--of", "loss", *options).returncode == 0
    assert onnx.load(tmp_path / "g.onnx") == lnbp_onnx.gradient(str(path), of="loss", recompute=["active*", "norm*"])
    with pytest.raises(ValueError, match="recompute is given without of"):
        lnbp_onnx.training_step(str(path), optimizer=sgd, recompute=["active*"])
    with pytest.raises(ValueError, match=r"recompute is 'active\*'; it must be a sequence of names"):
        lnbp_onnx.gradient(str(path), of="loss", recompute="active*")


def test_time_grows_with_the_graph() -> None:
    times = []
    for layers in (20, 120):
        model = blocks(layers, 4, 8)
        begin = time.process_time()
        lnbp_onnx.gradient(model, of="loss", recompute=PATTERNS)
        times.append(time.process_time() - begin)
    assert times[1] < 15 * times[0]
