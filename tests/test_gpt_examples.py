# SPDX-License-Identifier: Apache-2.0
"""The examples that train a GPT give the same training wherever it runs."""

import math
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from browsers import drive, need
from onnx import ModelProto

import lnbp_onnx
import train_in_any_runtime
from gpt.sizes import sizes_of
from gpt.text import Batch, batches
from gpt.training import JOINT_MODEL, context_of, defaults, run_of, session_options, train, training_step
from program import NotInstalledError
from runtimes import Tensors

EXAMPLES = Path(__file__).parents[1] / "examples"
ROWS = 8


@pytest.fixture(scope="module")
def model() -> ModelProto:
    return onnx.load(JOINT_MODEL)


def data(model: ModelProto, steps: int) -> list[Batch]:
    return list(islice(batches(ROWS, context_of(model)), steps))


def trained_with_kernel(model: ModelProto, steps: int) -> tuple[list[float], Tensors]:
    """The losses and the parameters in ONNX Runtime with the native kernel, in this process."""
    step = training_step(model)
    run = run_of(lnbp_onnx.inference_session(step, sess_options=session_options()))
    state = defaults(step)
    return list(train(run, state, data(model, steps))), {name: state[name] for name in defaults(model)}


def assert_same_training(model: ModelProto, actual: Tensors, expected: Tensors, tolerance: float) -> None:
    """Hold each parameter's way from where it began to the expected one, as a whole.

    One element proves nothing: AdamW takes a gradient of nearly 0, of which only the rounding is left, for a large one.
    """
    assert actual.keys() == expected.keys()
    for name, start in defaults(model).items():
        way = np.linalg.norm(expected[name] - start)
        assert way > 0
        assert np.linalg.norm(actual[name] - expected[name]) <= tolerance * way, name


def assert_same_parameters(actual: Tensors, expected: Tensors, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_training_learns_the_text(model: ModelProto) -> None:
    losses, _ = trained_with_kernel(model, 60)
    assert losses[0] == pytest.approx(math.log(128), abs=0.1), "all 128 characters are as likely at the start"
    assert np.mean(losses[-10:]) < losses[0] - 1.4


def test_held_out_text_is_not_trained_on(model: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each place has a token of its own: in a real text a phrase may stand in both parts.
    monkeypatch.setattr("gpt.text.tokens", lambda: np.arange(1000))
    context = context_of(model)
    trained_on = np.concatenate([batch[name] for batch in islice(batches(64, context), 200) for name in batch])
    held_out = np.concatenate(list(next(batches(64, context, held_out=True)).values()))
    assert np.intersect1d(trained_on, held_out).size == 0


def test_plain_onnxruntime_cannot_load_the_model(model: ModelProto) -> None:
    """So that what trains it above has run the kernel."""
    assert sum(node.op_type == "LayerNormBackprop" for node in model.graph.node) == 5
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="lnbp"):
        onnxruntime.InferenceSession(JOINT_MODEL)


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "loss.png"
    subprocess.run([sys.executable, EXAMPLES / "train_gpt.py", "--steps", "2", "--picture", picture], check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("runtime", train_in_any_runtime.RUNTIMES)
def test_runtimes_train_as_the_kernel_does(runtime: str, model: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "standard.onnx"
    standard, state = train_in_any_runtime.decomposed(model, path)
    assert {node.domain for node in standard.graph.node} == {""}
    try:
        with train_in_any_runtime.RUNTIMES[runtime](path) as (_, run):
            losses = list(train(run, state, data(model, 5)))
    except NotInstalledError as reason:
        pytest.skip(f"{runtime} is not installed ({reason})")
    expected_losses, expected_parameters = trained_with_kernel(model, 5)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    parameters = {name: state[name] for name in expected_parameters}
    assert_same_training(model, parameters, expected_parameters, 5e-3)


def test_processes_train_as_one(model: ModelProto, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert mpiexec, "mpi4py is installed, an MPI is not (pip install mpich)"
    losses, parameters = trained_with_kernel(model, 10)
    for processes in (1, 2, 4):
        path = tmp_path / f"{processes}.npz"
        options = ["--steps", "10", "--rows", str(ROWS), "--save", str(path)]
        command = [mpiexec, "-n", str(processes), sys.executable, str(EXAMPLES / "data_parallel.py"), *options]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert run.returncode == 0, run.stdout + run.stderr
        assert run.stdout.startswith(f"{processes} processes")
        with np.load(path) as saved:
            result = dict(saved)
        np.testing.assert_allclose(result.pop("loss"), losses, rtol=1e-6)
        assert_same_training(model, result, parameters, 5e-3)


def test_training_is_as_in_torch(model: ModelProto) -> None:
    pytest.importorskip("torch")
    from gpt.model import train as train_in_torch  # noqa: PLC0415

    expected = list(train_in_torch(sizes_of(model), defaults(model), data(model, 20)))
    losses, _ = trained_with_kernel(model, 20)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)


def test_joint_model_is_what_is_exported(model: ModelProto, tmp_path: Path) -> None:
    """Not node by node: the standard operators depend on the exporter's version."""
    pytest.importorskip("torch")
    path = tmp_path / "joint.onnx"
    subprocess.run([sys.executable, EXAMPLES / "export_gpt.py", path], check=True, capture_output=True)
    exported = onnx.load(path)
    assert list(exported.graph.input) == list(model.graph.input)
    assert list(exported.graph.output) == list(model.graph.output)
    assert list(exported.metadata_props) == list(model.metadata_props)
    assert gradient_nodes(exported) == gradient_nodes(model)

    parameters, expected_parameters = defaults(exported), defaults(model)
    assert_same_parameters(parameters, expected_parameters, 1e-7)
    (batch,) = data(model, 1)
    results, expected = (
        run_of(lnbp_onnx.inference_session(each, sess_options=session_options()))(batch | expected_parameters)
        for each in (exported, model)
    )
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, rtol=0, atol=2e-6 * np.abs(value).max(), err_msg=name)


def gradient_nodes(model: ModelProto) -> list[tuple[object, ...]]:
    """The attributes of each LayerNormBackprop node, and which inputs and outputs it has."""
    return [
        (
            sorted((each.name, str(each)) for each in node.attribute),
            list(map(bool, node.input)),
            list(map(bool, node.output)),
        )
        for node in model.graph.node
        if node.op_type == lnbp_onnx.OP_TYPE
    ]


def test_in_a_browser(model: ModelProto) -> None:
    need("playwright-core", "onnxruntime-web")
    command = [sys.executable, str(EXAMPLES / "train_in_browser.py"), "--steps", "20", "--rows", str(ROWS), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            found = drive("drive_browser.mjs", address)
        finally:
            server.terminate()
    assert (found["error"], found["faults"]) == ("", [])
    expected, _ = trained_with_kernel(model, steps=20)
    np.testing.assert_allclose(found["losses"], expected, rtol=0, atol=1e-4)
    assert found["sample"].startswith("The ")
    assert len(found["sample"]) == 160
