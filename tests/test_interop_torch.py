# SPDX-License-Identifier: Apache-2.0
"""Exported torch modules against torch's autograd; runs where torch is installed, which CI sees to."""

import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

import lnbp_onnx

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch_modules as modules  # noqa: E402
from torch import nn  # noqa: E402

from lnbp_onnx.interop.torch import export, export_joint, translation_table  # noqa: E402

# Of torch's own code, once it has been imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

ROOT = Path(__file__).parents[1]
Feeds = Mapping[str, np.ndarray]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # for each parameter it warns that an input has a default
    return options


def native(model: ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    session = lnbp_onnx.inference_session(model, sess_options=session_options())
    return dict(zip((each.name for each in session.get_outputs()), session.run(None, feeds), strict=True))


def decomposed(model: ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run in a plain session, which cannot load a model that holds the operator."""
    standard = lnbp_onnx.decompose(model).SerializeToString()
    session = onnxruntime.InferenceSession(standard, session_options())
    return dict(zip((each.name for each in session.get_outputs()), session.run(None, feeds), strict=True))


WAYS = pytest.mark.parametrize("run", [native, decomposed])


def autograd(module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The loss and all gradients as torch computes them, by the names of the model's outputs."""
    module.zero_grad()
    inputs = {
        name: each.detach().requires_grad_(each.is_floating_point() and each.requires_grad)
        for name, each in arguments.items()
    }
    result = module(**inputs)
    loss = result["loss"] if isinstance(result, dict) else result[0] if isinstance(result, tuple) else result
    loss.backward()
    sources = {name: each for name, each in (*module.named_parameters(), *inputs.items()) if each.requires_grad}
    gradients = {
        f"{name}.grad": torch.zeros_like(each) if each.grad is None else each.grad for name, each in sources.items()
    }
    return {name: each.detach().double().numpy() for name, each in {"loss": loss, **gradients}.items()}


def arrays(arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: each.detach().numpy() for name, each in arguments.items()}


def relative_errors(found: Feeds, expected: Feeds) -> dict[str, float]:
    return {
        name: np.abs(found[name].astype(np.float64) - each).max() / max(np.abs(each).max(), 1e-30)
        for name, each in expected.items()
    }


def assert_close(found: Feeds, expected: Feeds, tolerance: float = 1e-5) -> None:
    errors = relative_errors(found, expected)
    assert max(errors.values()) <= tolerance, errors


def num_gradients(model: ModelProto) -> int:
    return sum(node.op_type == lnbp_onnx.OP_TYPE for node in model.graph.node)


def tokens(batch: int, length: int, *, classes: bool) -> dict[str, Any]:
    target = torch.randint(0, 5, (batch,)) if classes else torch.randint(0, 13, (batch, length))
    return {"ids": torch.randint(0, 13, (batch, length)), "target": target}


def vectors(batch: int, *, requires_grad: bool = False) -> dict[str, Any]:
    return {"x": torch.randn(batch, 6, 5, requires_grad=requires_grad)}


def classes(batch: int) -> dict[str, Any]:
    arguments = tokens(batch, 6, classes=True)
    arguments["target"][1:2] = -1  # ignored: the mean is over fewer
    return arguments


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Any]], int]] = {
    "encoder": (modules.Classifier, classes, 2),
    "gpt with a tied weight": (modules.Gpt, lambda batch: tokens(batch, 2 * batch, classes=False), 3),
    "two axes": (modules.mlp, vectors, 1),
    "functional": (modules.Functional, vectors, 3),
    "batch norm": (
        lambda: modules.Cubes(nn.Linear(5, 7), nn.LayerNorm(7), nn.BatchNorm1d(6), nn.Linear(7, 4)).eval(),
        vectors,
        1,
    ),
    "group norm": (lambda: modules.Cubes(nn.LayerNorm(5), nn.GroupNorm(2, 6), nn.Linear(5, 3)), vectors, 1),
    "evaluation": (
        lambda: modules.Cubes(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval(),
        vectors,
        2,
    ),
}


@pytest.fixture(scope="module")
def exported() -> Callable[[str], tuple[nn.Module, ModelProto]]:
    models: dict[str, tuple[nn.Module, ModelProto]] = {}

    def get(name: str) -> tuple[nn.Module, ModelProto]:
        if name not in models:
            make, arguments, _ = CASES[name]
            torch.manual_seed(1)
            module, kwargs = make(), arguments(4)
            shapes = {
                each: {0: "batch", 1: "length"} if each in ("ids", "target") and tensor.dim() == 2 else {0: "batch"}
                for each, tensor in kwargs.items()
            }
            if name == "encoder":
                shapes["ids"] = {0: torch.export.Dim("batch")}
                shapes["target"] = shapes["ids"]
            models[name] = module, export_joint(module, (), kwargs=kwargs, dynamic_shapes=shapes)
        return models[name]

    return get


@WAYS
@pytest.mark.parametrize("batch", [4, 1, 7])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients(name: str, batch: int, run: Any, exported: Any) -> None:
    module, model = exported(name)
    arguments = CASES[name][1](batch)
    expected = autograd(module, arguments)
    assert set(expected) <= {output.name for output in model.graph.output}
    assert_close(run(model, arrays(arguments)), expected)


@pytest.mark.parametrize("name", CASES)
def test_models(name: str, exported: Any) -> None:
    module, model = exported(name)
    onnx.checker.check_model(model, full_check=True)
    assert num_gradients(model) == CASES[name][2]
    assert {node.domain for node in model.graph.node} == {"", "lnbp"}
    assert not model.functions
    trainable = [name for name, each in module.named_parameters() if each.requires_grad]
    assert [each.name for each in model.graph.input] == [*CASES[name][1](1), *trainable]
    assert {each.type.tensor_type.shape.dim[0].dim_param for each in model.graph.input[: -len(trainable)]} == {"batch"}
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for parameter in trainable:
        np.testing.assert_array_equal(values[parameter], module.get_parameter(parameter).detach().numpy())


def test_other_outputs(exported: Any) -> None:
    module, model = exported("encoder")
    arguments = classes(3)
    logits = module(**arguments)["logits"].detach().numpy()
    assert_close(native(model, arrays(arguments)), {"logits": logits})
    module, model = exported("functional")
    arguments = vectors(3)
    _, second, third = (each.detach().numpy() for each in module(**arguments))
    assert_close(native(model, arrays(arguments)), {"output.1": second, "output.2": third})


@WAYS
def test_training_step_with_parameters_fed(run: Any, exported: Any) -> None:
    """Three steps in the runtime alone end where torch's do, whatever the model's own values are."""
    _, model = exported("gpt with a tied weight")
    module = modules.Gpt()  # not the one that was exported
    parameters = {name: each.detach().numpy().copy() for name, each in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        arguments = tokens(4, 8, classes=False)
        found = run(model, {**arrays(arguments), **parameters})
        assert_close(found, autograd(module, arguments))
        optimizer.step()
        parameters = {name: each - np.float32(0.1) * found[f"{name}.grad"] for name, each in parameters.items()}
    assert_close(parameters, {name: each.detach().numpy() for name, each in module.named_parameters()})


@WAYS
def test_input_gradients(run: Any) -> None:
    module, arguments = modules.mlp(), vectors(4, requires_grad=True)
    module.requires_grad_(False)
    model = export_joint(module, (arguments["x"],), input_gradients=["x"])
    assert [each.name for each in model.graph.output] == ["loss", "x.grad"]
    (node,) = (node for node in model.graph.node if node.op_type == lnbp_onnx.OP_TYPE)
    assert not any(node.output[1:])  # nobody needs the gradients of a frozen layer norm
    assert_close(run(model, arrays(arguments)), autograd(module, arguments))


def test_double() -> None:
    module, arguments = modules.narrow().double(), {"x": torch.randn(4, 5).double()}
    model = export_joint(module, (), kwargs=arguments)
    for run in (native, decomposed):
        # The statistics go through a float: LayerNormalization gives them as such.
        assert_close(run(model, arrays(arguments)), autograd(module, arguments), 1e-7)


def exact(module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The gradients in float64 of a module of a half type."""
    double = modules.narrow().double()
    double.load_state_dict(module.state_dict())
    return autograd(double, {name: each.double() for name, each in arguments.items()})


@WAYS
def test_float16(run: Any) -> None:
    module, arguments = modules.narrow().half(), {"x": torch.randn(4, 5).half()}
    model = export_joint(module, (), kwargs=arguments)
    assert num_gradients(model) == 1
    expected = exact(module, arguments)
    of_torch = max(relative_errors(autograd(module, arguments), expected).values())
    assert 1e-4 < of_torch < 1e-2
    assert_close(run(model, arrays(arguments)), expected, 2 * of_torch)


def test_bfloat16() -> None:
    """onnx's evaluator runs it: ONNX Runtime has no MatMul in bfloat16 on the CPU."""
    module, arguments = modules.narrow().bfloat16(), {"x": torch.randn(4, 5).bfloat16()}
    model = export_joint(module, (), kwargs=arguments)
    assert num_gradients(model) == 1
    feeds = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    feeds = {each.name: feeds[each.name] for each in model.graph.input if each.name in feeds}
    feeds["x"] = arguments["x"].float().numpy().astype(ml_dtypes.bfloat16)
    expected = exact(module, arguments)
    of_torch = max(relative_errors(autograd(module, arguments), expected).values())
    assert 1e-3 < of_torch < 5e-2
    evaluator = ReferenceEvaluator(model, new_ops=[lnbp_onnx.LayerNormBackprop])
    found = dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))
    assert_close(found, expected, 2 * of_torch)


@WAYS
def test_autocast(run: Any) -> None:
    module, arguments = modules.Autocast(), {"x": torch.randn(4, 5)}
    model = export_joint(module, (), kwargs=arguments)
    assert num_gradients(model) == 1
    assert_close(run(model, arrays(arguments)), autograd(module, arguments), 2e-3)


@WAYS
@pytest.mark.parametrize("batch", [4, 1, 9])
def test_gradients_at_inference(run: Any, batch: int, forces: tuple[nn.Module, ModelProto]) -> None:
    module, model = forces
    positions = torch.randn(batch, 7, 3)
    expected = {name: each.detach().numpy() for name, each in module(positions).items()}
    found = run(model, {"positions": positions.numpy()})
    assert found.keys() == expected.keys()
    assert_close(found, expected)


@pytest.fixture(scope="module")
def forces() -> tuple[nn.Module, ModelProto]:
    module = modules.Forces().eval()
    model = export(module, (torch.randn(4, 7, 3),), dynamic_shapes=({0: "batch"},))
    assert num_gradients(model) == 1
    assert [each.name for each in model.graph.input] == ["positions"]  # the parameters are constants
    return module, model


@WAYS
def test_second_derivatives(run: Any) -> None:
    module = modules.ForceMatching()
    arguments = {"positions": torch.randn(4, 7, 3), "forces": torch.randn(4, 7, 3)}
    model = export_joint(module, (), kwargs=arguments)
    assert_close(run(model, arrays(arguments)), autograd(module, arguments))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(mode: Any) -> None:
    module, arguments = modules.mlp(), vectors(2)
    with mode():
        model = export_joint(module, (), kwargs=arguments)
    assert_close(native(model, arrays(arguments)), autograd(module, arguments))


def test_mapping_of_a_type_of_its_own() -> None:
    class Output(OrderedDict[str, Any]):
        pass

    module = Written(lambda layer, x: Output(logits=layer(x), loss=layer(x).sum()))
    assert [each.name for each in export_joint(module, (x,)).graph.output][:2] == ["loss", "logits"]
    assert [each.name for each in export(module, (x,)).graph.output] == ["logits", "loss"]


def test_lstm() -> None:
    module = Written(lambda layer, x: layer(x)[0].pow(3).mean(), nn.LSTM(5, 4, batch_first=True))
    model = export_joint(module, (), kwargs=vectors(4), dynamic_shapes={"x": {0: "batch"}})
    for batch_size in (4, 1):
        arguments = vectors(batch_size)
        assert_close(native(model, arrays(arguments)), autograd(module, arguments))


def test_size_with_a_limit() -> None:
    module = Written(lambda layer, x: layer(x + torch.linspace(0, 1, 9)[: x.shape[0], None]).pow(3).sum())
    model = export_joint(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim("length", max=9)}})
    for length in (1, 4, 9):
        arguments = {"x": torch.randn(length, 5)}
        assert_close(native(model, arrays(arguments)), autograd(module, arguments))


def test_output_names() -> None:
    norm = nn.LayerNorm(5)
    model = export(norm, (torch.randn(3, 5),), output_names=["normalised"])
    assert [each.name for each in model.graph.output] == ["normalised"]
    assert [each.name for each in export(norm, (torch.randn(3, 5),)).graph.output] == ["output"]


def test_nested_arguments() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, pair: Any, *, options: Any, scale: float, **rest: Any) -> Any:
            x = pair[0] + pair[1] + options["more"] * scale + rest["last"]
            return {"loss": self.linear(x).pow(3).mean()}

    def arguments(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        a, b, c, d = (torch.randn(batch, 5) for _ in range(4))
        return ((a, b),), {"scale": 0.5, "last": d, "options": {"more": c}}

    args, kwargs = arguments(4)
    axis = {0: "batch"}
    model = export_joint(
        Nested(), args, kwargs=kwargs, dynamic_shapes={"pair": (axis, axis), "options": {"more": axis}, "last": axis}
    )
    names = ["pair.0", "pair.1", "options.more", "last"]
    assert [each.name for each in model.graph.input[:4]] == names
    module = Nested()
    args, kwargs = arguments(6)
    module(*args, **kwargs)["loss"].backward()
    tensors = (*args[0], kwargs["options"]["more"], kwargs["last"])
    feeds = {name: each.numpy() for name, each in zip(names, tensors, strict=True)}
    feeds |= {name: each.detach().numpy() for name, each in module.named_parameters()}
    assert_close(native(model, feeds), {"linear.weight.grad": module.linear.weight.grad.numpy()})


def test_translation_table() -> None:
    """For those who have a graph of their own and call the exporter themselves."""
    x, delta = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    weight = torch.randn(6)

    class Gradient(nn.Module):
        def forward(self, x: Any, delta: Any, weight: Any) -> Any:
            _, mean, rstd = torch.ops.aten.native_layer_norm(x, [6], weight, None, 1e-3)
            return torch.ops.aten.native_layer_norm_backward(
                delta, x, [6], mean, rstd, weight, None, [True, True, False]
            )[:2]

    program = torch.onnx.export(
        Gradient().eval(), (x, delta, weight), dynamo=True, custom_translation_table=translation_table(), verbose=False
    )
    model = program.model_proto
    assert num_gradients(model) == 1
    x.requires_grad_()
    weight.requires_grad_()
    nn.functional.layer_norm(x, (6,), weight, eps=1e-3).backward(delta)
    feeds = {"x": x.detach().numpy(), "delta": delta.numpy(), "weight": weight.detach().numpy()}
    found = list(native(model, feeds).values())
    for result, source in zip(found, (x, weight), strict=True):
        assert_close({"": result}, {"": source.grad.numpy()})


def test_written_file(tmp_path: Path, exported: Any) -> None:
    module, _ = exported("two axes")
    x = torch.randn(4, 6, 5)
    model = export_joint(module, (x,), tmp_path / "joint.onnx")
    assert onnx.load(tmp_path / "joint.onnx") == model
    assert [each.name for each in tmp_path.iterdir()] == ["joint.onnx"]
    with pytest.raises(lnbp_onnx.InvalidModelError, match="cannot be written"):
        export(module, (x,), tmp_path / "missing" / "joint.onnx")


def test_external_data_of_a_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lnbp_onnx.model_io._LARGEST_PROTO", 10_000)
    module = modules.Cubes(nn.Linear(5, 1000), nn.LayerNorm(1000))
    arguments = {"x": torch.randn(4, 5)}
    export_joint(module, (), tmp_path / "joint.onnx", kwargs=arguments)
    assert {each.name for each in tmp_path.iterdir()} == {"joint.onnx", "joint.onnx.data"}
    session = lnbp_onnx.inference_session(tmp_path / "joint.onnx", sess_options=session_options())
    found = dict(zip((each.name for each in session.get_outputs()), session.run(None, arrays(arguments)), strict=True))
    assert_close(found, autograd(module, arguments))


def test_the_module_is_left_as_it_was() -> None:
    module = modules.Gpt()
    before = {name: each.clone() for name, each in module.state_dict().items()}
    with torch.no_grad():
        export_joint(module, (), kwargs=tokens(3, 4, classes=False))
    assert module.head.weight is module.embed.weight
    assert all(each.grad is None and each.requires_grad for each in module.parameters())
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())


def test_a_module_with_two_names() -> None:
    norm = nn.LayerNorm(5)
    module = modules.Cubes(norm, nn.Linear(5, 5), norm)
    before = dict(module.named_parameters())
    arguments = {"x": torch.randn(4, 5)}
    model = export_joint(module, (), kwargs=arguments)
    assert all(each is before[name] for name, each in module.named_parameters())
    assert_close(native(model, arrays(arguments)), autograd(module, arguments))


class Written(nn.Module):
    """What a lambda says, of a layer and its input."""

    def __init__(self, forward: Callable[[nn.Module, Any], Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3) if layer is None else layer
        self.written = forward

    def forward(self, x: Any) -> Any:
        return self.written(self.layer, x)


def test_what_forward_keeps_is_not_kept() -> None:
    def forward(layer: nn.Module, x: Any) -> Any:
        layer.last = layer(x)
        return layer.last.sum()

    module = Written(forward)
    export_joint(module, (x,))
    assert not hasattr(module.layer, "last")
    module(x)
    last = module.layer.last
    export_joint(module, (x,))
    assert module.layer.last is last


def replaced(layer: nn.Module, x: Any) -> Any:
    layer.running_mean = layer.running_mean + 1
    return layer(x).sum()


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(5))

    def forward(self, x: Any) -> Any:
        return (self.x * x).sum()


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, loss: Any) -> Any:
        return self.layer(loss).sum()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, a: Any, b: Any) -> Any:
        return self.layer(a + b).sum()


class Nothing(nn.Module):
    def forward(self) -> Any:
        return torch.ones(()).requires_grad_()


def batch(*names: str) -> dict[str, Any]:
    return {"dynamic_shapes": {name: {0: name} for name in names}}


x = torch.ones(4, 5)
ids = torch.ones(4, 5, dtype=torch.int64)
total = Written(lambda layer, x: layer(x).sum())
norm = nn.BatchNorm1d(5).eval()
REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "dropout": (modules.Cubes(nn.Linear(5, 3), nn.Dropout(0.5)), (x,), {}, r"draws random numbers.*dropout.*eval\(\)"),
    "random": (Written(lambda layer, x: (layer(x) * torch.rand(4, 3)).sum()), (x,), {}, "draws random numbers.*rand"),
    "running statistics": (
        modules.Cubes(nn.BatchNorm1d(5)), (x,), {},
        r"changes 'layers.0.num_batches_tracked', 'layers.0.running_mean', 'layers.0.running_var'.*eval\(\)",
    ),
    "result written to a buffer": (
        Written(lambda layer, x: torch.add(layer.running_mean, 1, out=layer.running_mean).sum() + layer(x).sum(), norm),
        (x,), {}, "changes 'layer.running_mean' in place",
    ),
    "replaced buffer": (Written(replaced, norm), (x,), {}, "its forward replaces 'layer.running_mean'"),
    "changed input": (Written(lambda layer, x: layer(x.mul_(2)).sum()), (x,), {}, "changes 'x' in place"),
    "not a scalar": (nn.Linear(5, 3), (x,), {}, r"loss has shape \[4, 3\].*mean\(\)"),
    "no loss": (Written(lambda layer, x: {"logits": layer(x)}), (x,), {}, "returns no loss.*'loss'"),
    "nothing returned": (Written(lambda layer, x: (layer, x)[2:]), (x,), {}, "returns no loss"),
    "detached": (Written(lambda layer, x: layer(x).sum().detach()), (x,), {}, "depends on nothing that requires"),
    "frozen": (Written(lambda layer, x: layer(x).sum()).requires_grad_(False), (x,), {}, "no parameter requires"),
    "not a tensor": (Written(lambda layer, x: (layer(x).sum(), 3)), (x,), {}, "returns a int as 'output.1'"),
    "unknown input": (total, (x,), {"input_gradients": ["y"]}, "input_gradients names 'y'.*'x'"),
    "integer input": (
        Written(lambda layer, x: layer(x).sum(), nn.Embedding(3, 2)), (ids,), {"input_gradients": ["x"]},
        "there are none",
    ),
    "sparse": (
        Written(lambda layer, x: layer(x).sum(), nn.Embedding(3, 2, sparse=True)), (ids,), {},
        "gradient of 'layer.weight' is sparse",
    ),
    "branch on a size": (
        Written(lambda layer, x: layer(x).sum() if x.shape[0] > 3 else x.sum()), (x,), batch("x"),
        r"sizes that are dynamic: x.shape\[0\] > 3",
    ),
    "equal sizes with two names": (Pair(), (x, x), batch("a", "b"), r"Eq\(a.shape\[0\], b.shape\[0\]\).*one name"),
    "size with a limit": (
        Written(lambda layer, x: layer(x + torch.ones(9, 5)[: x.shape[0]]).sum()), (x,), batch("x"),
        r"x.shape\[0\] <= 9 was assumed.*max=",
    ),
    "branch on a value": (
        Written(lambda layer, x: layer(x).sum() if x.sum() > 3 else x.sum()), (x,), {}, "torch .* cannot trace it",
    ),
    "size that the module fixes": (
        Written(lambda layer, x: layer(x.reshape(4, 5)).sum()), (x,), batch("x"),
        "cannot trace it|sizes that are dynamic",
    ),
    "size that a constant has": (
        Written(lambda layer, x: layer(x + torch.ones(4, 5)).sum()), (x,), batch("x"), r"Eq\(x.shape\[0\], 4\)",
    ),
    "dynamic_shapes of no argument": (total, (x,), batch("y"), "dynamic_shapes names 'y'; the arguments are 'x'"),
    "dynamic_shapes of other length": (total, (x,), {"dynamic_shapes": (None, None)}, "has 2 entries.*'x'"),
    "dynamic_shapes of other type": (total, (x,), {"dynamic_shapes": 3}, "dynamic_shapes is of type int"),
    "dynamic_shapes of other form": (total, (x,), {"dynamic_shapes": {"x": "batch"}}, "'batch' for input 'x'"),
    "dynamic axis out of range": (total, (x,), {"dynamic_shapes": {"x": {2: "a"}}}, "axis 2 for input 'x'.* 2 axes"),
    "dynamic size of 1": (total, (x[:1],), batch("x"), "axis 0 of 'x' is dynamic and has size 1.*2 or more"),
    "name of a size": (total, (x,), {"dynamic_shapes": {"x": {0: "the batch"}}}, "'the batch'; it must be an ident"),
    "lazy": (modules.Cubes(nn.LazyLinear(3)), (x,), {}, r"cannot trace it: .* uninitialized parameter.*[^.]\.$"),
    "no module": (len, (x,), {}, "of type builtin_function_or_method"),
    "args": (total, x, {}, "args is of type Tensor"),
    "other arguments": (total, (x, x), {}, r"do not fit forward\(x"),
    "one name": (Named(), (x,), {}, "'x' names both an argument"),
    "an output's name": (Loss(), (x,), {}, "'loss' names an output and another value"),
    "a gradient's name": (
        Written(lambda layer, x: {"loss": layer(x).sum(), "layer.bias.grad": x}), (x,), {},
        "'layer.bias.grad' names an output and another value",
    ),
    "no tensors": (Nothing(), (), {}, "no tensor"),
    "wrong translation": (
        Written(lambda layer, x: layer(x)[torch.ones(2, dtype=torch.int32)].sum()), (x,), {},
        r"Written: torch .* writes it as ONNX that is not valid: .*int32",
    ),
    "no translation": (
        modules.Cubes(nn.Conv1d(4, 2, 3)), (x,), {}, "cannot write it as ONNX.*convolution_backward",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    module, args, options, message = REFUSED[name]
    with pytest.raises(lnbp_onnx.InvalidModelError, match=f"(?s){message}"):
        export_joint(module, args, tmp_path / "joint.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("nothing", [None, (), {}])
def test_refused_no_output(nothing: Any) -> None:
    with pytest.raises(lnbp_onnx.InvalidModelError, match="forward returns no tensor"):
        export(Written(lambda *_: nothing), (x,))


def test_refused_output_names() -> None:
    with pytest.raises(lnbp_onnx.InvalidModelError, match="2 names and forward returns 1"):
        export(nn.Linear(5, 3), (x,), output_names=["a", "b"])
    with pytest.raises(lnbp_onnx.InvalidModelError, match="'a' names an output and another"):
        export(Written(lambda layer, x: (layer(x), x)), (x,), output_names=["a", "a"])
    with pytest.raises(lnbp_onnx.InvalidModelError, match="'input' names an output and another"):
        export(nn.Linear(5, 3), (x,), output_names=["input"])


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("torch", r"needs the packages torch and onnxscript \(pip install 'lnbp-onnx\[torch\]'\)"),
        ("onnxscript", r"needs the packages torch and onnxscript"),
        ("torch.fx.experimental.proxy_tensor", rf"torch {torch.__version__.split('+')[0]}\S* lacks.*proxy_tensor"),
    ],
)
def test_missing_packages(missing: str, message: str) -> None:
    code = f"import sys, torch; sys.modules[{missing!r}] = None; import lnbp_onnx.interop.torch"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert re.search(f"ImportError: .*{message}", run.stderr.splitlines()[-1]), run.stderr


def test_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    blocks = (ROOT / "docs" / "pytorch.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block.split("```")[0], "pytorch.md", "exec"), namespace)
