# SPDX-License-Identifier: Apache-2.0
"""Exported random numbers: the backward pass has those of the forward pass; needs torch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from sessions import session_options

import lnbp_onnx

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_modules import Cubes, Written, cubes  # noqa: E402
from torch_runs import (  # noqa: E402
    MARKS,
    arrays,
    assert_close,
    autograd,
    decomposed,
    drawn_by,
    native,
    with_draws,
)

from lnbp_onnx.interop.torch import export, export_joint  # noqa: E402

pytestmark = MARKS

SHARE = 0.3


class Drawn(TorchFunctionMode):
    """Functions of torch with the given numbers in place of those that they would draw."""

    def __init__(self, numbers: list[Tensor]) -> None:
        super().__init__()
        following = iter(numbers)

        def dropout(x: Tensor, p: float, *_: Any, axes: int = 0, **__: Any) -> Tensor:
            kept = next(following) < 1 - p
            assert kept.shape == (x.shape[: x.dim() - axes] + (1,) * axes)
            return x * kept / (1 - p)

        self.functions: dict[Any, Callable[..., Any]] = {
            functional.dropout: dropout,
            functional.dropout2d: lambda *args, **options: dropout(*args, **options, axes=2),
            torch.rand: lambda *_: next(following),
            torch.randn_like: lambda _: next(following),
            Tensor.bernoulli_: lambda x, p: x.copy_(next(following) < p),
            Tensor.uniform_: lambda x, low, high: x.copy_(low + (high - low) * next(following)),
        }

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return self.functions.get(function, function)(*args, **(kwargs or {}))


class Noisy(nn.Module):
    """Channels and whole examples that are dropped, and noise that is added or multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 20, 1), nn.LayerNorm((20, 4, 3))
        self.scale = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.dropout2d(self.first(x), SHARE)
        each = (x.shape[0], 1, 1, 1)
        y = y * x.new_empty(each).bernoulli_(1 - SHARE).div_(1 - SHARE)
        y = y * (1 + torch.rand(each))
        y = y + self.scale.exp() * torch.randn_like(y)
        return cubes(self.norm(y + x.new_empty(3).uniform_(-1, 2)))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "dropout": (
        lambda: Cubes(nn.Linear(5, 40), nn.Dropout(SHARE), nn.LayerNorm(40), nn.Dropout(SHARE), nn.Linear(40, 3)),
        (5,),
        2,
    ),
    "noise": (Noisy, (2, 4, 3), 5),
}


@pytest.mark.parametrize("run", [native, decomposed])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_under_what_was_drawn(name: str, run: Any) -> None:
    make, shape, num_draws = MODULES[name]
    module = make()
    state = torch.random.get_rng_state()
    example = torch.ones(4, *shape)
    shown = with_draws(export_joint(module, (example,), dynamic_shapes={"x": {0: "batch"}}))
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(drawn_by(shown)) == num_draws
    for batch in (4, 1, 50):
        arguments = {"x": torch.randn(batch, *shape)}
        found = run(shown, arrays(arguments))
        with Drawn([torch.from_numpy(found[name]) for name in drawn_by(shown)]):
            expected = autograd(module.double(), {"x": arguments["x"].double()})
        module.float()
        assert_close(found, expected, 1e-4)  # the loss is a sum that may all but cancel


class Everything(nn.Module):
    """What is drawn in all ways that there are, of 20,000 numbers each."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "uniform": torch.rand_like(x),
            "normal": torch.randn(x.shape[0]),
            "double": torch.rand(x.shape[0], dtype=torch.double),
            "half": torch.rand(x.shape[0], dtype=torch.half),
            "bernoulli": torch.bernoulli(x * 0 + SHARE),
            "bernoulli_": torch.empty_like(x).bernoulli_(SHARE),
            "uniform_": torch.empty_like(x).uniform_(-1, 3),
            "normal_": torch.empty_like(x).normal_(2, 3),
            "of two": torch.normal(x * 0 + 2, 3.0),
            "exponential_": torch.empty_like(x).exponential_(4),
            "integers": torch.randint(-2, 5, (x.shape[0],)),
            "permutation": torch.randperm(x.shape[0]),
            "alpha": functional.alpha_dropout(x * 0 + 1, SHARE, training=True),
        }


MOMENTS = {
    **dict.fromkeys(("uniform", "double", "half"), (1 / 2, 1 / 12)),
    "normal": (0, 1),
    **dict.fromkeys(("bernoulli", "bernoulli_"), (SHARE, SHARE * (1 - SHARE))),
    "uniform_": (1, 4**2 / 12),
    **dict.fromkeys(("normal_", "of two"), (2, 9)),
    "exponential_": (1 / 4, 1 / 16),
    "integers": (1, (7**2 - 1) / 12),
}


@pytest.mark.parametrize("shapes", [None, {"x": {0: "length"}}], ids=["static", "dynamic"])
def test_statistics(shapes: Any) -> None:
    """Means and variances of 20,000 numbers, within five standard deviations; the seed makes them the same always."""
    size = 20_000
    x = np.zeros(size, np.float32)
    model = export(Everything(), (torch.from_numpy(x),), dynamic_shapes=shapes, seed=1)
    like = {node.op_type.endswith("Like") for node in model.graph.node if node.op_type.startswith("Random")}
    assert like == {shapes is not None}  # a constant of the shape would be as large as the numbers
    numbers = native(model, {"x": x})
    for name, (mean, variance) in MOMENTS.items():
        found = numbers[name].astype(np.float64)
        spread = np.sqrt(variance)
        np.testing.assert_allclose(found.mean(), mean, rtol=0, atol=5 * spread / np.sqrt(size), err_msg=name)
        np.testing.assert_allclose(found.var(), variance, rtol=0, atol=15 * variance / np.sqrt(size), err_msg=name)
    for name in ("uniform", "double", "half"):
        assert numbers[name].min() >= 0
        assert numbers[name].max() < 1
    assert np.isfinite(np.log(numbers["exponential_"])).all()
    assert set(numbers["integers"]) == set(range(-2, 5))
    np.testing.assert_array_equal(np.sort(numbers["permutation"]), np.arange(size))
    dropped, kept = np.unique(numbers["alpha"])
    assert dropped < 0 < kept
    independent = np.corrcoef([numbers[name] for name in MOMENTS])
    np.testing.assert_allclose(independent, np.eye(len(MOMENTS)), atol=5 / np.sqrt(size))


@pytest.fixture(scope="module")
def dropping() -> ModelProto:
    module = Cubes(nn.Linear(5, 6), nn.Dropout(0.5), nn.LayerNorm(6), nn.Dropout(0.5), nn.Linear(6, 3))
    return with_draws(export_joint(module, (torch.randn(1, 5),), seed=7))


def test_statistics_over_runs(dropping: ModelProto) -> None:
    """Each element is dropped in half of the runs, whether it was in the last one or not, or elsewhere."""
    session = lnbp_onnx.inference_session(dropping, sess_options=session_options())
    x, runs = np.ones((1, 5), np.float32), 2000
    names = drawn_by(dropping)
    masks = np.array([session.run(names, {"x": x}) for _ in range(runs)])[:, :, 0] < 0.5
    bound = 5 * 0.5 / np.sqrt(runs)
    np.testing.assert_allclose(masks.mean(0), 0.5, atol=bound)
    np.testing.assert_allclose((masks[1:] != masks[:-1]).mean(0), 0.5, atol=bound)
    np.testing.assert_allclose((masks[1:, 0] != masks[:-1, 1]).mean(0), 0.5, atol=bound)
    np.testing.assert_allclose((masks[:, 0] != masks[:, 1]).mean(0), 0.5, atol=bound)


def test_numbers_are_others_each_time() -> None:
    module = Cubes(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    model = export_joint(module, (torch.randn(4, 5),))
    x = np.ones((4, 5), np.float32)
    session = lnbp_onnx.inference_session(model, sess_options=session_options())
    assert len({float(session.run(["loss"], {"x": x})[0]) for _ in range(5)}) == 5


def test_seed() -> None:
    """In attention, too; a session starts anew, and goes on with other numbers."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    model = export_joint(Cubes(layer), (torch.randn(2, 3, 8),), seed=7)
    assert len(drawn_by(model)) == 4
    x = np.ones((2, 3, 8), np.float32)
    losses = []
    for _ in range(2):
        session = lnbp_onnx.inference_session(model, sess_options=session_options())
        losses.append([float(session.run(["loss"], {"x": x})[0]) for _ in range(2)])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_dropped_at_inference() -> None:
    """As for a sample of predictions."""
    model = export(nn.Sequential(nn.Dropout(0.5)), (torch.ones(2, 3),))
    (output,) = native(model, {"input": np.ones((2, 3), np.float32)}).values()
    assert set(np.unique(output)) <= {0, 2}


def noisy(layer: nn.Module, x: Tensor) -> Tensor:
    return functional.dropout(layer(x), SHARE).sin() + torch.rand(4, 3)


@pytest.mark.parametrize(
    ("forward", "num_draws"),
    [
        (lambda layer, x: checkpoint(lambda v: noisy(layer, v), x, use_reentrant=False) * torch.rand(4, 3), 3),
        (lambda layer, x: checkpoint(noisy, layer, x.clone().requires_grad_(), use_reentrant=True), 2),
        (lambda layer, x: (functional.dropout(layer(x)), noisy(layer, x))[1], 2),
        (lambda layer, x: functional.dropout(layer(x), 1.0) + layer(x), 0),
        (lambda layer, x: layer(x) * torch.rand([]) + torch.rand(4, 3).half(), 2),
    ],
    ids=["checkpoint", "reentrant checkpoint", "unused", "all dropped", "scalar and half"],
)
def test_checked(forward: Any, num_draws: int) -> None:
    """Against the module with what the model has drawn: else there is a warning, or a refusal."""
    model = export_joint(Written(lambda layer, x: cubes(forward(layer, x))), (torch.randn(4, 5),))
    assert len(drawn_by(model)) == num_draws


def test_check_finds_other_uses_of_what_was_drawn() -> None:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        drawn = torch.rand(4, 3)
        return cubes(layer(x) * (drawn if torch.compiler.is_exporting() else 1 - drawn))

    with pytest.raises(lnbp_onnx.InvalidModelError, match="something else than the module does"):
        export_joint(Written(forward), (torch.randn(4, 5),))


@pytest.mark.parametrize(
    ("forward", "options", "message"),
    [
        (
            lambda layer, x: layer(x)[torch.multinomial(x.exp(), 1)].sum(),
            {},
            r"draws random numbers with aten\.multinomial\.default, of which ONNX has none.*draw with rand, randn",
        ),
        (
            lambda layer, x: (layer(x) * torch.rand(4, 3, generator=torch.Generator())).sum(),
            {},
            r"with aten\.rand\.generator.*without generator=",
        ),
        (lambda layer, x: layer(x).sum() if torch.rand([]) < 0.5 else x.sum(), {}, "takes a number from a tensor"),
        (lambda layer, x: layer(x).sum(), {"seed": 1.5}, "seed is 1.5; it must be an int from 0 to 2147483647, or No"),
        (lambda layer, x: layer(x).sum(), {"seed": -1}, "seed is -1; it must be"),
    ],
)
def test_refused(forward: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
        export_joint(Written(forward), (torch.ones(4, 5),), **options)
