# SPDX-License-Identifier: Apache-2.0
"""Training steps, against the formulas in NumPy, in double."""

import dataclasses
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_line import command
from documentation import ROOT, python_blocks
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from training_models import OPTIMIZERS, Arrays, assert_updated, batches, parameters_of, regression, trained

import lnbp_onnx
from lnbp_onnx import SGD, AdamW


class Oracle:
    """The formulas of the optimizers in double, with the gradients of `regression`."""

    def __init__(self, optimizer: Any, parameters: Arrays) -> None:
        self.optimizer = optimizer
        self.parameters = {name: value.astype(np.float64) for name, value in parameters.items()}
        self.states: dict[str, list[Any]] = {name: [0.0, 0.0] for name in parameters}
        self.steps = 0

    def gradients(self, batch: Arrays) -> Arrays:
        x, y = (batch[name].astype(np.float64) for name in ("x", "y"))
        error = 2 * (x @ self.parameters["w"] + self.parameters["bias"] - y) / y.size
        return {"w": x.T @ error, "bias": error.sum(0)}

    def step(self, gradients: Arrays) -> None:
        self.steps += 1
        o, t = self.optimizer, self.steps
        for name, parameter in self.parameters.items():
            decay = o.weight_decay if o.decays(name) else 0.0
            g, (first, second) = gradients[name], self.states[name]
            if isinstance(o, AdamW):
                b1, b2 = o.betas
                first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
                change = decay * parameter + (first / (1 - b1**t)) / (np.sqrt(second / (1 - b2**t)) + o.eps)
            else:
                g = g + decay * parameter
                first = g if t == 1 else o.momentum * first + (1 - o.dampening) * g
                change = g if not o.momentum else g + o.momentum * first if o.nesterov else first
            self.parameters[name], self.states[name] = parameter - o.lr * change, [first, second]


def oracle_of(optimizer: Any, model: ModelProto) -> Oracle:
    # The learning rate is an input in float: in double it is another number than the one that was given.
    return Oracle(dataclasses.replace(optimizer, lr=float(np.float32(optimizer.lr))), parameters_of(model))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_formulas(name: str) -> None:
    optimizer, model = OPTIMIZERS[name], regression(np.float64)
    step = lnbp_onnx.training_step(model, of="loss", optimizer=optimizer)
    onnx.checker.check_model(step, full_check=True)
    read = {name for node in step.graph.node for name in node.input} | {output.name for output in step.graph.output}
    assert all(read.intersection(node.output) for node in step.graph.node), "nothing is computed for nothing"
    oracle = oracle_of(optimizer, model)
    for results, batch in zip(trained(step), batches(np.float64), strict=False):
        oracle.step(oracle.gradients(batch))
        assert_updated(results, oracle.parameters)
        assert int(results["step.updated"]) == oracle.steps
    states = [f"{each}.{state}" for each in ("w", "bias") for state in optimizer.states]
    assert [output.name for output in step.graph.output] == [
        *("loss", "w.updated", "bias.updated", "step.updated"),
        *(f"{state}.updated" for state in states),
    ]
    assert [value.name for value in step.graph.input] == ["x", "y", "w", "bias", "learning_rate", "step", *states]


def test_the_first_steps_of_adamw_are_exact_in_float() -> None:
    """What 1 - 0.999 is in float would be wrong by 5e-5."""
    optimizer, model = AdamW(lr=0.5), regression()
    (results,) = trained(lnbp_onnx.training_step(model, of="loss", optimizer=optimizer), 1)
    oracle = oracle_of(optimizer, model)
    oracle.step(oracle.gradients(next(batches())))
    for name, start in parameters_of(model).items():
        way = oracle.parameters[name] - start
        np.testing.assert_allclose(results[f"{name}.updated"] - start, way, rtol=2e-6, atol=1e-7)


def test_clipping_and_accumulation() -> None:
    optimizer, model = AdamW(lr=0.1), regression(np.float64)
    step = lnbp_onnx.training_step(model, of="loss", optimizer=optimizer, clip_norm=0.5, accumulation_steps=3)
    oracle = oracle_of(optimizer, model)
    gradients = []
    for run, (results, batch) in enumerate(zip(trained(step, 7), batches(np.float64), strict=False), 1):
        gradients.append(oracle.gradients(batch))
        if run % 3 == 0:
            mean = {name: np.mean([each[name] for each in gradients], axis=0) for name in oracle.parameters}
            norm = np.sqrt(sum(np.sum(each**2) for each in mean.values()))
            assert norm > 0.5, "or nothing is clipped"
            oracle.step({name: 0.5 / (norm + 1e-6) * each for name, each in mean.items()})
            gradients.clear()
        assert_updated(results, oracle.parameters)
        sums = {f"{name}.accumulated": sum(each[name] for each in gradients) for name in oracle.parameters}
        for name, value in sums.items():
            np.testing.assert_allclose(
                results[f"{name}.updated"], np.broadcast_to(value, results[name + ".updated"].shape)
            )


def test_a_small_gradient_is_not_clipped() -> None:
    steps = [
        lnbp_onnx.training_step(regression(), of="loss", optimizer=SGD(lr=0.1), clip_norm=norm) for norm in (1e3, None)
    ]
    clipped, free = (trained(step, 1)[0] for step in steps)
    np.testing.assert_array_equal(clipped["w.updated"], free["w.updated"])


def test_a_loss_that_is_no_output_becomes_one() -> None:
    model = regression()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["rows", 2]))
    step = lnbp_onnx.training_step(model, of="loss", optimizer=SGD())
    onnx.checker.check_model(step, full_check=True)
    (results,) = trained(step, 1)
    assert results["p"].shape == (4, 2)
    batch, values = next(batches()), parameters_of(model)
    expected = np.mean((batch["x"] @ values["w"] + values["bias"] - batch["y"]) ** 2)
    np.testing.assert_allclose(results["loss"], expected, rtol=1e-5)


def test_the_learning_rate_is_an_input() -> None:
    model = regression(np.float64)
    step = lnbp_onnx.training_step(model, of="loss", optimizer=SGD(lr=0.25))
    (once,), (twice,) = trained(step, 1), trained(step, 1, {"learning_rate": np.array(0.5, np.float32)})
    start = parameters_of(model)["w"]
    np.testing.assert_allclose(twice["w.updated"] - start, 2 * (once["w.updated"] - start), rtol=1e-12)


def given(element_type: str) -> ModelProto:
    """A model that has gradients and an updated buffer."""
    text = """
        <ir_version: 10, opset_import: ["": 18]>
        given (TYPE[2] x, TYPE[2] w, TYPE[2] buffer)
            => (TYPE loss, TYPE[2] w_grad, TYPE[2] x_grad, TYPE[2] buffer_updated)
        {
            h = Mul (x, w)
            loss = ReduceSum <keepdims = 0> (h)
            w_grad = Identity (x)
            x_grad = Identity (w)
            buffer_updated = Add (buffer, x)
        }
    """
    model = onnx.parser.parse_model(text.replace("TYPE", element_type))
    for name, value in {"w": [1, 2], "buffer": [0, 0]}.items():
        dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    for each in model.graph.output:
        each.name = each.name.replace("_", ".")
    for node in model.graph.node:
        node.output[0] = node.output[0].replace("_", ".")
    return model


def test_gradients_that_a_model_has() -> None:
    model = given("double")
    before = model.SerializeToString()
    step = lnbp_onnx.training_step(model, optimizer=SGD(lr=0.5, momentum=0.5))
    onnx.checker.check_model(step, full_check=True)
    assert model.SerializeToString() == before
    outputs = ["loss", "x.grad", "buffer.updated", "w.updated", "step.updated", "w.momentum_buffer.updated"]
    assert [output.name for output in step.graph.output] == outputs
    assert [info.name for info in step.graph.value_info if info.name == "w.grad"] == ["w.grad"]
    session = lnbp_onnx.inference_session(step)
    x = np.array([1.0, -1.0])
    results = dict(zip(outputs, session.run(None, {"x": x}), strict=True))
    np.testing.assert_array_equal(results["w.updated"], [0.5, 2.5])
    np.testing.assert_array_equal(results["buffer.updated"], x)
    again = lnbp_onnx.training_step(ir.from_proto(model), optimizer=SGD(lr=0.5, momentum=0.5))
    assert [output.name for output in again.graph.outputs] == outputs
    assert ir.to_proto(again).graph.initializer[-1].name == "w.momentum_buffer"


@pytest.mark.parametrize(("name", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_half_types_have_states_in_float(name: str, dtype: Any) -> None:
    optimizer = AdamW(lr=0.125)
    step = lnbp_onnx.training_step(given(name), optimizer=optimizer)
    x = np.array([0.001, -3.0]).astype(dtype)
    names = [output.name for output in step.graph.output]
    results = dict(zip(names, ReferenceEvaluator(step).run(None, {"x": x}), strict=True))
    oracle = Oracle(optimizer, {"w": np.array([1, 2])})
    oracle.step({"w": x.astype(np.float64)})
    assert results["w.updated"].dtype == dtype
    np.testing.assert_array_equal(results["w.updated"], oracle.parameters["w"].astype(dtype))
    for state, expected in zip(optimizer.states, oracle.states["w"], strict=True):
        assert results[f"w.{state}.updated"].dtype == np.float32
        np.testing.assert_allclose(results[f"w.{state}.updated"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"optimizer": AdamW()}, "no initializer NAME is there an output NAME.grad"),
        ({"of": "loss", "optimizer": AdamW(no_weight_decay=["b*", "v*"])}, "'v*' matches none"),
        ({"of": "p", "optimizer": AdamW()}, "seed='p.seed'"),
    ],
)
def test_refusals(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(lnbp_onnx.InvalidModelError) as error:
        lnbp_onnx.training_step(regression(), **settings)
    assert part in str(error.value)


def test_a_parameter_with_a_symbolic_shape() -> None:
    model = regression()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["in", "out"]))
    step = lnbp_onnx.training_step(model, of="loss", optimizer=SGD(momentum=0.5))
    (updated,) = (each for each in step.graph.output if each.name == "w.momentum_buffer.updated")
    assert [dim.dim_value for dim in updated.type.tensor_type.shape.dim] == [3, 2]


def test_an_integer_is_no_parameter() -> None:
    model = given("double")
    for each in (model.graph.initializer[0], model.graph.input[1]):
        each.CopyFrom(
            numpy_helper.from_array(np.array([1, 2]), "w")
            if isinstance(each, TensorProto)
            else helper.make_tensor_value_info("w", TensorProto.INT64, [2])
        )
    with pytest.raises(lnbp_onnx.InvalidModelError, match="'w' is of type INT64; float, double"):
        lnbp_onnx.training_step(model, optimizer=SGD())


@pytest.mark.parametrize("name", ["step", "learning_rate", "w.updated", "w.exp_avg"])
def test_names_that_are_taken(name: str) -> None:
    model = regression()
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = name
    with pytest.raises(lnbp_onnx.InvalidModelError, match=f"has the name '{name}'"):
        lnbp_onnx.training_step(model, of="loss", optimizer=AdamW())


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: AdamW(lr=-1.0), "lr is -1.0"),
        (lambda: AdamW(betas=(0.9, 1.0)), r"betas is \(0.9, 1.0\)"),
        (lambda: AdamW(eps=math.nan), "eps is nan"),
        (lambda: AdamW(weight_decay=math.inf), "weight_decay is inf"),
        (lambda: AdamW(no_weight_decay="bias"), "no_weight_decay is 'bias'"),
        (lambda: SGD(momentum=-0.5), "momentum is -0.5"),
        (lambda: SGD(dampening=math.nan), "dampening is nan"),
        (lambda: SGD(nesterov=True), "nesterov needs momentum above 0"),
        (lambda: SGD(nesterov=True, momentum=0.9, dampening=0.1), "nesterov needs momentum above 0"),
        (lambda: lnbp_onnx.training_step(b"", optimizer=SGD(), clip_norm=0.0), "clip_norm is 0.0"),
        (lambda: lnbp_onnx.training_step(b"", optimizer=SGD(), accumulation_steps=0), "accumulation_steps is 0"),
        (lambda: lnbp_onnx.training_step(b"", optimizer=SGD(), of="loss", wrt="w"), r"wrt is 'w'; it must be a seq"),
        (
            lambda: lnbp_onnx.training_step(b"", optimizer=SGD(), accumulation_steps=cast(int, 1.5)),
            "is 1.5; it must be an",
        ),
        (lambda: lnbp_onnx.training_step(b"", optimizer=SGD(), wrt=["w"]), "wrt is given without of"),
    ],
)
def test_settings_out_of_range(make: Callable[[], Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        make()


def test_command(tmp_path: Path) -> None:
    onnx.save(regression(), tmp_path / "m.onnx")
    options = ["--of", "loss", "--wrt", "w", "--lr", "0.25", "--optimizer", "sgd", "--momentum", "0.9", "--nesterov"]
    options += ["--weight-decay", "0.5", "--no-weight-decay", "w", "--clip-norm", "2", "--accumulation-steps", "2"]
    result = command("train-step", "m.onnx", *options, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["parameters"], data["states"]) == (["w"], ["w.accumulated", "w.momentum_buffer"])
    optimizer = SGD(lr=0.25, momentum=0.9, nesterov=True, weight_decay=0.5, no_weight_decay=["w"])
    expected = lnbp_onnx.training_step(
        regression(), of="loss", wrt=["w"], optimizer=optimizer, clip_norm=2.0, accumulation_steps=2
    )
    assert onnx.load(tmp_path / "m.training.onnx") == expected
    for arguments, part in (
        (["--of", "loss", "--momentum", "0.9"], "--momentum is no setting of adamw"),
        (["--of", "loss", "--lr", "-1"], "--lr is -1.0"),
        (["--of", "loss", "--clip-norm", "0"], "--clip-norm is 0.0"),
        (["--wrt", "w"], "--wrt is given without --of"),
        ([], "no initializer NAME is there an output NAME.grad (give --of, "),
    ):
        refused = command("train-step", "m.onnx", *arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert part in refused.stderr.replace("\n", " ")


def test_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shapes = {"norm.weight": (16,), "norm.bias": (16,), "head.weight": (4, 16), "head.bias": (4,)}
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "norm.weight", "norm.bias"], ["h"]),
        helper.make_node("Gemm", ["h", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])
    values = [numpy_helper.from_array(rng.normal(size=each).astype(np.float32), name) for name, each in shapes.items()]
    graph = helper.make_graph(nodes, "forward", [x], [logits], values)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    namespace: dict[str, Any] = {}
    blocks = python_blocks("docs/training.md")
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "training.md", "exec"), namespace)
    trained_values = parameters_of(onnx.load(tmp_path / "trained.onnx"))
    for name in shapes:
        np.testing.assert_array_equal(trained_values[name], namespace["state"][name])
    page = (ROOT / "docs/training.md").read_text("utf-8")
    options, after = page.split("lnbp-onnx train-step model.onnx step.onnx ")[1].split("\n\n")[0].rsplit("\n", 1)
    options = options.replace("\\\n", "")
    assert command("train-step", "model.onnx", "-o", "by_command.onnx", *shlex.split(options)).returncode == 0
    assert onnx.load(tmp_path / "by_command.onnx") == namespace["step"]
    assert after.split() == ["lnbp-onnx", "decompose", "step.onnx", "--in-place"]
    assert command("decompose", "by_command.onnx", "--in-place").returncode == 0
    assert onnx.load(tmp_path / "by_command.onnx") == onnx.load(tmp_path / "step.onnx")


def test_save_parameters() -> None:
    model = regression()
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    saved = lnbp_onnx.save_parameters(model, {"w": w})
    assert numpy_helper.to_array(model.graph.initializer[0])[0, 0] != 0, "the model stays as it is"
    np.testing.assert_array_equal(parameters_of(saved)["w"], w)
    np.testing.assert_array_equal(parameters_of(saved)["bias"], parameters_of(model)["bias"])
    as_objects = lnbp_onnx.save_parameters(ir.from_proto(model), {"w": w})
    np.testing.assert_array_equal(parameters_of(ir.to_proto(as_objects))["w"], w)


def test_save_parameters_with_external_data(tmp_path: Path) -> None:
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    source = tmp_path / "here" / "m.onnx"
    onnx.save(regression(), source, save_as_external_data=True, size_threshold=0, location="m.data")
    content = (tmp_path / "here" / "m.data").read_bytes()
    for target in (source, tmp_path / "there" / "trained.onnx"):
        lnbp_onnx.save_parameters(source, {"w": w}, target)
        found = parameters_of(onnx.load(target))
        np.testing.assert_array_equal(found["w"], w)
        np.testing.assert_array_equal(found["bias"], parameters_of(regression())["bias"])
    assert (tmp_path / "here" / "m.data").read_bytes() == content
    whole = lnbp_onnx.save_parameters(source, {"w": 2 * w})
    np.testing.assert_array_equal(parameters_of(whole)["bias"], parameters_of(regression())["bias"])


class OnDevice:
    """As torch's tensors that are elsewhere, or have a gradient."""

    def __array__(self) -> None:
        raise RuntimeError("call cpu() first")


def test_values_that_fit_no_parameter() -> None:
    values = {"w": np.zeros((2, 3), np.float32), "bias": np.zeros(2), "v": np.zeros(1), "x": [["a"], []]}
    values |= {"text": "abc", "none": None, "tensor": OnDevice()}
    with pytest.raises(lnbp_onnx.InvalidModelError) as error:
        lnbp_onnx.save_parameters(regression(), values)
    for part in ("'w' has shape [2, 3]", "'bias' is of type DOUBLE", "no initializer 'v'", "'x' is no array"):
        assert part in str(error.value)
    for part in ("'text' is no array", "'none' is no array", "'tensor' is no array of numbers: call cpu() first"):
        assert part in str(error.value)


def test_states_cost_no_space() -> None:
    """By default one zero stands for all of a state; fed as many as there are, the step has the same bits."""
    text = """<ir_version: 10, opset_import: ["": 18]>
        m (float[4, 3] x) => (float[4, 2000] p) { p = MatMul (x, w) }"""
    forward = onnx.parser.parse_model(text)
    large = np.random.default_rng(2).normal(size=(3, 2000)).astype(np.float32)
    forward.graph.initializer.append(numpy_helper.from_array(large, "w"))
    settings: dict[str, Any] = {"of": "p", "loss": "mse", "label": "label", "accumulation_steps": 2}
    step = lnbp_onnx.training_step(forward, optimizer=AdamW(), **settings)
    assert step.ByteSize() < 1.5 * large.nbytes
    session = lnbp_onnx.inference_session(step)
    names = [output.name for output in session.get_outputs()]
    rng = np.random.default_rng(3)
    batch = {"x": rng.normal(size=(4, 3)).astype(np.float32), "label": rng.normal(size=(4, 2000)).astype(np.float32)}
    zeros = {f"w.{state}": np.zeros_like(large) for state in ("exp_avg", "exp_avg_sq", "accumulated")}
    by_default, fed = (session.run(names, feeds) for feeds in (batch, batch | zeros))
    for name, one, other in zip(names, by_default, fed, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
