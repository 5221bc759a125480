# SPDX-License-Identifier: Apache-2.0
"""Architectures of transformers, timm and torch with small configurations and random weights, exported and run.

``python tests/support_table.py`` writes the table of docs/pytorch.md; with ``--part 3`` it runs every third one and
writes nothing. It fails where something else became of an export than the table says, of which a loss or gradient
that is not right is one. It needs torch, onnxscript, transformers, timm and torchvision.
"""

import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from architecture_tables import Table, prepare_torch

VOCABULARY = 40
LONGEST = 64
LIMITS = {"length": {"max": LONGEST}, "samples": {"min": LONGEST}}
"""No length beyond the tables of positions, no sound of less than a few strides of the convolutions."""

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
LAYERS = {
    **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")},
    "d_model": 16,
}
BART = {**LAYERS, **{"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}}
# What is left out of layers and of spectra in training is drawn in Python, once for all runs of a model.
SOUND = {
    **{**SIZES, "num_feat_extract_layers": 2, "conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 3)},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8},
    **{"layerdrop": 0.0, "apply_spec_augment": False},
}


@dataclass(frozen=True)
class Architecture:
    """What makes a module, what it takes at a batch and a length, and the dynamic axes of that."""

    kind: str
    make: Callable[[], Any]
    takes: Callable[[int, int], dict[str, Any]]
    dynamic: Mapping[str, Sequence[str]]


def tokens(batch: int, length: int) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - the names below are needed without it

    ids = torch.randint(3, VOCABULARY, (batch, length))
    return {"input_ids": ids, "labels": ids}


def normal(*shape: int) -> Any:
    import torch  # noqa: PLC0415

    return torch.randn(shape)


def classes(*shape: int) -> Any:
    import torch  # noqa: PLC0415

    return torch.randint(0, 2, shape)


def images(batch: int, _: int) -> dict[str, Any]:
    return {"pixel_values": normal(batch, 3, 16, 16), "labels": classes(batch)}


def of_transformers(model: str, config: str, sizes: Mapping[str, Any]) -> Any:
    import transformers  # noqa: PLC0415

    for key, value in sizes.items():
        if isinstance(value, tuple) and isinstance(value[0], str):  # a configuration within one
            sizes = {**sizes, key: getattr(transformers, value[0])(**value[1])}
    return getattr(transformers, model)(getattr(transformers, config)(**sizes))


def other(
    model: str,
    config: str,
    sizes: Mapping[str, Any],
    takes: Callable[[int, int], dict[str, Any]],
    dynamic: Mapping[str, Sequence[str]],
) -> Architecture:
    return Architecture(model, lambda: of_transformers(model, config, sizes), takes, dynamic)


def language(model: str, config: str, sizes: Mapping[str, Any] = SIZES, **more: Any) -> Architecture:
    both = ("batch", "length")
    return other(model, config, {**sizes, **more}, tokens, {"input_ids": both, "labels": both})


def vision(model: str, config: str, sizes: Mapping[str, Any] = IMAGES, **more: Any) -> Architecture:
    return other(model, config, {**sizes, **more}, images, {"pixel_values": ("batch",), "labels": ("batch",)})


def sound(model: str, config: str) -> Architecture:
    def takes(batch: int, length: int) -> dict[str, Any]:
        return {"input_values": normal(batch, 40 * length), "labels": classes(batch)}

    return other(model, config, SOUND, takes, {"input_values": ("batch", "samples"), "labels": ("batch",)})


def whisper(batch: int, length: int) -> dict[str, Any]:
    return {"input_features": normal(batch, 8, 16), "labels": tokens(batch, length)["labels"]}


def captions(batch: int, length: int) -> dict[str, Any]:
    taken = {"input_ids": tokens(batch, length)["input_ids"], "pixel_values": normal(batch, 3, 16, 16)}
    return {**taken, "return_loss": True}


def scenes(batch: int, _: int) -> dict[str, Any]:
    return {"pixel_values": normal(batch, 3, 32, 32), "labels": classes(batch, 32, 32)}


def only_images(batch: int, _: int) -> dict[str, Any]:
    return {"pixel_values": normal(batch, 3, 64, 64)}


def patches(batch: int, _: int) -> dict[str, Any]:
    return {"past_values": normal(batch, 16, 2), "future_values": normal(batch, 4, 2)}


def series(batch: int, _: int) -> dict[str, Any]:
    past = {"past_values": normal(batch, 13), "past_time_features": normal(batch, 13, 1)}
    future = {"future_values": normal(batch, 4), "future_time_features": normal(batch, 4, 1)}
    return {**past, "past_observed_mask": normal(batch, 13).abs().ceil().clamp(max=1), **future}


def of_batch(*names: str) -> dict[str, Sequence[str]]:
    return dict.fromkeys(names, ("batch",))


def of_timm(model: str, **sizes: Any) -> Architecture:
    def make() -> Any:
        import timm  # noqa: PLC0415
        from support_modules import WithCrossEntropy  # noqa: PLC0415

        return WithCrossEntropy(timm.create_model(model, num_classes=2, **sizes))

    return Architecture(f"timm {model}", make, images, of_batch("pixel_values", "labels"))


def of_torch(kind: str, name: str, takes: Callable[[int, int], dict[str, Any]], **dynamic: Sequence[str]) -> Any:
    def make() -> Any:
        import support_modules  # noqa: PLC0415

        return getattr(support_modules, name)()

    return Architecture(kind, make, takes, dynamic)


def detr() -> Any:
    from support_modules import WithCubes  # noqa: PLC0415

    backbone = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    sizes: dict[str, Any] = {**LAYERS, "num_queries": 3, "num_labels": 2}
    sizes |= {"use_timm_backbone": False, "use_pretrained_backbone": False}
    sizes["backbone_config"] = ("ResNetConfig", {**backbone, "out_features": ["stage2"]})
    return WithCubes(of_transformers("DetrForObjectDetection", "DetrConfig", sizes), ("logits", "pred_boxes"))


def mixer() -> Any:
    from support_modules import WithCrossEntropy  # noqa: PLC0415
    from timm.models.mlp_mixer import MlpMixer  # noqa: PLC0415

    return WithCrossEntropy(MlpMixer(num_classes=2, img_size=16, patch_size=4, embed_dim=16, num_blocks=2))


def series_transformer() -> Any:
    import torch  # noqa: PLC0415

    # The check takes numbers from tensors, and the model has no way to leave it out.
    torch.distributions.Distribution.set_default_validate_args(False)
    sizes: dict[str, Any] = {**LAYERS, "prediction_length": 4, "context_length": 6, "num_time_features": 1}
    sizes |= {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    sizes["distribution_output"] = "normal"  # Student's t has a lgamma, of which ONNX has none
    return of_transformers("TimeSeriesTransformerForPrediction", "TimeSeriesTransformerConfig", sizes)


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
    "BART": language("BartForConditionalGeneration", "BartConfig", BART, decoder_start_token_id=2),
    "BEiT": vision("BeitForImageClassification", "BeitConfig"),
    "Phi": language("PhiForCausalLM", "PhiConfig"),
    "BLOOM": language("BloomForCausalLM", "BloomConfig", n_layer=2, n_head=2),
    "Falcon with alibi": language("FalconForCausalLM", "FalconConfig", alibi=True),
    "Qwen2": language("Qwen2ForCausalLM", "Qwen2Config", num_key_value_heads=2),
    "Gemma": language("GemmaForCausalLM", "GemmaConfig", num_key_value_heads=2, head_dim=8),
    "Mixtral": language(
        "MixtralForCausalLM", "MixtralConfig", num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2,
        experts_implementation="batched_mm",
    ),
    # Its scan is a loop over the length in Python.
    "Mamba": other(
        "MambaForCausalLM", "MambaConfig", {**SIZES, "state_size": 4, "time_step_rank": 4},
        lambda batch, _: tokens(batch, 7), of_batch("input_ids", "labels"),
    ),
    "Whisper": other(
        "WhisperForConditionalGeneration", "WhisperConfig",
        {**BART, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": LONGEST,
         "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
        whisper, {"input_features": ("batch",), "labels": ("batch", "length")},
    ),
    "Wav2Vec2": sound("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config"),
    "HuBERT": sound("HubertForSequenceClassification", "HubertConfig"),
    "CLIP": other(
        "CLIPModel", "CLIPConfig", {"text_config": SIZES, "vision_config": IMAGES, "projection_dim": 8},
        captions, {"input_ids": ("batch", "length"), "pixel_values": ("batch",)},
    ),
    "SegFormer": other(
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 12],
         "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
         "decoder_hidden_size": 8, "num_labels": 2},
        scenes, of_batch("pixel_values", "labels"),
    ),
    "DETR": Architecture("DetrForObjectDetection", detr, only_images, of_batch("pixel_values")),
    "Perceiver": other(
        "PerceiverForMaskedLM", "PerceiverConfig",
        {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1, "num_self_attends_per_block": 2,
         "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "vocab_size": VOCABULARY,
         "max_position_embeddings": 7, "qk_channels": 16, "v_channels": 16},
        lambda batch, _: tokens(batch, 7), of_batch("input_ids", "labels"),
    ),
    "PatchTST": other(
        "PatchTSTForPrediction", "PatchTSTConfig",
        {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "prediction_length": 4,
         "num_hidden_layers": 2, "d_model": 16, "num_attention_heads": 2, "ffn_dim": 24},
        patches, of_batch("past_values", "future_values"),
    ),
    "Time series transformer": Architecture(
        "TimeSeriesTransformerForPrediction", series_transformer, series,
        of_batch("past_values", "past_time_features", "past_observed_mask", "future_values", "future_time_features"),
    ),
    "ViT of timm": of_timm("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2),
    "Mixer of timm": Architecture("timm MlpMixer", mixer, images, of_batch("pixel_values", "labels")),
    "ConvNeXt of timm": of_timm("convnext_atto", patch_size=1, depths=(1, 1, 1, 1), dims=(4, 6, 8, 8)),
    "Swin of timm": of_timm(
        "swin_tiny_patch4_window7_224", img_size=16, patch_size=2, embed_dim=8, depths=(1, 2), num_heads=(1, 2),
        window_size=2,
    ),
    "Transformer": of_torch(
        "torch.nn.Transformer", "transformer",
        lambda batch, length: {"source": normal(batch, length, 8), "target": normal(batch, length + 2, 8)},
        source=("batch", "length"), target=("batch", "other_length"),
    ),
    "U-Net": of_torch(
        "group norms and convolutions", "UNet", lambda batch, _: {"x": normal(batch, 4, 8, 8)}, x=("batch",)
    ),
    "Forces": of_torch(
        "an energy's gradients", "Forces",
        lambda batch, length: {"positions": normal(batch, length, 3), "forces": normal(batch, length, 3)},
        positions=("batch", "atoms"), forces=("batch", "atoms"),
    ),
}  # fmt: skip

TABLE = Table(
    Path(__file__).parent.parent / "docs" / "pytorch.md",
    "support table",
    ("architecture", "class", "dynamic", "nodes", "loss", "gradients", "with dropout", "exported"),
)


@dataclass(frozen=True)
class Errors:
    """The worst of the loss, of the gradients, and of the gradients that torch itself computes in float."""

    loss: float
    gradients: float
    of_torch: float
    wrong: Sequence[str]
    """The names of what is further off than is allowed."""

    def __str__(self) -> str:
        return f"{self.gradients:.0e} ({self.of_torch:.0e})"


def measured(name: str) -> Sequence[str]:
    """Export an architecture without and with dropout, and return its row."""
    import torch  # noqa: PLC0415

    import lnbp_onnx  # noqa: PLC0415
    from lnbp_onnx.interop.torch import export_joint  # noqa: PLC0415

    prepare_torch()
    torch.manual_seed(0)
    each = ARCHITECTURES[name]
    module = each.make()
    sizes = dict.fromkeys(size for axes in each.dynamic.values() for size in axes)
    dims = {size: torch.export.Dim(size, **LIMITS.get(size, {})) for size in sizes}
    dynamic = {
        key: {axis: dims[size] for axis, size in enumerate(each.dynamic[key])} if key in each.dynamic else None
        for key in each.takes(2, 7)
    }
    nodes, errors, outcomes = "", {}, []
    for training in (False, True):
        torch.manual_seed(1)
        module.train(training)
        try:
            model = export_joint(module, kwargs=each.takes(2, 7), dynamic_shapes=dynamic, seed=0)
            nodes = str(sum(node.op_type == lnbp_onnx.OP_TYPE for node in model.graph.node))
            found = errors[training] = worst(module, model, each)
            outcomes.append(f"wrong: {', '.join(found.wrong)}"[:160] if found.wrong else "yes")
        except lnbp_onnx.LnbpError as refusal:
            said = re.sub(r"/\S*/site-packages/", "", str(refusal))
            outcomes.append(said.partition(": ")[2].split(" (")[0][:160].replace("|", "/"))
        except Exception as error:  # of the comparison
            outcomes.append(f"{type(error).__name__}: {error}"[:160])
    loss = f"{max(each.loss for each in errors.values()):.0e}" if errors else ""
    gradients, with_dropout = (str(errors.get(training, "")) for training in (False, True))
    outcome = " / ".join(dict.fromkeys(outcomes))
    return name, each.kind, ", ".join(sizes), nodes, loss, gradients, with_dropout, outcome


def worst(module: Any, model: Any, each: Architecture) -> Errors:
    """Return the worst errors with the kernel and decomposed, at two batches, against autograd in double.

    A gradient's is relative to its own largest element, or to a thousandth of the largest of all gradients where that
    is more. It is right within 1e-5 of its own largest element. Where its terms cancel, so that torch itself is off
    in float, ten times as far is right, too, within 1e-5 of the largest of all.
    """
    import torch  # noqa: PLC0415
    from support_modules import Drawn  # noqa: PLC0415
    from torch_runs import arrays, autograd, decomposed, drawn_by, native, with_draws  # noqa: PLC0415

    shown = with_draws(model)
    losses, gradients, of_torch, wrong = [0.0], [0.0], [0.0], dict[str, None]()
    for batch, length in ((2, 7), (3, 5)):
        arguments = each.takes(batch, length)
        tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
        doubles = {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}
        constants = {key: value for key, value in arguments.items() if key not in tensors}

        def by_torch(module: Any, tensors: Any, found: Any, constants: Any = constants) -> Any:
            with Drawn([torch.from_numpy(found[draw]) for draw in drawn_by(shown)]):
                return autograd(module, tensors, **constants)

        for run in (native, decomposed):
            found = run(shown, arrays(tensors))
            expected = by_torch(copy.deepcopy(module).double(), doubles, found)
            in_float = by_torch(copy.deepcopy(module), tensors, found)
            losses.append(abs(found["loss"] - expected["loss"]) / abs(expected["loss"]))
            if losses[-1] > 1e-6:
                wrong["loss"] = None
            sizes = {key: abs(value).max() for key, value in expected.items() if key != "loss"}
            largest = max(sizes.values())
            for key, size in sizes.items():
                error, own = (abs(each[key] - expected[key]).max() for each in (found, in_float))
                gradients.append(error / max(size, 1e-3 * largest))
                of_torch.append(own / max(size, 1e-3 * largest))
                if not error <= max(1e-5 * size, min(10 * own, 1e-5 * largest)):
                    wrong[key] = None
    return Errors(max(losses), max(gradients), max(of_torch), list(wrong))


if __name__ == "__main__":
    sys.exit(TABLE.run(__doc__, list(ARCHITECTURES), measured))
