# SPDX-License-Identifier: Apache-2.0
"""Modules whose gradients are exported in the tests. Their losses are cubes: a layer norm's squares are constant."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

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


class Written(nn.Module):
    """What a lambda says, of a layer and its input."""

    def __init__(self, forward: Callable[[nn.Module, Any], Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3) if layer is None else layer
        self.written = forward

    def forward(self, x: Any) -> Any:
        return self.written(self.layer, x)


def three() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def cubes(x: Tensor) -> Tensor:
    return x.pow(3).mean()


def parameter_hooks() -> Written:
    module, keep = Written(lambda layer, x: cubes(layer(x)), three()), torch.arange(7.0)[:, None] > 2
    module.layer[0].weight.register_hook(lambda gradient: gradient * keep)
    module.layer[1].weight.register_hook(lambda gradient: 2 * gradient)
    return module


def hooks_in_forward() -> Written:
    """On a parameter, on a tensor and on nodes of the graph."""

    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        layer[0].bias.register_hook(lambda gradient: 7 * gradient)
        y = layer(x)
        y.register_hook(lambda gradient: 2 * gradient)
        y.retain_grad()
        z = y * 1
        z.grad_fn.register_hook(lambda inputs, _: (3 * inputs[0], *inputs[1:]))
        z = z * 1
        z.grad_fn.register_prehook(lambda outputs: (5 * outputs[0],))
        return cubes(z)

    return Written(forward, three())


def module_hooks() -> Written:
    module = Written(lambda layer, x: cubes(layer(x)), three())
    module.register_full_backward_pre_hook(lambda _, outputs: (5 * outputs[0],))
    module.layer[1].register_full_backward_hook(lambda _, inputs, __: (2 * inputs[0],))
    module.layer[2].register_full_backward_pre_hook(lambda _, outputs: (3 * outputs[0],))
    return module


def reentrant_checkpoint() -> Written:
    """Over what was made to require a gradient, as adapters are trained; over what does not; and one in another."""

    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        first = checkpoint(layer[0], x, use_reentrant=True)
        x = (x + first.detach().sum()).requires_grad_()
        x = checkpoint(lambda v: layer[1](checkpoint(layer[0], v, use_reentrant=True)), x, use_reentrant=True)
        return cubes(layer[2](x)) + first.sum()

    return Written(forward, three())


def checkpoint_of_attention() -> Written:
    block = nn.TransformerEncoderLayer(5, 1, 8, dropout=0.0, batch_first=True)
    return Written(lambda layer, x: cubes(checkpoint(layer, x[None], use_reentrant=False)), block)


class Recomputed(torch.autograd.Function):
    """A layer that runs a backward pass of its own in its backward, as reversible layers do."""

    @staticmethod
    def forward(context: Any, x: Tensor, layer: nn.Module) -> Tensor:
        context.save_for_backward(x)
        context.layer = layer
        return layer(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        x = context.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = context.layer(x)
        y.backward(gradient)
        return x.grad, None


def function_with_a_backward_pass() -> Written:
    return Written(lambda layer, x: cubes(Recomputed.apply(x.clone().requires_grad_(), layer)), three())


def saved_tensors() -> Written:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        with saved_tensors_hooks(lambda saved: saved.half(), lambda saved: saved.float()):
            x = torch.tanh(layer(x))
        with save_on_cpu():
            return cubes(x)

    return Written(forward, three())


class Upper(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu()


def parametrized() -> Written:
    module = Written(lambda layer, x: cubes(layer(x)), three())
    parametrize.register_parametrization(module.layer[2], "weight", Upper())
    return module


def modes() -> Written:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        layer[0].bias.requires_grad_(False)
        with torch.no_grad():
            first = layer[0](x)
        with torch.set_grad_enabled(False):
            second = layer[0](x)
        with torch.inference_mode():
            third = layer[0](x).sum()
        return cubes(layer[2](layer[1](first + layer[0](x) + second.detach()))) + third.clone()

    return Written(forward, three())


def hidden_teacher() -> Written:
    """Parameters that are none of the module's, and are in no gradient that anyone asks for."""
    teacher = [nn.Linear(5, 3)]
    module = Written(lambda layer, x: cubes(layer(x) - teacher[0](x)), three())
    module.teacher = teacher
    return module


def backward_in_forward() -> Written:
    """The gradients of two losses, for a backward pass adds to what is there."""

    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        cubes(layer(x)).backward()
        return layer(x).sum()

    return Written(forward, three())


BACKWARD_PASSES: tuple[Callable[[], Written], ...] = (
    parameter_hooks,
    hooks_in_forward,
    module_hooks,
    reentrant_checkpoint,
    checkpoint_of_attention,
    function_with_a_backward_pass,
    saved_tensors,
    parametrized,
    modes,
    hidden_teacher,
    backward_in_forward,
)
"""What makes the backward pass more than the derivative of the forward pass, or a forward pass one of many."""


class Indexed(nn.Module):
    """Rows that are taken at indices which repeat, and rows that are added at such indices."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.padded = nn.Embedding(rows, width, padding_idx=1)
        self.scaled = nn.Embedding(rows, width, scale_grad_by_freq=True)
        self.taken, self.selected, self.gathered, self.added, self.put = (
            nn.Parameter(torch.randn(rows, width)) for _ in range(5)
        )

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        y = self.padded(ids) + self.scaled(ids) + self.taken[ids]
        y = y.flatten(0, 1) + self.selected.index_select(0, flat)
        y = y + self.gathered.gather(0, flat[:, None].expand(-1, self.gathered.shape[1]))
        y = y + self.added.index_add(0, flat, y / 512)[flat]
        y = y + self.put.index_put((flat, flat.clamp(max=3)), y[:, 0] / 512, accumulate=True)[flat]
        return cubes(y.sin())
