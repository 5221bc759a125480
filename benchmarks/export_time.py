# SPDX-License-Identifier: Apache-2.0
"""The time of `export_joint` beside that of ``torch.onnx.export`` of the forward pass alone.

``python benchmarks/export_time.py`` prints the table of docs/pytorch.md: CPU time, the least of some rounds. It fails
where one takes more than 2.5 times as long and 2 s. It needs torch, onnxscript and transformers.
"""

import argparse
import contextlib
import io
import itertools
import logging
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers

from lnbp_onnx.interop.torch import export_joint

WIDTH, HEADS, BATCH, LENGTH = 16, 2, 2, 7
MODELS = ("BERT", "GPT-2", "ViT")


def made(name: str, layers: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return a model in evaluation mode, its arguments, and their dynamic sizes."""
    common: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": HEADS}
    common |= {"intermediate_size": 2 * WIDTH, "vocab_size": 40}
    ids = torch.randint(3, 40, (BATCH, LENGTH))
    text = {"input_ids": ids, "labels": ids}
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=64)
    dynamic: dict[str, Any] = {key: {0: batch, 1: length} for key in text}
    if name == "BERT":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**common))
    elif name == "GPT-2":
        sizes = {"n_embd": WIDTH, "n_layer": layers, "n_head": HEADS, "vocab_size": 40}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, use_cache=False))
    else:
        model = transformers.ViTForImageClassification(
            transformers.ViTConfig(**common, image_size=16, patch_size=4, num_labels=2)
        )
        text = {"pixel_values": torch.randn(BATCH, 3, 16, 16), "labels": torch.randint(0, 2, (BATCH,))}
        dynamic = {key: {0: batch} for key in text}
    return model.eval(), text, dynamic


def seconds(export: Callable[..., Any], model: Any, **options: Any) -> float:
    """Return the CPU time of an export, which other processes on the machine hardly change."""
    start = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        export(model, **options)
    return time.process_time() - start


def main() -> int:
    """Print a row for each model, depth and kind of sizes; return how many take longer than they may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--layers", nargs="+", type=int, default=[2, 12])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    forward_alone = partial(torch.onnx.export, dynamo=True, verbose=False)
    for export in (forward_alone, export_joint):  # the first of each imports, too
        model, kwargs, _ = made(arguments.models[0], 1)
        export(model, kwargs=kwargs)
    print("| model | layers | sizes | forward pass alone | with gradients | of what is allowed |")
    print("|---|---|---|---|---|---|")
    slow = 0
    for name, layers, kind in itertools.product(arguments.models, arguments.layers, ("static", "dynamic")):
        model, kwargs, dynamic = made(name, layers)
        options = {"kwargs": kwargs, "dynamic_shapes": dynamic if kind == "dynamic" else None}
        times = [
            [seconds(each, model, **options) for each in (forward_alone, export_joint)] for _ in range(arguments.rounds)
        ]
        forward, joint = map(min, zip(*times, strict=True))
        share = joint / (2.5 * forward + 2)
        slow += share > 1
        print(f"| {name} | {layers} | {kind} | {forward:.1f} s | {joint:.1f} s | {share:.0%} |", flush=True)
    return slow


if __name__ == "__main__":
    sys.exit(main())
