# SPDX-License-Identifier: Apache-2.0
"""Exported torch modules against torch's autograd; runs where torch is installed, which CI sees to."""

import functools
import itertools
import re
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from documentation import python_blocks
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sessions import session_options

import lnbp_onnx
from lnbp_onnx.graphs.protos import graph_nodes

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch_modules as modules  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.modules.module import register_module_full_backward_hook  # noqa: E402
from torch_modules import Written  # noqa: E402
from torch_runs import MARKS, arrays, assert_close, autograd, decomposed, native, relative_errors  # noqa: E402

from lnbp_onnx.interop.torch import export, export_joint, translation_table  # noqa: E402

pytestmark = MARKS


WAYS = pytest.mark.parametrize("run", [native, decomposed])


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
            with torch.random.fork_rng():  # what a test draws does not depend on whether it is the first of its case
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


@pytest.mark.parametrize("name", ["encoder", "gpt with a tied weight"])
def test_nothing_is_left_over(name: str, exported: Any) -> None:
    model = exported(name)[1]
    nodes = ir.from_proto(model).graph.all_nodes()
    assert all(any(each.uses() or each.is_graph_output() for each in node.outputs) for node in nodes)
    graph = model.graph
    assert not [node for node in graph.node if node.op_type == "Identity"]
    expressions = [(node.op_type, *node.input, *map(str, node.attribute)) for node in graph.node]
    assert len(set(expressions)) == len(expressions)
    inputs = {each.name for each in graph.input}
    constants = [each for each in graph.initializer if each.name not in inputs]
    values = {(each.data_type, *each.dims, numpy_helper.to_array(each).tobytes()) for each in constants}
    assert len(values) == len(constants)


def test_names_of_modules(exported: Any) -> None:
    graph = exported("encoder")[1].graph
    for op_type in ("LayerNormalization", "LayerNormBackprop"):
        names = {node.name: node.metadata_props for node in graph.node if node.op_type == op_type}
        assert names.keys() == {f"layer.norm1/{op_type}", f"layer.norm2/{op_type}"}
        assert {each.value for (each,) in names.values()} == {"layer.norm1", "layer.norm2"}


def test_names_of_modules_with_constants(forces: Any) -> None:
    """Two norms of one value, too, whose constants are one in the model."""
    norms = [node.name for node in forces[1].graph.node if node.op_type in ("LayerNormalization", "LayerNormBackprop")]
    assert sorted(norms) == ["energy.1/LayerNormBackprop", "energy.1/LayerNormalization"]
    module = modules.Cubes(nn.Linear(5, 8), nn.LayerNorm(8), nn.SiLU(), nn.LayerNorm(8)).requires_grad_(False)
    model = export_joint(module, (torch.randn(2, 5),), input_gradients=["x"])
    norms = [node.name for node in model.graph.node if node.op_type == "LayerNormBackprop"]
    assert sorted(norms) == ["layers.1/LayerNormBackprop", "layers.3/LayerNormBackprop"]


def test_what_is_said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (torch.randn(4, 5),)
    monkeypatch.setattr("lnbp_onnx.interop.torch_terminal.SECONDS", 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = export_joint(modules.narrow(), arguments)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # as the documentation has it
    lnbp_onnx.inference_session(model, sess_options=options).run(None, {"x": arguments[0].numpy()})
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("lnbp_onnx.interop.torch_terminal.SECONDS", 0)
    export_joint(modules.narrow(), arguments)
    output, said = capfd.readouterr()
    assert not output
    assert said.endswith("Exporting Cubes: writing it as ONNX\nExporting Cubes: comparing the model with the module\n")


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


def test_bfloat16_element_by_element() -> None:
    """As distances of tokens in a model of floats: ONNX Runtime computes it, by the same roundings."""

    def forward(layer: nn.Module, x: Any) -> Any:
        slopes = torch.tensor([0.3, 0.7, 1.1]).bfloat16()
        distances = torch.arange(x.shape[0])[:, None]
        bias = (-slopes * distances + slopes / 3 - layer.bias.detach().bfloat16()).unsqueeze(1).expand(-1, 2, -1)
        return modules.cubes(layer(x).unsqueeze(1) + bias.float())

    module, arguments = Written(forward), {"x": torch.randn(400, 5)}
    model = export_joint(module, (torch.randn(4, 5),), dynamic_shapes={"x": {0: "length"}})
    assert_close(native(model, arrays(arguments)), autograd(module, arguments))
    assert not torch.equal(
        module(**arguments), Written(forward, module.layer.double())(arguments["x"].double()).float()
    )


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


def test_what_is_no_tensor_is_left_out() -> None:
    class Cache:
        pass

    def forward(layer: nn.Module, x: Any) -> Any:
        return {"loss": layer(x).sum(), "past": Cache(), "states": (layer(x), None, 3)}

    for exporting in (export_joint, export):
        with pytest.warns(UserWarning, match="returns 'past' of type Cache, 'states.2' of type int, which is no tens"):
            model = exporting(Written(forward), kwargs={"x": x})
        assert [each.name for each in model.graph.output][:2] == ["loss", "states.0"]


class Encoder(nn.Module):
    """What has no loss, and returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))

    def forward(self, x: Any) -> dict[str, Any]:
        return {"logits": self.layer(x), "mean": x.mean(0)}


class WithTheLoss(nn.Module):
    """The same with its loss, under the same names."""

    def __init__(self, encoder: Encoder, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.encoder, self.loss = encoder.layer, [encoder], loss

    def forward(self, x: Any, **inputs: Any) -> Any:
        return self.loss(self.encoder[0](x), **inputs)


@WAYS
def test_loss_of_outputs_and_further_inputs(run: Any) -> None:
    weights = torch.tensor([1.0, 2.0, 0.5])

    def loss(outputs: Any, target: Any, options: Any, scale: float) -> Any:
        losses = nn.functional.cross_entropy(outputs["logits"], target, weights, reduction="none")
        return scale * (losses * options["weight"]).mean() + outputs["mean"].pow(3).sum()

    def inputs(batch: int) -> tuple[dict[str, Any], dict[str, Any]]:
        x = torch.randn(batch, 5, requires_grad=True)
        return {"x": x}, {"target": torch.randint(0, 3, (batch,)), "weight": torch.rand(batch)}

    module = Encoder()
    arguments, others = inputs(4)
    batch_axis = {0: "batch"}
    model = export_joint(
        module,
        kwargs=arguments,
        loss=loss,
        loss_inputs={"target": others["target"], "options": {"weight": others["weight"]}, "scale": 0.5},
        dynamic_shapes={"x": batch_axis, "target": batch_axis, "options": {"weight": batch_axis}},
        input_gradients=["x"],
    )
    assert [each.name for each in model.graph.input][:3] == ["x", "target", "options.weight"]
    assert [each.name for each in model.graph.output][:3] == ["loss", "logits", "mean"]
    whole = WithTheLoss(module, lambda outputs, target, weight: loss(outputs, target, {"weight": weight}, 0.5))
    for batch in (4, 1, 6):
        arguments, others = inputs(batch)
        feeds = {**arrays(arguments), "target": others["target"].numpy(), "options.weight": others["weight"].numpy()}
        expected = autograd(whole, {**arguments, **others})
        logits = module(arguments["x"])["logits"].detach().numpy()
        assert_close(run(model, feeds), {**expected, "logits": logits})


def test_loss_that_is_a_module() -> None:
    layer = nn.Linear(5, 3)
    x, target = torch.randn(4, 5), torch.tensor([0, 2, -100, 1])
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))
    model = export_joint(layer, (x,), loss=loss, loss_inputs={"target": target})
    assert [each.name for each in model.graph.output] == ["loss", "output", "weight.grad", "bias.grad"]
    loss(layer(x), target).backward()
    found = native(model, {"input": x.numpy(), "target": target.numpy()})
    assert_close(found, {"weight.grad": layer.weight.grad.numpy(), "output": layer(x).detach().numpy()})


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


def test_size_with_a_least_value() -> None:
    """Below it nothing is left after a convolution, and one row is too few for statistics."""
    module = Written(
        lambda layer, x: nn.functional.batch_norm(layer(x).mT.flatten(0, 1), None, None, training=True).pow(3).sum(),
        nn.Conv1d(6, 3, 3, stride=2, bias=False),
    )
    shapes = {0: "batch", 2: torch.export.Dim("length", min=5)}
    model = export_joint(module, (), kwargs=vectors(4), dynamic_shapes={"x": shapes})
    for size in ((4, 6, 5), (1, 6, 9)):
        arguments = {"x": torch.randn(size)}
        assert_close(native(model, arrays(arguments)), autograd(module, arguments))


def test_length_of_a_tensor() -> None:
    """What ``len`` says of a tensor is dynamic, too, as in the contrastive loss of CLIP."""
    module = Written(
        lambda layer, x: nn.functional.cross_entropy(layer(x) @ x.T, torch.arange(len(x))), nn.LayerNorm(5)
    )
    model = export_joint(module, (x,), dynamic_shapes={"x": {0: "batch"}})
    for batch_size in (x.shape[0], 7):
        arguments = {"x": torch.randn(batch_size, 5)}
        assert_close(native(model, arrays(arguments)), autograd(module, arguments))


class Positions(nn.Module):
    """A row of positions for each example, of a table that is long enough, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.register_buffer("positions", torch.arange(9)[None])

    def forward(self, ids: Any, labels: Any) -> Any:
        types = torch.zeros_like(self.positions[:, : ids.shape[1]]).expand(ids.shape)
        return modules.cubes(self.embed(ids) + self.embed(types) + self.embed(labels))


def test_size_with_a_limit_of_two_inputs() -> None:
    module, ids = Positions(), torch.randint(0, 9, (2, 5))
    shape = {0: "batch", 1: torch.export.Dim("length", max=9)}
    model = export_joint(module, (ids, ids), dynamic_shapes={"ids": shape, "labels": shape})
    for size in ((2, 5), (3, 9), (1, 2)):
        arguments = {"ids": torch.randint(0, 9, size), "labels": torch.randint(0, 9, size)}
        assert_close(native(model, arrays(arguments)), autograd(module, arguments))


class Pairs(nn.Module):
    """The inner products of the differences of all pairs."""

    def forward(self, positions: Any) -> Any:
        differences = positions[:, :, None] - positions[:, None]
        return differences @ differences.transpose(-1, -2)


def shifted(layer: nn.Module, ids: Any) -> Any:
    """The labels of a decoder, moved by one."""
    labels = ids.new_zeros(ids.shape)
    labels[:, 1:] = ids[:, :-1].clone()
    labels[:, 0] = 2
    return layer(labels).sin().sum()


def test_sizes_that_decide_nothing() -> None:
    model = export(Pairs(), (torch.randn(2, 5, 3),), dynamic_shapes={"positions": {0: "batch", 1: "atoms"}})
    for size in ((2, 5), (1, 4), (3, 1)):
        positions = torch.randn(*size, 3)
        assert_close(native(model, {"positions": positions.numpy()}), {"output": Pairs()(positions).numpy()})
    module = Written(shifted, nn.Embedding(13, 4))
    model = export_joint(module, (torch.ones(2, 7, dtype=torch.int64),), dynamic_shapes={"x": {0: "batch", 1: "len"}})
    for size in ((2, 7), (1, 2), (3, 1)):
        arguments = {"x": torch.randint(0, 13, size)}
        assert_close(native(model, arrays(arguments)), autograd(module, arguments))


def test_module_that_leaves_out_a_cache_where_it_is_exported() -> None:
    cached = functools.lru_cache(lambda _: 1.0)

    def forward(layer: nn.Module, x: Any) -> Any:
        return layer(x).sum() * (1.0 if torch.compiler.is_exporting() else cached(x.shape[0]))

    export_joint(Written(forward), (x,), dynamic_shapes=batch("x")["dynamic_shapes"])
    assert not torch.compiler.is_exporting()


def test_compiled_module() -> None:
    module, arguments = (
        Written(lambda layer, x: modules.cubes(layer(x)), torch.compile(nn.Linear(5, 3), backend="eager")),
        {"x": x},
    )
    assert_close(native(export_joint(module, (x,)), arrays(arguments)), autograd(module, arguments))


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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "path is '', which names no file"),
        ("models/", "path is 'models/', which names no file"),
        ("folder", "path is .*folder, which is a folder; give the name of a file"),
        (Path("missing/joint.onnx"), "path is missing/joint.onnx, and .*/missing is no folder; make it first"),
        ("read-only.onnx/joint.onnx", "read-only.onnx is no folder"),
        ("read-only.onnx", "path is read-only.onnx, which is read-only"),
        ("n\0l", r"path is 'n\\x00l', which cannot be written: .*null"),
        (300 * "n", "which cannot be written: .*too long"),
        (3, "path is of type int; it must be a str, a Path or None"),
    ],
)
def test_refused_path(path: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the export: of a module, there is none yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "read-only.onnx").touch(0o444)
    for exporting in (export_joint, export):
        with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
            exporting(None, (), path)
    assert {each.name for each in tmp_path.iterdir()} == {"folder", "read-only.onnx"}


@pytest.mark.parametrize("check", ["no", 0, None])
def test_refused_check(check: Any) -> None:
    for exporting in (export_joint, export):
        with pytest.raises(lnbp_onnx.InvalidModelError, match=f"check is {check!r}; it must be True or False"):
            exporting(None, (), check=check)


def test_written_to_a_file_of_the_name_of_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = export(nn.LayerNorm(5), (torch.randn(3, 5),), "-")
    assert onnx.load(tmp_path / "-") == model


def test_external_data_of_a_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lnbp_onnx.files.model_io.LARGEST_PROTO", 10_000)
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


def test_hooks_that_a_module_registers_itself() -> None:
    """Where it is first called, and says so in an attribute, as models of transformers do that record hidden states."""

    def forward(layer: nn.Module, x: Any) -> Any:
        if not getattr(layer, "is_hooked", False):
            layer.register_forward_hook(lambda *_: calls.append(0))
            layer.is_hooked = True
        calls.clear()
        return layer(x).pow(3).mean() * len(calls)

    calls: list[int] = []
    module, arguments = Written(forward), {"x": torch.randn(4, 5)}
    model = export_joint(module, (), kwargs=arguments)
    assert not module.layer._forward_hooks
    assert_close(native(model, arrays(arguments)), autograd(module, arguments))


def test_a_module_with_two_names() -> None:
    norm = nn.LayerNorm(5)
    module = modules.Cubes(norm, nn.Linear(5, 5), norm)
    before = dict(module.named_parameters())
    arguments = {"x": torch.randn(4, 5)}
    model = export_joint(module, (), kwargs=arguments)
    assert all(each is before[name] for name, each in module.named_parameters())
    assert_close(native(model, arrays(arguments)), autograd(module, arguments))


@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad")
@pytest.mark.filterwarnings("ignore:.*Full backward hook is firing when gradients are computed with respect to module")
@pytest.mark.parametrize("make", modules.BACKWARD_PASSES, ids=lambda make: make.__name__)
def test_backward_pass(make: Callable[[], nn.Module]) -> None:
    """With other parameters than those of the export: none is a constant of the model."""
    module, arguments = make(), {"x": torch.randn(4, 5)}
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: (each.grad, each.requires_grad, each._version) for name, each in module.named_parameters()}
    model = export_joint(module, (), kwargs=arguments)
    assert before == {name: (each.grad, each.requires_grad, each._version) for name, each in module.named_parameters()}
    assert all(each.grad is None for part in getattr(module, "teacher", []) for each in part.parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    feeds = {**arrays(dict(module.named_parameters())), **arrays(arguments)}
    feeds = {name: value.copy() for name, value in feeds.items()}
    expected = autograd(module, arguments)
    found = native(model, feeds)
    assert_close(found, {name: each for name, each in expected.items() if name in found})


def test_where_torch_looks_for_nan() -> None:
    module, arguments = modules.mlp(), vectors(2)
    with torch.autograd.set_detect_anomaly(True):
        model = export_joint(module, (), kwargs=arguments)
    assert_close(native(model, arrays(arguments)), autograd(module, arguments))


def test_hook_that_reads_a_number() -> None:
    """One that takes part in the computation is computed from what the model is fed, and prints can be left in."""
    seen: list[Any] = []

    def hook(gradient: Any) -> Any:
        seen.append(gradient.sum().item())
        return gradient * gradient.square().sum().item()

    module, arguments = Written(lambda layer, x: modules.cubes(layer(x))), {"x": torch.randn(4, 5)}
    module.layer.weight.register_hook(hook)
    model = export_joint(module, (), kwargs=arguments)
    assert [isinstance(each, float) for each in seen] == [False, True]
    arguments = {"x": torch.randn(4, 5)}
    assert_close(native(model, arrays(arguments)), autograd(module, arguments))


def test_refused_hook_on_all_modules() -> None:
    handle = register_module_full_backward_hook(lambda _, inputs, __: inputs)
    try:
        with pytest.raises(lnbp_onnx.InvalidModelError, match="hooks on all modules are registered"):
            export_joint(modules.mlp(), (), kwargs=vectors(2))
    finally:
        handle.remove()


def with_hook_on_a_node(module: nn.Module) -> nn.Module:
    """What no one can see from outside: the gradient of the first bias is doubled on its way to the parameter."""
    module.node = torch.autograd.graph.get_gradient_edge(module.layer[0].bias).node
    module.node.register_prehook(lambda gradients: (2 * gradients[0],))
    return module


def counting() -> nn.Module:
    calls = itertools.count(1)
    return Written(lambda layer, x: layer(x).pow(3).mean() * next(calls))


def test_check(tmp_path: Path) -> None:
    path, x = tmp_path / "joint.onnx", torch.randn(4, 5)
    module = with_hook_on_a_node(Written(lambda layer, x: layer(x).pow(3).mean(), modules.three()))
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"else than the module does: 'layer.0.bias.grad' differs by"):
        export_joint(module, (x,), path)
    assert not list(tmp_path.iterdir())
    for exporting in (export_joint, export):
        with pytest.raises(lnbp_onnx.InvalidModelError, match=r"native kernel something.*check=False"):
            exporting(counting(), (x,), path)
    assert not list(tmp_path.iterdir())
    export_joint(module, (x,), path, check=False)
    export(counting(), (x,), check=False)
    assert path.exists()


def test_check_of_bfloat16() -> None:
    module = with_hook_on_a_node(Written(lambda layer, x: layer(x).pow(3).mean(), modules.three()).bfloat16())
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"in onnx.reference something.*'layer.0.bias.grad' differs"):
        export_joint(module, (torch.randn(4, 5).bfloat16(),))


@pytest.mark.parametrize(("dtype", "constant"), [(torch.float32, 1e8), (torch.bfloat16, 100.0)])
def test_check_of_gradients_far_below_the_loss(dtype: Any, constant: float) -> None:
    module = Written(lambda layer, x: layer(x).pow(3).mean() + constant, modules.three())
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"'layer.0.bias.grad' differs"):
        export_joint(with_hook_on_a_node(module.to(dtype)), (torch.randn(4, 5).to(dtype),))


def test_check_where_nothing_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lnbp_onnx.interop.torch_check._LARGEST_FOR_EVALUATOR", 10)
    with pytest.warns(UserWarning, match="was not compared with the module: .*onnxruntime cannot load.*evaluator"):
        export_joint(modules.narrow().bfloat16(), (torch.randn(4, 5).bfloat16(),))


def test_check_knows_rounding() -> None:
    """Of numbers that would be 0, two programs give different noise; where rounding decides, either may be right."""

    def forward(layer: nn.Module, x: Any) -> Any:
        weights = layer[0](x).softmax(0)  # which the bias does not change
        normalised = layer[1](weights)
        tied = torch.stack([x.flatten() @ x.flatten(), x.flatten().double() @ x.flatten().double()]).argmax()
        return {"loss": normalised.sum() + weights.pow(3).sum() * 0, "largest": tied}

    export_joint(Written(forward, nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))), (torch.randn(400, 5),))
    export(Written(lambda layer, x: layer(x).sum(), nn.LayerNorm(5)), (torch.randn(400, 5),))


def test_check_leaves_all_as_it_was() -> None:
    """A hook of the user's is called with a real gradient just once."""
    seen: list[Any] = []
    module, x = modules.Cubes(nn.Linear(5, 7), nn.BatchNorm1d(7).eval(), nn.Linear(7, 4)), torch.randn(4, 5)
    module.layers[0].weight.register_hook(lambda gradient: seen.append(type(gradient)))
    for name, parameter in module.named_parameters():
        parameter.grad = None if name.endswith("bias") else torch.ones_like(parameter)
    x.requires_grad_()
    tensors = [*module.parameters(), *module.buffers(), x]
    values, gradients = [each.detach().clone() for each in tensors], [each.grad for each in tensors]
    versions, modes = [each._version for each in tensors], [each.training for each in module.modules()]
    hooks, state = list(module.layers[0].weight._backward_hooks), torch.random.get_rng_state()
    export_joint(module, (x,), input_gradients=["x"])
    assert all(torch.equal(each, value) for each, value in zip(tensors, values, strict=True))
    assert all(each.grad is gradient for each, gradient in zip(tensors, gradients, strict=True))
    assert versions == [each._version for each in tensors]
    assert modes == [each.training for each in module.modules()]
    assert hooks == list(module.layers[0].weight._backward_hooks)
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(seen) == 2
    assert seen.count(torch.Tensor) == 1


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


def hooked(hook: Callable[[Any], Any]) -> nn.Module:
    module = Written(lambda layer, x: layer(x).sum())
    module.layer.weight.register_hook(hook)
    return module


def accumulating() -> nn.Module:
    module = Written(lambda layer, x: layer(x).sum())
    module.layer.weight.register_post_accumulate_grad_hook(lambda parameter: parameter.grad.mul_(2))
    return module


def past_the_module(*, followed: bool) -> nn.Module:
    """A module that reaches a parameter of its own by another way."""
    layer = nn.Linear(5, 3)
    bias = layer.bias
    return Written(lambda layer, x: layer(x).sum() + (bias if followed else bias.detach()).sum(), layer)


def thawed(layer: nn.Module, x: Any) -> Any:
    layer.weight.requires_grad_()
    return layer(x).sum()


def partly_frozen() -> nn.Module:
    module = Written(thawed)
    module.layer.weight.requires_grad_(False)
    return module


def test_indices_that_repeat() -> None:
    """Whatever the number of threads, no addition is lost, and the result is the same each time."""
    module, arguments = modules.Indexed(5, 256), {"ids": torch.randint(0, 5, (4, 128))}
    model = export_joint(module, (), kwargs=arguments, dynamic_shapes={"ids": {0: "batch"}})
    reductions = {
        helper.get_attribute_value(attribute)
        for node in graph_nodes(model.graph.node)
        if node.op_type == "ScatterND"
        for attribute in node.attribute
        if attribute.name == "reduction"
    }
    assert reductions <= {b"none"}
    expected = autograd(module.double(), arguments)
    options = session_options()
    options.intra_op_num_threads = 2
    for session in (
        lnbp_onnx.inference_session(model, sess_options=options),
        onnxruntime.InferenceSession(lnbp_onnx.decompose(model).SerializeToString(), options),
    ):
        names = [each.name for each in session.get_outputs()]
        runs = [dict(zip(names, session.run(None, arrays(arguments)), strict=True)) for _ in range(5)]
        assert_close(runs[0], expected)
        for run in runs[1:]:
            assert all(np.array_equal(run[name], runs[0][name]) for name in names)


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
REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "largest norm": (
        Written(lambda layer, x: layer(x).sum(), nn.Embedding(3, 2, max_norm=0.1)), (ids,), {},
        "changes 'layer.weight' in place",
    ),
    "hook after accumulation": (accumulating(), (x,), {}, "'layer.weight' has a hook that runs after.*register_hook"),
    "parameter by another way": (past_the_module(followed=True), (x,), {}, "uses 'layer.bias' past the attribute"),
    "value by another way": (past_the_module(followed=False), (x,), {}, "uses 'layer.bias' past the attribute"),
    "thawed": (partly_frozen(), (x,), {}, r"makes 'layer.weight' require a gradient.*requires_grad_\(\) before"),
    "wrapper": (nn.DataParallel(nn.Linear(5, 3)), (x,), {}, r"it is a DataParallel.*\.module"),
    "changed input": (Written(lambda layer, x: layer(x.mul_(2)).sum()), (x,), {}, "changes 'x' in place"),
    "not a scalar": (nn.Linear(5, 3), (x,), {}, r"loss has shape \[4, 3\].*mean\(\)"),
    "no loss": (Written(lambda layer, x: {"logits": layer(x)}), (x,), {}, "returns no loss.*'loss'.*as loss"),
    "nothing returned": (Written(lambda layer, x: (layer, x)[2:]), (x,), {}, "returns no loss"),
    "loss_inputs without a loss": (total, (x,), {"loss_inputs": {"y": x}}, "loss_inputs are given and no loss"),
    "loss that is no function": (total, (x,), {"loss": 3}, "loss is of type int; it must be a function"),
    "loss that returns a number": (total, (x,), {"loss": lambda _: 3.0}, "loss returns a float; it must return a scal"),
    "loss that returns a vector": (
        Written(lambda layer, x: layer(x)), (x,), {"loss": lambda y: y.sum(0)}, r"the loss has shape \[3\]",
    ),
    "loss that is trained": (total, (x,), {"loss": nn.Linear(3, 1)}, "loss is a Linear with parameters.*part of the"),
    "loss_inputs of other type": (
        total, (x,), {"loss": lambda y: y, "loss_inputs": (x,)}, "loss_inputs is of type tuple; it must be a dict",
    ),
    "loss_inputs of an argument's name": (
        total, (x,), {"loss": lambda y, **_: y, "loss_inputs": {"x": x}}, "loss_inputs names 'x', which is an argument",
    ),
    "two losses": (
        Written(lambda layer, x: {"loss": layer(x).sum()}), (x,), {"loss": lambda y: y["loss"]},
        "'loss' names an output and another",
    ),
    "detached": (Written(lambda layer, x: layer(x).sum().detach()), (x,), {}, "depends on nothing that requires"),
    "frozen": (Written(lambda layer, x: layer(x).sum()).requires_grad_(False), (x,), {}, "no parameter requires"),
    "not a tensor": (Written(lambda layer, x: (3, layer(x).sum())), (x,), {}, "returns no loss"),
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
        Written(lambda layer, x: layer(x).sum() if x.sum() > 3 else x.sum()),
        (x,), {}, r"takes a number.* if, at .*test_interop_torch.py:[0-9]+, on which.*torch.where",
    ),
    "hook that branches on a number": (
        hooked(lambda gradient: gradient / 2 if gradient.norm().item() > 1 else gradient), (x,), {},
        r"takes a number.*\.item\(\).* at .*test_interop_torch.py:[0-9]+, .*torch.where, clamp",
    ),
    "hook that needs a number": (
        hooked(lambda gradient: gradient * float(gradient.norm())), (x,), {}, r"takes a number.*float\(\).*torch.where",
    ),
    "hook that fails": (
        hooked(lambda _: 1 / 0), (x,), {},
        r"cannot trace it, at .*test_interop_torch.py:[0-9]+: ZeroDivisionError: division by zero \(see whether loss",
    ),
    "hook in numpy": (
        hooked(lambda gradient: torch.from_numpy(2 * gradient.numpy())), (x,), {},
        r"cannot trace it, at .*: .*numpy.*torch operations",
    ),
    "types that differ": (Written(lambda layer, x: layer(x.double()).sum()), (x,), {}, r"not valid.*give them one"),
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
    "lazy": (modules.Cubes(nn.LazyLinear(3)), (x,), {}, r"cannot trace it.*: .* uninitialized parameter.*[^.]\.$"),
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
        r"Written: torch .* writes it as ONNX that is not valid: .*int32.*give them one",
    ),
    "no translation": (
        Written(lambda layer, x: torch.linalg.solve(torch.eye(4), layer(x)).sum()), (x,), {},
        "has no ONNX for _linalg_solve_ex, of its forward.*as torch.where",
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
        ("torch", r"needs the packages torch and onnxscript \(run pip install '\.\[torch\]' in the source folder"),
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
    blocks = python_blocks("docs/pytorch.md")
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, "pytorch.md", "exec"), namespace)
