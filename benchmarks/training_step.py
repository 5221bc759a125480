# SPDX-License-Identifier: Apache-2.0
"""Times the loss and all gradients of a transformer: ONNX Runtime with the kernel and decomposed against eager torch.

The layers have the width, heads and sequence length of BERT-base and GPT-2 small; there are fewer of them. The models
come from `export_joint`. The share of the layer norms is that of their nodes in ONNX Runtime's profile.
"""

import argparse
import functools
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from contenders import DECOMPOSED, OURS, Run
from timing import interleave, ratio
from torch import nn

import lnbp_onnx
from lnbp_onnx.interop.torch import export_joint

_WIDTH, _HEADS = 768, 12
_LAYER_NORMS = ("LayerNormalization", "LayerNormBackprop")


class _LanguageModel(nn.Module):
    """Token and position embeddings, transformer layers, and the embeddings again as the head."""

    def __init__(self, *, words: int, length: int, layers: int, causal: bool) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, _WIDTH), nn.Embedding(length, _WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                _WIDTH, _HEADS, 4 * _WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=causal
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(_WIDTH)
        self.mask = nn.Transformer.generate_square_subsequent_mask(length) if causal else None

    def forward(self, words: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = self.words(words) + self.positions.weight
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask, is_causal=self.mask is not None)
        logits = self.norm(hidden) @ self.words.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


_MODELS: dict[str, Callable[[int], _LanguageModel]] = {
    "BERT-base": lambda layers: _LanguageModel(words=30522, length=512, layers=layers, causal=False),
    "GPT-2 small": lambda layers: _LanguageModel(words=50257, length=1024, layers=layers, causal=True),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(_MODELS), default=list(_MODELS))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="how many sequences")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("Seconds at the least; then times as long as torch: ratio of the minima, median of the ratios by round.")
    print("| model | threads | torch | kernel | decomposed | layer norms, kernel | layer norms, decomposed |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models:
        torch.manual_seed(0)
        module = _MODELS[name](arguments.layers)
        size = (arguments.batch, len(module.positions.weight))
        words, labels = (torch.randint(module.words.num_embeddings, size) for _ in range(2))
        model = export_joint(module, (words, labels))
        decomposed = lnbp_onnx.decompose(model)
        feeds = {"words": words.numpy(), "labels": labels.numpy()}
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            sessions = {OURS: _session(model, threads), DECOMPOSED: _session(decomposed, threads)}
            runs: dict[str, Run] = {"torch": functools.partial(_run_torch, module, words, labels)}
            runs |= {each: functools.partial(_run_session, session, feeds) for each, session in sessions.items()}
            times = interleave(runs, arguments.rounds, threads=threads)
            cells = [f"{min(each.minimum for each in times['torch']):.3f}"]
            for each in sessions:
                compared = ratio(times[each], times["torch"])
                cells.append(f"{compared.of_minima:.2f}, {compared.of_medians:.2f}")
            cells += [f"{_share_of_layer_norms(each, model, feeds, threads):.2%}" for each in (model, decomposed)]
            print("|", " | ".join([name, str(threads), *cells]), "|", flush=True)


def _run_torch(module: nn.Module, words: torch.Tensor, labels: torch.Tensor, count: int) -> None:
    for _ in range(count):
        module.zero_grad(set_to_none=True)
        module(words, labels).backward()


def _run_session(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], count: int) -> None:
    for _ in range(count):
        session.run(None, feeds)


def _session(model: onnx.ModelProto, threads: int, profile: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # It warns of every input that has a default.
    options.log_severity_level = 3
    # A thread that waits would take the core from the contender that runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_profiling, options.profile_file_prefix = bool(profile), profile
    return lnbp_onnx.inference_session(model, sess_options=options)


def _share_of_layer_norms(
    model: onnx.ModelProto, exported: onnx.ModelProto, feeds: dict[str, np.ndarray], threads: int
) -> float:
    """Return the time of the layer norms' nodes over that of all nodes, in the second of two runs.

    Decomposed gradients are nodes whose names begin with that of the node that they come from, and a slash.
    """
    layer_norms = [f"{node.name}/" for node in exported.graph.node if node.op_type in _LAYER_NORMS]
    with tempfile.TemporaryDirectory() as folder:
        session = _session(model, threads, str(Path(folder, "profile")))
        session.run(None, feeds)
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event for event in events if event.get("name", "").endswith("_kernel_time")]
    times: Counter[bool] = Counter()
    for event in nodes[len(nodes) // 2 :]:
        name = event["name"].removesuffix("_kernel_time")
        times[f"{name}/".startswith(tuple(layer_norms))] += event["dur"]
    assert times[True], "no node of the profile is one of the model's layer norms"
    return times[True] / times.total()


if __name__ == "__main__":
    main()
