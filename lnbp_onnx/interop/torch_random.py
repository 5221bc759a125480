# SPDX-License-Identifier: Apache-2.0
"""What torch draws, in terms of uniform and normal numbers, which ONNX has operators for.

Dropout, too: ONNX Runtime's Dropout seeds a generator anew at each run, with seeds that follow each other, so that
the first element is dropped in thousands of runs or in none, and one node repeats the masks of another.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

_aten = torch.ops.aten
UNIFORM, NORMAL = _aten.rand.default, _aten.randn.default
ONNX_OPS = {
    "RandomUniform": UNIFORM,
    "RandomUniformLike": UNIFORM,
    "RandomNormal": NORMAL,
    "RandomNormalLike": NORMAL,
}
"""The kind of numbers that an ONNX operator draws."""

Draw: TypeAlias = Callable[[Any, Sequence[Any], Any, Any], Any]
"""Gives numbers: of `UNIFORM` or `NORMAL`, a shape, float or double, and a device."""

_DIGITS = {torch.float16: 11, torch.bfloat16: 8}
"""The binary digits of uniform numbers of half types, which are thus below 1."""


def random_decompositions(draw: Draw) -> Mapping[Any, Callable[..., Any]]:
    """Return, by ATen operator, what computes it from what `draw` gives; what is not here has no such form."""

    def drawn(kind: Any, size: Sequence[Any], dtype: Any = None, device: Any = None) -> Any:
        dtype = dtype or torch.get_default_dtype()
        digits = _DIGITS.get(dtype) if kind is UNIFORM else None
        numbers = draw(kind, size, dtype if dtype == torch.float64 else torch.float32, device)
        return ((numbers * 2**digits).floor() / 2**digits if digits else numbers).to(dtype)

    def of_size(kind: Any) -> Callable[..., Any]:
        return lambda size, *, dtype=None, device=None, **_: drawn(kind, size, dtype, device)

    def like(kind: Any) -> Callable[..., Any]:
        return lambda x, *, dtype=None, device=None, **_: drawn(kind, x.shape, dtype or x.dtype, device or x.device)

    def uniform(x: Any) -> Any:
        return draw(UNIFORM, x.shape, torch.float32, x.device)

    def bernoulli(x: Any, p: Any, **_: Any) -> Any:
        return (uniform(x) < p).to(x.dtype)

    def normal(mean: Any, std: Any, *_: Any, **__: Any) -> Any:
        x = mean + std
        return mean + std * drawn(NORMAL, x.shape, x.dtype, x.device)

    def integers(low: Any, high: Any, size: Sequence[Any], *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
        numbers = draw(UNIFORM, size, torch.float64, device)
        return (numbers * (high - low)).floor().to(dtype or torch.int64) + low

    def native_dropout(x: Any, p: float, train: bool | None) -> Any:
        if p == 0 or train is False:
            return x.clone(), torch.ones_like(x, dtype=torch.bool)
        if p == 1:
            return torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
        kept = uniform(x) < 1 - p
        return x * kept / (1 - p), kept

    def in_place(function: Callable[..., Any], *defaults: Any) -> Callable[..., Any]:
        return lambda x, *args, **_: x.copy_(function(x, *args, *defaults[len(args) :]))

    return {
        UNIFORM: of_size(UNIFORM),
        NORMAL: of_size(NORMAL),
        _aten.rand_like.default: like(UNIFORM),
        _aten.randn_like.default: like(NORMAL),
        _aten.bernoulli.default: lambda p, **_: bernoulli(p, p),
        _aten.bernoulli.p: bernoulli,
        _aten.bernoulli_.float: in_place(bernoulli, 0.5),
        _aten.bernoulli_.Tensor: in_place(bernoulli),
        _aten.uniform_.default: in_place(lambda x, low, high: low + (high - low) * uniform(x), 0, 1),
        _aten.normal_.default: in_place(lambda x, mean, std: mean + std * like(NORMAL)(x), 0, 1),
        # Of numbers that are never 0: their logarithm is taken, here and, for Gumbel noise, again.
        _aten.exponential_.default: in_place(lambda x, rate: -uniform(x).clamp(min=2**-25).log() / rate, 1),
        _aten.normal.Tensor_float: normal,
        _aten.normal.float_Tensor: normal,
        _aten.normal.Tensor_Tensor: normal,
        _aten.randint.default: lambda high, size, **options: integers(0, high, size, **options),
        _aten.randint.low: integers,
        _aten.randperm.default: lambda n, *, device=None, **_: draw(UNIFORM, [n], torch.float64, device).argsort(),
        _aten.native_dropout.default: native_dropout,
    }


class Draws:
    """The draws of one run in their order, each made once.

    A checkpoint has in the backward pass the numbers of the forward pass: it puts torch's generator back to where it
    was. Where it is, is the place of the next draw here.
    """

    def __init__(self, draw: Callable[..., Any]) -> None:
        self._draw = draw
        self._drawn: dict[int, Any] = {}

    def __call__(self, *wanted: Any) -> Any:
        """Return the numbers of the next draw."""
        place = torch.default_generator.initial_seed()
        torch.default_generator.manual_seed(place + 1)
        if place not in self._drawn:
            self._drawn[place] = self._draw(*wanted)
        return self._drawn[place]

    @contextmanager
    def from_the_first(self) -> Iterator[None]:
        """Start with the first draw, and leave torch's generator as it was."""
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(0)
            yield
