# SPDX-License-Identifier: Apache-2.0
"""LayerNormBackprop: the gradient of layer normalisation as one ONNX operator."""

from lnbp_onnx.api import decompose, embed, fuse
from lnbp_onnx.errors import InvalidModelError, InvalidNodeError, KernelError, LnbpError
from lnbp_onnx.kernels.native import get_library_path
from lnbp_onnx.node import gradient_nodes, make_node
from lnbp_onnx.reference import LayerNormBackprop, layer_norm_backprop
from lnbp_onnx.schema import register_schema
from lnbp_onnx.session import inference_session
from lnbp_onnx.spec import DOMAIN, OP_TYPE, OP_VERSION
from lnbp_onnx.verify import compare

register_schema()

__all__ = [
    "DOMAIN",
    "OP_TYPE",
    "OP_VERSION",
    "InvalidModelError",
    "InvalidNodeError",
    "KernelError",
    "LayerNormBackprop",
    "LnbpError",
    "compare",
    "decompose",
    "embed",
    "fuse",
    "get_library_path",
    "gradient_nodes",
    "inference_session",
    "layer_norm_backprop",
    "make_node",
    "register_schema",
]
