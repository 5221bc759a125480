# SPDX-License-Identifier: Apache-2.0
"""Gradients that torch's exporter has no ONNX for, exported and run; needs torch."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lnbp_onnx
from lnbp_onnx.running.runners import ReferenceRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_modules import Cubes, Written  # noqa: E402
from torch_runs import MARKS, arrays, assert_close, autograd, native  # noqa: E402

from lnbp_onnx.interop.torch import export, export_joint  # noqa: E402
from lnbp_onnx.interop.torch_gradients import WithExportableGradients, gradient_decompositions  # noqa: E402

pytestmark = MARKS


class Each(nn.Module):
    """Layers, each of which gets the input through a convolution; the sum of what they give."""

    def __init__(self, axes: int, *layers: nn.Module) -> None:
        super().__init__()
        self.first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](2, 4, 1)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.stack([layer(x).sin().pow(2).mean() for layer in self.layers]).sum()


def check(module: nn.Module, sizes: list[tuple[int, ...]], names: dict[int, str]) -> None:
    """Export for the first of `sizes`, and compare with autograd at all of them."""
    module.eval()
    model = export_joint(module, (torch.randn(sizes[0]),), dynamic_shapes={"x": names} if names else None)
    assert {node.domain for node in model.graph.node} <= {"", "lnbp"}
    for size in sizes:
        arguments = {"x": torch.randn(size)}
        expected = autograd(copy.deepcopy(module).double(), {"x": arguments["x"].double()})
        assert_close(native(model, arrays(arguments)), expected, 1e-4)  # sums of thousands of terms that cancel


class ChannelsLast(nn.Module):
    """A layer that gets its channels last in memory."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))


def test_pooling_and_resizing() -> None:
    layers = (
        nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d((3, 2)),
        ChannelsLast(nn.AdaptiveAvgPool2d(1)),
        nn.MaxPool2d(3, 2, 1, dilation=2),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=(9, 5), mode="bicubic", align_corners=True),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4),
    )
    names = {0: "batch", 2: "height", 3: "width"}
    check(Each(2, *layers), [(2, 2, 7, 8), (3, 2, 6, 5), (1, 2, 5, 9)], names)


def test_pooling_and_resizing_of_other_axes() -> None:
    layers = (
        nn.AvgPool3d(2, ceil_mode=True),
        nn.AdaptiveAvgPool3d((1, 2, 3)),
        nn.MaxPool3d(2),
        nn.Upsample(scale_factor=1.7, mode="trilinear"),
        nn.Upsample(size=(3, 4, 9), mode="nearest-exact"),
    )
    check(Each(3, *layers), [(2, 2, 3, 5, 4), (3, 2, 3, 5, 4)], {0: "batch"})
    line = (nn.AvgPool1d(3, 2), nn.AdaptiveAvgPool1d(2), nn.MaxPool1d(2), nn.Upsample(7, mode="linear"))
    check(Each(1, *line), [(2, 2, 6), (3, 2, 6)], {0: "batch"})


class Diagonals(nn.Module):
    """A determinant, and gradients of diagonals, which are computed here."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.detach().requires_grad_()
        diagonals = [torch.diagonal(x, offset, 2, 1).pow(3).sum() for offset in (-1, 0, 2)]
        (gradient,) = torch.autograd.grad(sum(diagonals), x)
        return {"gradient": gradient, "volume": torch.linalg.det(gradient[..., :3]).abs()}


def test_diagonals_and_determinants() -> None:
    model = export(Diagonals(), (torch.randn(2, 3, 5),), dynamic_shapes={"x": {0: "batch"}})
    for batch in (2, 1, 4):
        x = torch.randn(batch, 3, 5)
        expected = {name: each.detach().numpy() for name, each in Diagonals()(x).items()}
        assert_close(native(model, {"x": x.numpy()}), expected)


class Decomposed(TorchDispatchMode):
    """The gradients that are computed by decompositions, in torch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.decompositions = gradient_decompositions()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = self.decompositions.get(function, function)(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {})) if result is NotImplemented else result


@st.composite
def pools(draw: Any) -> tuple[tuple[int, ...], Any]:
    """A shape, and what pools a tensor of it."""
    axes = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(axes)]

    kernel, stride = each(1, 3), each(1, 3)
    padding = [draw(st.integers(0, size // 2)) for size in kernel]
    shape = (2, *(size + more for size, more in zip(kernel, each(0, 4), strict=True)))
    kind = draw(st.sampled_from(["avg", "max", "adaptive_avg"]))
    pool = getattr(functional, f"{kind}_pool{axes}d")
    if kind.startswith("adaptive"):
        return shape, partial(pool, output_size=each(1, 3))
    moves: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding}
    moves["ceil_mode"] = draw(st.booleans())
    if kind == "avg":
        moves["count_include_pad"] = draw(st.booleans())
        moves |= {"divisor_override": draw(st.sampled_from([None, 5]))} if axes > 1 else {}
    return shape, partial(pool, **moves)


@st.composite
def resizes(draw: Any) -> tuple[tuple[int, ...], dict[str, Any]]:
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic", "area"]))
    axes = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}.get(mode) or draw(st.integers(1, 3))
    shape = (2, 1, *draw(st.lists(st.integers(1, 5), min_size=axes, max_size=axes)))
    options: dict[str, Any] = {"mode": mode}
    if mode.endswith(("linear", "cubic")):
        options["align_corners"] = draw(st.booleans())
    if draw(st.booleans()):
        options["size"] = draw(st.lists(st.integers(1, 9), min_size=axes, max_size=axes))
    else:
        options["scale_factor"] = draw(st.sampled_from([1.0, 1.7, 2, 3.1]))
        options["recompute_scale_factor"] = draw(st.sampled_from([None, True]))
    return shape, options


@settings(max_examples=60)
@given(resizes())
def test_drawn_resizes(drawn: tuple[tuple[int, ...], dict[str, Any]]) -> None:
    """Against torch's own results, and its gradients by finite differences."""
    shape, options = drawn
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)

    def resized(x: Tensor) -> Tensor:
        with WithExportableGradients():
            return functional.interpolate(x, **options)

    torch.testing.assert_close(resized(x), functional.interpolate(x, **options), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(resized, x, fast_mode=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_resizing_under_a_checkpoint(reentrant: bool) -> None:
    """Of which the second forward pass, in the backward pass, is written as the first one is."""

    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        return functional.interpolate(layer(x)[:, None], size=7, mode="linear").sin()

    x = torch.randn(4, 5, requires_grad=True)
    module = Written(lambda layer, x: checkpoint(forward, layer, x, use_reentrant=reentrant).pow(3).mean())
    model = export_joint(module, (x,), input_gradients=["x"])
    assert_close(native(model, arrays({"x": x})), autograd(module, {"x": x}))


def _found(compute: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """What is computed of the inputs, and the gradients of those that require one for what is drawn by a seed."""
    y = compute(*inputs)
    upstream = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return y, torch.autograd.grad(y, [each for each in inputs if each.requires_grad], upstream)


def assert_as_torch(compute: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-12) -> None:
    """Hold results and gradients to torch's own, and to finite differences, in double."""
    expected = _found(compute, *inputs)

    def written(*inputs: Tensor) -> Tensor:
        with WithExportableGradients():
            return compute(*inputs)

    with Decomposed():
        found = _found(written, *inputs)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.autograd.gradcheck(written, inputs, fast_mode=True)


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def sizes(least: int, most: int, *, count: int | None = None) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 5), min_size=count or least, max_size=count or most)


@settings(max_examples=60)
@given(pools())
def test_drawn_pools(drawn: tuple[tuple[int, ...], Any]) -> None:
    shape, pool = drawn
    assert_as_torch(pool, doubles(*shape))


@settings(max_examples=40)
@given(st.data())
def test_drawn_slices_and_paddings(data: st.DataObject) -> None:
    shape = data.draw(sizes(1, 3))
    start, end, step = data.draw(st.tuples(st.integers(-6, 6), st.integers(-6, 6), st.integers(1, 2)))
    axis = data.draw(st.integers(0, len(shape) - 1))
    assert_as_torch(lambda x: x.movedim(axis, 0)[start:end:step].movedim(0, axis).sin(), doubles(*shape))
    sides = data.draw(st.lists(st.integers(0, 3), min_size=2 * len(shape), max_size=2 * len(shape)))
    assert_as_torch(lambda x: functional.pad(x, sides, mode="replicate"), doubles(2, 1, *shape))


@settings(max_examples=40)
@given(sizes(2, 4), st.integers(-3, 3), st.data())
def test_drawn_diagonals(shape: list[int], offset: int, data: st.DataObject) -> None:
    first, second = data.draw(st.permutations(range(len(shape))))[:2]
    assert_as_torch(lambda x: torch.diagonal(x, offset, first, second).sin(), doubles(*shape))
    assert_as_torch(lambda x: torch.trace(x).sin(), doubles(*shape[:2]))


@settings(max_examples=40)
@given(st.integers(1, 6), sizes(1, 2), st.booleans(), st.data())
def test_drawn_indices(rows: int, shape: list[int], include_self: bool, data: st.DataObject) -> None:
    """Which repeat, and count from the end, too."""
    count = torch.Size(shape).numel()
    taken = torch.tensor(data.draw(st.lists(st.integers(-rows, rows - 1), min_size=count, max_size=count)))
    assert_as_torch(lambda x: torch.take(x, taken.reshape(shape)).sin(), doubles(rows))
    index = (taken % rows).reshape(count, 1).expand(count, 2)
    for reduce in ("mean", "sum", "amax"):

        def reduced(x: Tensor, source: Tensor, reduce: str = reduce) -> Tensor:
            return x.scatter_reduce(0, index, source, reduce, include_self=include_self).sin()

        assert_as_torch(reduced, doubles(rows, 2), doubles(count, 2, seed=2))


@settings(max_examples=40)
@given(st.tuples(*[st.integers(1, 4)] * 6), st.sampled_from(["bilinear", "nearest"]), st.booleans(), st.data())
def test_drawn_samples_of_images(sizes: Any, mode: str, align_corners: bool, data: st.DataObject) -> None:
    batch, channels, *axes = sizes
    x, grid = doubles(batch, channels, *axes[:2]), doubles(batch, *axes[2:], 2, seed=data.draw(st.integers(0, 99)))
    padding = data.draw(st.sampled_from(["zeros", "border", "reflection"]))

    def sampled(x: Tensor, grid: Tensor) -> Tensor:
        return functional.grid_sample(x, 1.3 * grid, mode, padding, align_corners=align_corners)

    if mode == "bilinear":
        assert_as_torch(sampled, x, grid)
    else:
        assert_as_torch(sampled, x, grid.detach())


def test_places_in_large_images_of_a_half_type() -> None:
    """They are whole numbers beyond what the type counts to."""
    x = torch.randn(1, 1, 65, 65).half().requires_grad_()
    grid = torch.randint(-32, 33, (1, 7, 9, 2)).half() / 32
    expected = functional.grid_sample(x, grid, align_corners=True)
    with WithExportableGradients():
        found = functional.grid_sample(x, grid, align_corners=True)
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid behavior has changed:UserWarning")
@settings(max_examples=40)
@given(sizes(4, 5), st.booleans())
def test_drawn_places_in_images(size: list[int], align_corners: bool) -> None:
    axes = len(size) - 2

    def placed(theta: Tensor) -> Tensor:
        return functional.affine_grid(theta, size, align_corners=align_corners)

    assert_as_torch(placed, doubles(size[0], axes, axes + 1))


@settings(max_examples=40)
@given(sizes(2, 4), st.tuples(st.integers(1, 4), st.integers(1, 30)), st.sampled_from([0.5, 1.0, 2.0, 3.0, torch.inf]))
def test_drawn_distances(shape: list[int], rows: tuple[int, int], p: float) -> None:
    first, second = (doubles(*shape[:-2], count, shape[-1], seed=count) for count in rows)
    assert_as_torch(lambda first, second: torch.cdist(first, second, p), first, second)


@settings(max_examples=40)
@given(sizes(0, 2), st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_drawn_matrices(batch: list[int], rows: int, columns: int, left: bool) -> None:
    matrix = doubles(*batch, rows, rows)
    assert_as_torch(torch.linalg.det, matrix, tolerance=1e-10)
    if rows > 3:  # which the exporter refuses
        return
    matrix = (matrix + 3 * torch.eye(rows)).detach().requires_grad_()
    assert_as_torch(torch.linalg.inv, matrix, tolerance=1e-10)
    other = doubles(*batch, *((rows, columns) if left else (columns, rows)), seed=1)
    assert_as_torch(lambda matrix, other: torch.linalg.solve(matrix, other, left=left), matrix, other, tolerance=1e-10)
    vector = doubles(*batch, rows, seed=2)
    assert_as_torch(torch.linalg.solve, matrix, vector, tolerance=1e-10)


@settings(max_examples=40)
@given(sizes(2, 3), st.integers(-1, 1))
def test_drawn_norms_of_weights(shape: list[int], dim: int) -> None:
    v = doubles(*shape)
    g = doubles(*(1 if dim == -1 or axis != dim else length for axis, length in enumerate(shape)), seed=1)
    assert_as_torch(lambda v, g: torch._weight_norm(v, g, dim), v, g if dim >= 0 else g.flatten()[0].detach())


OTHERS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "product": ((3, 4), lambda x: x.prod(1)),
    "product with a zero": ((3, 4), lambda x: (x * torch.tensor([1.0, 0, 1, 1])).prod(0) + x.prod()),
    "cumulative sum": ((3, 4), lambda x: x.cumsum(1)),
    "sort": ((3, 4), lambda x: x.sort(1, descending=True).values * torch.arange(4.0)),
    "trace": ((3, 4), torch.trace),
    "strides": ((3, 4), lambda x: x.as_strided((2, 3), (5, 1), 1)),
    "overlapping strides": ((3, 4), lambda x: x.as_strided((3, 3), (1, 2))),
    "put": ((3, 4), lambda x: x.index_put((torch.tensor([0, 2, 0]),), 2 * x.sin(), accumulate=True)),
    "scatter": ((3, 4), lambda x: x.scatter(0, torch.tensor([[0, 2, 1, 1]]), 3 * x[:1])),
    "mean of what is scattered": (
        (3, 4), lambda x: x.scatter_reduce(0, torch.tensor([[0, 2, 1, 1], [0, 1, 1, 2]]), x[1:].sin(), "mean"),
    ),
    "mean of that alone": (
        (3, 4), lambda x: x.scatter_reduce(0, torch.tensor([[0, 2, 1, 1]]), x[1:2].sin(), "mean", include_self=False),
    ),
    "distances": ((3, 4), lambda x: torch.cdist(x.sin(), x[:2])),
    "taken": ((3, 4), lambda x: x.take(torch.tensor([[0, 11, -1], [3, 3, 5]]))),
    "inverse": ((2, 3, 3), lambda x: torch.linalg.inv(x + 3 * torch.eye(3))),
    "solution": ((2, 2, 2), lambda x: torch.linalg.solve(x + 3 * torch.eye(2), x.sin())),
    "inverse of an input": ((2, 2, 2), lambda x: torch.inverse(input=x + 3 * torch.eye(2))),
    "determinant": ((2, 3, 3), torch.linalg.det),
    "image": ((2, 3, 4, 5), lambda x: functional.grid_sample(x, x[:, :2].tanh().movedim(1, 3), align_corners=False)),
    "transformed image": (
        (2, 3, 4, 6),
        lambda x: functional.grid_sample(
            x, functional.affine_grid(x[:, 0, :2, :3], list(x.shape), align_corners=False), align_corners=False
        ),
    ),
    "border": ((2, 3, 4, 5), lambda x: functional.pad(x, (2, 1, 0, 3), mode="replicate")),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str) -> None:
    shape, compute = OTHERS[name]
    module = Written(lambda layer, x: compute(layer(x)).sin().pow(3).mean(), nn.Linear(shape[-1], shape[-1]))
    x = torch.randn(shape, requires_grad=True)
    model = export_joint(module, (x,), input_gradients=["x"])
    expected = autograd(copy.deepcopy(module).double(), {"x": x.detach().double().requires_grad_()})
    assert_close(native(model, arrays({"x": x})), expected)


CONVOLUTIONS: dict[int, Any] = {
    1: lambda: (nn.Conv1d(4, 6, 3, 2, bias=False), nn.ConvTranspose1d(4, 2, 2, 3, output_padding=1, groups=2)),
    2: lambda: (
        nn.Conv2d(4, 3, (3, 2), (2, 3), (1, 0)),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect", groups=4),
        nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1, dilation=2),
    ),
    3: lambda: (nn.Conv3d(4, 2, 2, 2, 1, (1, 2, 1), groups=2), nn.ConvTranspose3d(4, 2, 2, (1, 2, 1), bias=False)),
}


@pytest.mark.parametrize("axes", CONVOLUTIONS)
def test_convolutions(axes: int) -> None:
    names = {axis: f"size{axis}" for axis in range(2 + axes) if axis != 1}
    sizes = [(size, 2, *(size + 3 + axis for axis in range(axes))) for size in (2, 17, 1)]
    check(Each(axes, *CONVOLUTIONS[axes]()), sizes, names)


@st.composite
def layers(draw: Any) -> tuple[int, list[int], list[nn.Module]]:
    """Axes, lengths, and a layer of each kind for them with 4 channels, with what is drawn for each axis."""
    axes = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    conv, transposed = getattr(nn, f"Conv{axes}d"), getattr(nn, f"ConvTranspose{axes}d")
    avg_pool, max_pool = getattr(nn, f"AvgPool{axes}d"), getattr(nn, f"MaxPool{axes}d")
    groups, stride, dilation, kernel = draw(st.sampled_from([1, 2, 4])), each(1, 3), each(1, 2), each(2, 3)
    further = tuple(draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True))
    return (
        axes,
        list(each(5, 7)),
        [
            conv(4, 4, each(1, 3), each(1, 3), each(0, 2), each(1, 2), groups, bias=draw(st.booleans())),
            transposed(4, 4, each(1, 3), stride, each(0, 1), further, groups, dilation=dilation),
            avg_pool(kernel, each(1, 3), 1, ceil_mode=draw(st.booleans()), count_include_pad=draw(st.booleans())),
            max_pool(kernel, each(1, 3), 1, ceil_mode=draw(st.booleans())),
            nn.Upsample(
                list(each(3, 9)), mode=draw(st.sampled_from(["nearest", ("linear", "bicubic", "trilinear")[axes - 1]]))
            ),
            nn.GroupNorm(groups, 4),
            getattr(nn, f"BatchNorm{axes}d")(4, track_running_stats=False),
            getattr(nn, f"ReplicationPad{axes}d")(tuple(draw(st.integers(0, 3)) for _ in range(2 * axes))),
        ],
    )


@settings(max_examples=2)
@given(layers())
def test_drawn_layers(drawn: tuple[int, list[int], list[nn.Module]]) -> None:
    """Exported and run, for a batch and another one."""
    axes, lengths, kinds = drawn
    torch.manual_seed(0)
    check(Each(axes, *kinds), [(batch, 2, *lengths) for batch in (2, 3)], {0: "batch"})


def test_finite_differences() -> None:
    """Of the loss of a model in double, along a direction in all that it has a gradient of.

    ONNX's evaluator runs it: ONNX Runtime has few operators for double.
    """
    pools = nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d((3, 2)), nn.Upsample(scale_factor=1.7, mode="bicubic")
    others = nn.Conv2d(4, 3, (3, 2), (2, 3), (1, 0)), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.LayerNorm(4)
    module = Each(2, *pools, *others).eval().double()
    x = torch.randn((2, 2, 5, 4), dtype=torch.double, requires_grad=True)
    run = ReferenceRunner(export_joint(module, (x,), input_gradients=["x"])).run
    at = arrays({"x": x, **dict(module.named_parameters())})
    rng, step = np.random.default_rng(0), 1e-6
    direction = {name: rng.normal(size=each.shape) for name, each in at.items()}
    higher, lower = (
        run({name: each + side * step * direction[name] for name, each in at.items()})["loss"] for side in (1, -1)
    )
    found = run(at)
    along = sum(np.sum(found[f"{name}.grad"] * each) for name, each in direction.items())
    np.testing.assert_allclose(along, (higher - lower) / (2 * step), rtol=1e-7)


def test_convolution_of_a_dynamic_batch() -> None:
    """Which torch computes by another library from a batch of 16 on."""
    check(Each(2, nn.Conv2d(4, 3, 4, 4).requires_grad_(False)), [(2, 2, 8, 8), (20, 2, 8, 8)], {0: "batch"})


def test_adaptive_maxima() -> None:
    layers = (nn.AdaptiveMaxPool2d((3, None)), nn.AdaptiveMaxPool2d(1))
    check(Each(2, *layers), [(2, 2, 7, 5), (3, 2, 4, 6), (1, 2, 3, 2)], {0: "batch", 2: "height", 3: "width"})
    check(Each(1, nn.AdaptiveMaxPool1d(3)), [(2, 2, 7), (3, 2, 7)], {0: "batch"})
    check(Each(3, nn.AdaptiveMaxPool3d((2, 1, 3))), [(2, 2, 5, 3, 4)], {})


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_norms_of_weights() -> None:
    layers = (
        parametrizations.weight_norm(nn.Linear(4, 3)),
        parametrizations.weight_norm(nn.Linear(4, 3), dim=None),
        nn.utils.weight_norm(nn.Linear(4, 3), dim=1),
        parametrizations.spectral_norm(nn.Linear(4, 3)),
    )
    for layer in layers:
        module = Cubes(layer).eval()
        model = export_joint(module, (torch.randn(2, 4),), dynamic_shapes={"x": {0: "batch"}})
        for batch in (2, 1, 5):
            arguments = {"x": torch.randn(batch, 4)}
            assert_close(native(model, arrays(arguments)), autograd(module, arguments))


class Bags(nn.Module):
    """Bags of embeddings, of one length or by where they start."""

    def __init__(self, mode: str, **options: Any) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 4, mode=mode, **options)

    def forward(self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        return self.bag(ids, offsets, weights).sin().pow(2).sum()


BAGS: dict[str, tuple[Bags, bool, bool]] = {
    "mean": (Bags("mean"), False, False),
    "weighted sum": (Bags("sum", padding_idx=-2), False, True),
    "max": (Bags("max", padding_idx=3), False, False),
    "mean from offsets": (Bags("mean", padding_idx=3), True, False),
    "weighted sum from offsets": (Bags("sum", include_last_offset=True), True, True),
    "max from offsets": (Bags("max"), True, False),
}


@pytest.mark.parametrize("name", BAGS)
def test_bags(name: str) -> None:
    module, by_offsets, weighted = BAGS[name]

    def arguments(bags: int) -> dict[str, Tensor]:
        ids = torch.randint(0, 9, (bags * 5,) if by_offsets else (bags, 5))
        ids.flatten()[:5] = 3  # a bag of padding alone
        # The bags from offsets are of 5, of none, and of others.
        offsets = {"offsets": torch.tensor([0, 5, 5, *range(7, 5 + bags), 5 * bags])} if by_offsets else {}
        return {"ids": ids, **offsets, **({"weights": torch.randn(ids.shape)} if weighted else {})}

    shapes = {"ids": {0: "ids"}, "offsets": {0: "bags"}, "weights": {0: "ids"}}
    example = arguments(3)
    model = export_joint(module, kwargs=example, dynamic_shapes={name: shapes[name] for name in example})
    for bags in (3, 2, 6):
        feeds = arguments(bags)
        assert_close(native(model, arrays(feeds)), autograd(module, feeds))


REFUSED: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "adaptive_max_pool": (nn.AdaptiveMaxPool2d(2, return_indices=True), (torch.ones(2, 4, 6, 5),)),
    "fractional_max_pool2d": (nn.FractionalMaxPool2d(2, output_size=2), (torch.ones(2, 4, 6, 5),)),
    "embedding_bag": (nn.EmbeddingBag(5, 3, scale_grad_by_freq=True), (torch.ones(2, 4, dtype=torch.int64),)),
    "linalg_solve": (parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"), (torch.ones(2, 4),)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """What has no ONNX is named."""
    layer, args = REFUSED[name]

    def forward(layers: nn.Module, x: Tensor) -> Tensor:
        x = layers[0](x) if x.is_floating_point() else x
        y = layers[1](x)
        return (y[0] if isinstance(y, tuple) else y).pow(3).sum()

    first = nn.Linear(args[0].shape[-1], args[0].shape[-1])
    with pytest.raises(lnbp_onnx.InvalidModelError, match=name):
        export_joint(Written(forward, nn.Sequential(first, layer)), args)
