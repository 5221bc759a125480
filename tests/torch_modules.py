# SPDX-License-Identifier: Apache-2.0
"""Modules whose gradients are exported in the tests. Their losses are cubes: a layer norm's squares are constant."""

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, WIDTH = 13, 8


class Classifier(nn.Module):
    """An encoder over tokens with cross entropy; classes below 0 are ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor, target: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.layer(self.embed(ids)).mean(1))
        return {"loss": functional.cross_entropy(logits, target, ignore_index=-1), "logits": logits}


class Gpt(nn.Module):
    """A causal model with one block, whose embedding is its output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norm2(x))
        return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), target.flatten())


class Cubes(nn.Module):
    """The mean of the cubes of what the layers give."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).pow(3).mean()


def mlp() -> Cubes:
    return Cubes(nn.Linear(5, 7), nn.LayerNorm((6, 7)), nn.SiLU(), nn.Linear(7, 4))


def narrow() -> Cubes:
    return Cubes(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 4))


class Functional(nn.Module):
    """The parameters of a layer norm one by one, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused = nn.Linear(5, 7), nn.Linear(5, 7)
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.shift = nn.Parameter(torch.randn(7))
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 7))
        self.table = torch.arange(7.0)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.first(x)
        x = functional.layer_norm(x, (7,), None, self.shift)
        x = self.frozen(x).relu_() + self.table
        x[:, 0] = 0
        x = functional.layer_norm(x, (7,), self.scale)
        x = functional.layer_norm(x * self.table, (7,))
        return x.pow(3).mean(), x, x


class Autocast(nn.Module):
    """A layer norm whose input is float16 and whose parameters are float."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 7), nn.LayerNorm(7)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return self.norm(self.linear(x)).float().pow(3).mean()


class Forces(nn.Module):
    """An energy and its negative gradient, as in a potential learned from physics."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, positions: Tensor) -> dict[str, Tensor]:
        positions = positions.detach().requires_grad_()
        energy = self.energy(positions).sum()
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
        return {"energy": energy, "forces": -gradient}


class ForceMatching(nn.Module):
    """A loss of forces, whose gradients are second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Forces()

    def forward(self, positions: Tensor, forces: Tensor) -> Tensor:
        return (self.model(positions)["forces"] - forces).square().mean()
