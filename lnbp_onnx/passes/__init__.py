# SPDX-License-Identifier: Apache-2.0
"""The graph rewritings as ``onnx_ir`` passes, one to a file."""

from lnbp_onnx.passes.decompose import DecomposePass, DecomposeResult
from lnbp_onnx.passes.embed import EmbedPass, EmbedResult
from lnbp_onnx.passes.fuse import Fused, FusePass, FuseResult, Missed
from lnbp_onnx.passes.ort_training import OrtTrainingPass, OrtTrainingResult, Rewritten

__all__ = [
    "DecomposePass",
    "DecomposeResult",
    "EmbedPass",
    "EmbedResult",
    "FusePass",
    "FuseResult",
    "Fused",
    "Missed",
    "OrtTrainingPass",
    "OrtTrainingResult",
    "Rewritten",
]
