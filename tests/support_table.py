# SPDX-License-Identifier: Apache-2.0
"""Architectures of transformers and torch with small configurations and random weights, exported and run.

``python tests/support_table.py`` writes the table of docs/pytorch.md; with ``--part 3`` it runs every third one and
writes nothing. It fails where something else became of an export than the table says. It needs torch, onnxscript and
transformers.
"""

import argparse
import copy
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "pytorch.md"
BEGIN, END = "<!-- support table -->\n", "<!-- end of the support table -->\n"

VOCABULARY = 40
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGES: dict[str, Any] = {**SIZES, "image_size": 16, "patch_size": 4, "num_channels": 3}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
T5 = {
    **{"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    **{"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
}
BART = {
    **{"vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
}


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers, the sizes of its configuration, and what it takes."""

    model: str
    config: str
    sizes: Mapping[str, Any]
    takes: Callable[[int, int], dict[str, Any]]


def tokens(batch: int, length: int) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - the names below are needed without it

    ids = torch.randint(3, VOCABULARY, (batch, length))
    return {"input_ids": ids, "labels": ids}


def images(batch: int, _: int) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    return {"pixel_values": torch.randn(batch, 3, 16, 16), "labels": torch.randint(0, 2, (batch,))}


DYNAMIC = {"input_ids": ("batch", "length"), "pixel_values": ("batch",), "labels": ("batch", "length")}
LONGEST = 64
"""No longer than the tables of positions are."""


def language(model: str, config: str, sizes: Mapping[str, Any] = SIZES, **more: Any) -> Architecture:
    return Architecture(model, config, {**sizes, **more}, tokens)


def vision(model: str, config: str, sizes: Mapping[str, Any] = IMAGES, **more: Any) -> Architecture:
    return Architecture(model, config, {**sizes, **more}, images)


ARCHITECTURES = {
    "BERT": language("BertForMaskedLM", "BertConfig"),
    "GPT-2": language("GPT2LMHeadModel", "GPT2Config", GPT2),
    "ViT": vision("ViTForImageClassification", "ViTConfig"),
    "Llama": language("LlamaForCausalLM", "LlamaConfig"),
    "T5": language("T5ForConditionalGeneration", "T5Config", T5),
    "ConvNeXt": vision(
        "ConvNextForImageClassification", "ConvNextConfig", {}, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2
    ),
    "RoBERTa": language("RobertaForMaskedLM", "RobertaConfig"),
    "OPT": language("OPTForCausalLM", "OPTConfig", ffn_dim=24, word_embed_proj_dim=16),
    "Swin": vision(
        "SwinForImageClassification", "SwinConfig", {}, image_size=16, patch_size=2, embed_dim=8, depths=[1, 1],
        num_heads=[1, 2], window_size=2,
    ),
    "ALBERT": language("AlbertForMaskedLM", "AlbertConfig", embedding_size=8),
    "GPT-NeoX": language("GPTNeoXForCausalLM", "GPTNeoXConfig"),
    "DeiT": vision("DeiTForImageClassification", "DeiTConfig"),
    "DeBERTa-v2": language("DebertaV2ForMaskedLM", "DebertaV2Config"),
    "BART": language("BartForConditionalGeneration", "BartConfig", BART),
    "BEiT": vision("BeitForImageClassification", "BeitConfig"),
    "Phi": language("PhiForCausalLM", "PhiConfig"),
    "BLOOM": language("BloomForCausalLM", "BloomConfig", n_layer=2, n_head=2),
    "Falcon with alibi": language("FalconForCausalLM", "FalconConfig", alibi=True),
    "Qwen2": language("Qwen2ForCausalLM", "Qwen2Config", num_key_value_heads=2),
    "Gemma": language("GemmaForCausalLM", "GemmaConfig", num_key_value_heads=2, head_dim=8),
}  # fmt: skip


def measured(name: str) -> tuple[str, str, str, str, str]:
    """Export an architecture and return its row: what became of it without and with dropout."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415
    from torch_runs import arrays, autograd, native, relative_errors  # noqa: PLC0415

    import lnbp_onnx  # noqa: PLC0415
    from lnbp_onnx.interop.torch import export_joint  # noqa: PLC0415

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    each = ARCHITECTURES[name]
    module = getattr(transformers, each.model)(getattr(transformers, each.config)(**each.sizes))
    dims = {"batch": torch.export.Dim("batch"), "length": torch.export.Dim("length", max=LONGEST)}
    dynamic = {
        key: {axis: dims[dim] for axis, dim in zip(range(tensor.dim()), DYNAMIC[key], strict=False)}
        for key, tensor in each.takes(2, 7).items()
    }
    nodes = error = ""
    outcomes = []
    for training in (False, True):
        module.train(training)
        try:
            model = export_joint(module, kwargs=each.takes(2, 7), dynamic_shapes=dynamic)
        except lnbp_onnx.InvalidModelError as refusal:
            outcomes.append(str(refusal).partition(": ")[2].split(" (")[0][:160].replace("|", "/"))
            continue
        outcomes.append("yes")
        if training:
            continue
        nodes = str(sum(node.op_type == lnbp_onnx.OP_TYPE for node in model.graph.node))
        worst = 0.0
        for batch, length in ((2, 7), (3, 5)):
            arguments = each.takes(batch, length)
            doubles = {key: value.double() if value.is_floating_point() else value for key, value in arguments.items()}
            expected = autograd(copy.deepcopy(module).double(), doubles)
            largest = max(abs(value).max() for value in expected.values())
            try:
                found = native(model, arrays(arguments))
            except lnbp_onnx.LnbpError as missing:  # a type that ONNX Runtime lacks an operator in
                return name, each.model, nodes, "", str(missing).partition(" : ")[2].partition(" : ")[2][:160]
            # Of the largest gradient, where one is far smaller: what is left of terms that cancel.
            scaled = {key: max(abs(value).max(), 1e-3 * largest) for key, value in expected.items()}
            errors = relative_errors(found, expected)
            worst = max(worst, *(errors[key] * max(abs(expected[key]).max(), 1e-30) / scaled[key] for key in errors))
        error = f"{worst:.0e}"
    return name, each.model, nodes, error, " / ".join(dict.fromkeys(outcomes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=int, default=1, help="run every so many-th architecture, and write nothing")
    parser.add_argument("names", nargs="*", help="run these alone, and write nothing")
    arguments = parser.parse_args()
    names = arguments.names or list(ARCHITECTURES)[:: arguments.part]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        rows = []
        for row in pool.imap(measured, names):
            print(*row, sep=" | ", flush=True)
            rows.append(row)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    if names == list(ARCHITECTURES):
        head = "| architecture | class of transformers | nodes | worst gradient | exported |"
        lines = [head, "|---|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
        PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)
        return 0
    recorded = {line.split(" | ")[0]: line for line in table.splitlines()}
    return sum(not recorded.get(f"| {row[0]}", "").endswith(f"| {row[4]} |") for row in rows)


if __name__ == "__main__":
    sys.exit(main())
