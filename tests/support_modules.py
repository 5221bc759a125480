# SPDX-License-Identifier: Apache-2.0
"""Modules of the support table that are of no library, and those that give others a loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode


class Drawn(TorchDispatchMode):
    """What is dropped by the given numbers, in their order."""

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        super().__init__()
        self._numbers = iter(numbers)

    def __torch_dispatch__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten.bernoulli_.float:
            return args[0].copy_(next(self._numbers) < args[1])
        if function is torch.ops.aten.rand.default:
            return next(self._numbers)
        return function(*args, **(kwargs or {}))


class WithCrossEntropy(nn.Module):
    """A classifier of images with its loss."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(pixel_values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class WithCubes(nn.Module):
    """A model of images, and the mean cubes of what it returns under some names as a loss."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: Tensor) -> Any:
        outputs = self.model(pixel_values=pixel_values)
        return torch.stack([outputs[name].pow(3).mean() for name in self.names]).sum()


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=target.dtype)
        return (self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True) * target).pow(3).mean()


def transformer() -> nn.Module:
    return _Transformer()


class UNet(nn.Module):
    """Down and up again past a skip, with group norms and attention at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self._block(4, 8)
        self.down = nn.Conv2d(8, 8, 3, 2, 1)
        self.bottom = self._block(8, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.last = self._block(16, 4)

    @staticmethod
    def _block(channels: int, others: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, others, 3, padding=1), nn.GroupNorm(2, others), nn.SiLU(), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        y = self.bottom(self.down(skip))
        rows = self.norm(y.flatten(2).mT)
        y = y + self.attention(rows, rows, rows, need_weights=False)[0].mT.reshape(y.shape)
        return (self.last(torch.cat([skip, self.up(y)], 1)) - x).pow(2).mean()


class Forces(nn.Module):
    """The forces that an energy of pairs of atoms gives, against forces that are known."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, positions: Tensor, forces: Tensor) -> dict[str, Tensor]:
        positions = positions.detach().requires_grad_()
        between = positions[:, :, None] - positions[:, None]
        squares = between.square().sum(-1, keepdim=True)
        energy = self.energy(torch.cat([squares, torch.exp(-squares), between], -1)[..., :4]).sum()
        found = -torch.autograd.grad(energy, positions, create_graph=True)[0]
        return {"loss": functional.mse_loss(found, forces), "found": found}


class LossOf(nn.Module):
    """The loss of a module alone, whatever else it returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, arguments: dict[str, Any]) -> Tensor:
        result = self.module(**arguments)
        loss: Tensor = result["loss"] if isinstance(result, dict) else result
        return loss
