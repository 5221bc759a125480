# SPDX-License-Identifier: Apache-2.0
"""Exported modules that update buffers, as batch norms do in training; needs torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lnbp_onnx

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import Tensor, nn  # noqa: E402
from torch.nn.utils.parametrizations import spectral_norm  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_modules import Cubes, Written, cubes  # noqa: E402
from torch_runs import MARKS, arrays, assert_close, autograd, decomposed, native  # noqa: E402

from lnbp_onnx.interop.torch import export, export_joint  # noqa: E402

pytestmark = MARKS


def batch_norms() -> Cubes:
    block = [nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU()]
    untracked = nn.BatchNorm2d(4, track_running_stats=False)
    frozen = nn.BatchNorm2d(4).eval()
    return Cubes(*block, untracked, nn.SiLU(), frozen, nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3))


@pytest.mark.parametrize("run", [native, decomposed])
def test_training_steps(run: Any) -> None:
    """Parameters and running statistics that go from run to run end where torch's do."""
    module = batch_norms()
    before = {name: (each, each.clone()) for name, each in module.named_buffers()}
    model = export_joint(module, (torch.randn(3, 2, 6, 6),), dynamic_shapes={"x": {0: "batch"}})
    assert all(each is before[name][0] for name, each in module.named_buffers())
    assert all(torch.equal(each, value) for each, value in before.values())
    tracked = [f"layers.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert [each.name for each in model.graph.input][-3:] == tracked
    assert [each.name for each in model.graph.output][-3:] == [f"{name}.updated" for name in tracked]
    state = {name: each.detach().numpy().copy() for name, each in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for batch in (3, 1, 8):
        arguments = {"x": torch.randn(batch, 2, 6, 6)}
        found = run(model, {**arrays(arguments), **state})  # at first with the statistics of the export
        expected = autograd(module, arguments)
        assert_close(found, {**expected, **{f"{name}.updated": module.get_buffer(name).numpy() for name in tracked}})
        optimizer.step()
        for name, _ in module.named_parameters():
            state[name] = state[name] - np.float32(0.1) * found[f"{name}.grad"]
        state |= {name: found[f"{name}.updated"] for name in tracked}
    assert state["layers.1.num_batches_tracked"] == 3


def test_statistics_of_a_forward_pass() -> None:
    module = nn.BatchNorm1d(5)
    model = export(module, (torch.randn(4, 5),), dynamic_shapes={"input": {0: "batch"}})
    names = ["running_mean", "running_var", "num_batches_tracked"]
    assert [each.name for each in model.graph.input] == ["input", *names]  # the parameters are constants
    state: dict[str, Any] = {}
    for batch in (4, 7):
        x = torch.randn(batch, 5)
        found = native(model, {"input": x.numpy(), **state})
        state = {name: found[f"{name}.updated"] for name in names}
        assert_close({"output": found["output"]}, {"output": module(x).detach().numpy()})
        assert_close(state, {name: each.numpy() for name, each in module.named_buffers()})


def with_buffer(shape: tuple[int, ...], forward: Callable[[nn.Module, Any], Any]) -> Written:
    module = Written(forward)
    module.layer.register_buffer("kept", torch.randn(shape))
    return module


def moving_average(layer: nn.Module, x: Tensor) -> Tensor:
    """Which takes part in the loss, and is another tensor afterwards."""
    y = layer(x)
    average = 0.9 * layer.kept + 0.1 * y.mean(0)
    layer.kept = average.detach()
    return cubes(y - average)


def history(layer: nn.Module, x: Tensor) -> Tensor:
    """Changed through a view, read, and changed again."""
    y = layer(x)
    layer.kept[0] = y.detach().mean(0)
    loss = cubes(y + layer.kept.sum(0))
    layer.kept.copy_(layer.kept.roll(1, 0))
    return loss


def scale_of_gradients(layer: nn.Module, x: Tensor) -> Tensor:
    """Changed in the backward pass, by a hook."""

    def hook(gradient: Tensor) -> Tensor:
        layer.kept.mul_(0.9).add_(gradient.abs().sum(0))
        return gradient / (1 + layer.kept.abs())

    y = layer(x)
    y.register_hook(hook)
    return cubes(y)


def last(layer: nn.Module, x: Tensor) -> Tensor:
    layer.kept = x
    return cubes(layer(x))


def of_layers(*layers: nn.Module, forward: Callable[[nn.Module, Any], Any] = lambda layer, x: layer(x)) -> Written:
    layer = nn.Sequential(*layers)
    return Written(lambda layer, x: cubes(forward(layer, x)), layer)


def normalised_twice() -> Written:
    norm = nn.BatchNorm1d(7)
    return of_layers(nn.Linear(5, 7, bias=False), norm, nn.SiLU(), norm, nn.Linear(7, 3))


def checkpointed() -> Written:
    """The second forward pass of a checkpoint updates the statistics again."""
    layers = nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.Linear(7, 3)
    return of_layers(*layers, forward=lambda layer, x: checkpoint(layer, x, use_reentrant=False))


UPDATES: dict[str, Callable[[], Written]] = {
    "moving average": lambda: with_buffer((3,), moving_average),
    "history": lambda: with_buffer((4, 3), history),
    "scale of gradients": lambda: with_buffer((3,), scale_of_gradients),
    "last input": lambda: with_buffer((4, 5), last),
    "spectral norm": lambda: of_layers(spectral_norm(nn.Linear(5, 3))),
    "instance norm": lambda: of_layers(nn.InstanceNorm1d(4, track_running_stats=True), nn.Linear(5, 3)),
    "one norm at two places": normalised_twice,
    "checkpoint": checkpointed,
}


@pytest.mark.parametrize("name", UPDATES)
def test_updates(name: str) -> None:
    module = UPDATES[name]()
    before = {name: (each, each.clone()) for name, each in module.named_buffers()}
    model = export_joint(module, (torch.randn(4, 5),))
    assert all(each is before[name][0] for name, each in module.named_buffers())
    assert all(torch.equal(each, value) for each, value in before.values())
    updated = [each.name.removesuffix(".updated") for each in model.graph.output if each.name.endswith(".updated")]
    assert updated
    feeds = {name: module.get_buffer(name).numpy().copy() for name in updated}
    for _ in range(2):
        arguments = {"x": torch.randn(4, 5)}
        found = native(model, {**arrays(arguments), **feeds})
        expected = autograd(module, arguments)
        feeds = {name: found[f"{name}.updated"] for name in updated}
        assert_close(found, expected)
        assert_close(feeds, {name: module.get_buffer(name).detach().numpy() for name in updated})


def test_check_compares_the_updated() -> None:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        layer.kept.add_(1 if torch.compiler.is_exporting() else 2)
        return cubes(layer(x))

    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"the module does: 'layer\.kept\.updated' differs by 1"):
        export_joint(with_buffer((3,), forward), (torch.randn(4, 5),))


def replaced(value: Callable[[nn.Module], Any]) -> Callable[[nn.Module, Any], Any]:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        layer.kept = value(layer)
        return layer(x).sum()

    return forward


def counting(*, in_place: bool) -> Written:
    """A tensor that is no buffer."""

    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        layer.count = layer.count.add_(1) if in_place else layer.count + 1
        return (layer(x) * layer.count).sum()

    module = Written(forward)
    module.layer.count = torch.zeros(3)
    return module


def shared() -> Written:
    module = with_buffer((3,), replaced(lambda layer: layer.kept + 1))
    module.register_buffer("again", module.layer.kept)
    return module


def parameter(layer: nn.Module, x: Tensor) -> Tensor:
    layer.weight = nn.Parameter(layer.weight * 2)
    return layer(x).sum()


def named_as_the_update(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    layer.kept += 1
    return {"loss": layer(x).sum(), "layer.kept.updated": x}


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shape": (
        lambda: with_buffer((3,), replaced(lambda layer: layer.kept[:2])),
        r"replaces 'layer.kept', a tensor of shape \[3\] .* by a tensor of shape \[2\].*keep its shape",
    ),
    "type": (lambda: with_buffer((3,), replaced(lambda layer: layer.kept.half())), "by a tensor .* type torch.float16"),
    "nothing": (lambda: with_buffer((3,), replaced(lambda _: None)), "replaces 'layer.kept', .* by a NoneType"),
    "shared": (shared, "replaces 'layer.kept', which the module holds in several places"),
    "parameter": (lambda: Written(parameter), "replaces 'layer.weight', a parameter"),
    "in place": (lambda: counting(in_place=True), "changes a tensor in place, which is no buffer.*register_buffer"),
    "no buffer": (lambda: counting(in_place=False), "changes 'layer.count', which is no buffer.*register_buffer"),
    "an output's name": (lambda: with_buffer((3,), named_as_the_update), "'layer.kept.updated' names an output and an"),
    "cumulative average": (
        lambda: of_layers(nn.BatchNorm1d(5, momentum=None)), "takes a number from a tensor.*test_torch_state.py",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(lnbp_onnx.InvalidModelError, match=f"(?s){message}"):
        export_joint(make(), (torch.ones(4, 5),))
