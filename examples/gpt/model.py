# SPDX-License-Identifier: Apache-2.0
"""The GPT in PyTorch: what export_gpt.py exports and train_gpt.py compares with."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt import adamw
from gpt.sizes import Sizes
from gpt.text import VOCABULARY, Batch


class Block(nn.Module):
    """Causal attention and a perceptron, each behind a layer norm and beside a residual connection."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.query_key_value = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.projection = nn.Linear(sizes.width, sizes.width)
        self.mlp_norm = nn.LayerNorm(sizes.width)
        self.expand = nn.Linear(sizes.width, 4 * sizes.width)
        self.contract = nn.Linear(4 * sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, context, width] to the same shape."""
        thirds = self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        query, key, value = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in thirds)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        return x + self.contract(functional.gelu(self.expand(self.mlp_norm(x))))


class Gpt(nn.Module):
    """Returns the mean cross entropy, in nats a character; its embedding is its output layer too."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, sizes.width)
        self.positions = nn.Parameter(torch.empty(sizes.context, sizes.width))
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.layers)))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Map int64 [rows, context], twice, to the loss, a scalar."""
        logits = self.head(self.norm(self.blocks(self.embedding(tokens) + self.positions)))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(sizes: Sizes, parameters: Mapping[str, np.ndarray], batches: Iterable[Batch]) -> Iterator[float]:
    """Do what gpt.training.train does, with torch's autograd and torch's AdamW; `parameters` stay as they are."""
    module = Gpt(sizes)
    for name, parameter in module.named_parameters():
        parameter.data = torch.tensor(parameters[name])
    groups = [
        {"params": [each for each in module.parameters() if adamw.decays(each)], "weight_decay": adamw.WEIGHT_DECAY},
        {"params": [each for each in module.parameters() if not adamw.decays(each)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, adamw.LEARNING_RATE, adamw.BETAS, adamw.EPSILON)
    for batch in batches:
        optimizer.zero_grad()
        loss = module(**{name: torch.tensor(value) for name, value in batch.items()})
        loss.backward()
        optimizer.step()
        yield loss.item()
