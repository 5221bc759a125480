# SPDX-License-Identifier: Apache-2.0
"""The graph rewritings as ``onnx_ir`` passes, one to a file."""

from lnbp_onnx.passes.decompose import DecomposePass, DecomposeResult
from lnbp_onnx.passes.embed import EmbedPass, EmbedResult
from lnbp_onnx.passes.fuse import Fused, FusePass, FuseResult, Missed
from lnbp_onnx.passes.gradient import GradientPass, GradientResult
from lnbp_onnx.passes.gradient_nodes import GradientNodesPass, GradientNodesResult
from lnbp_onnx.passes.in_turn import InTurn, InTurnResult
from lnbp_onnx.passes.loss import LOSS, LossPass, LossResult
from lnbp_onnx.passes.ort_training import OrtTrainingPass, OrtTrainingResult, Rewritten, held_training_ops
from lnbp_onnx.passes.scatter import Scattered, ScatterPass, ScatterResult, scatter_reductions
from lnbp_onnx.passes.training_step import TrainingStepPass, TrainingStepResult

__all__ = [
    "LOSS",
    "DecomposePass",
    "DecomposeResult",
    "EmbedPass",
    "EmbedResult",
    "FusePass",
    "FuseResult",
    "Fused",
    "GradientNodesPass",
    "GradientNodesResult",
    "GradientPass",
    "GradientResult",
    "InTurn",
    "InTurnResult",
    "LossPass",
    "LossResult",
    "Missed",
    "OrtTrainingPass",
    "OrtTrainingResult",
    "Rewritten",
    "ScatterPass",
    "ScatterResult",
    "Scattered",
    "TrainingStepPass",
    "TrainingStepResult",
    "held_training_ops",
    "scatter_reductions",
]
