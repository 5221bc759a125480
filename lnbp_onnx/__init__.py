# SPDX-License-Identifier: Apache-2.0
"""LayerNormBackprop: the gradient of layer normalisation as one ONNX operator."""

import importlib
from typing import TYPE_CHECKING, Any

from lnbp_onnx.errors import InvalidModelError, InvalidNodeError, KernelError, LnbpError
from lnbp_onnx.node import gradient_nodes, make_node
from lnbp_onnx.schema import register_schema
from lnbp_onnx.spec import DOMAIN, OP_TYPE, OP_VERSION

if TYPE_CHECKING:
    from lnbp_onnx.api import decompose, embed, fuse, gradient, save_parameters, training_step
    from lnbp_onnx.reference import LayerNormBackprop, layer_norm_backprop
    from lnbp_onnx.running.compare import Comparison, compare
    from lnbp_onnx.running.native import get_library_path
    from lnbp_onnx.running.session import inference_session
    from lnbp_onnx.training.optimizers import SGD, AdamW

register_schema()

__version__: str

__all__ = [
    "DOMAIN",
    "OP_TYPE",
    "OP_VERSION",
    "SGD",
    "AdamW",
    "Comparison",
    "InvalidModelError",
    "InvalidNodeError",
    "KernelError",
    "LayerNormBackprop",
    "LnbpError",
    "__version__",
    "compare",
    "decompose",
    "embed",
    "fuse",
    "get_library_path",
    "gradient",
    "gradient_nodes",
    "inference_session",
    "layer_norm_backprop",
    "make_node",
    "register_schema",
    "save_parameters",
    "training_step",
]

# Imported when asked for: onnx_ir, ONNX Runtime and the reference evaluator take most of the time of an import.
_MODULES = {
    "AdamW": "training.optimizers",
    "Comparison": "running.compare",
    "LayerNormBackprop": "reference",
    "SGD": "training.optimizers",
    "compare": "running.compare",
    "decompose": "api",
    "embed": "api",
    "fuse": "api",
    "get_library_path": "running.native",
    "gradient": "api",
    "inference_session": "running.session",
    "layer_norm_backprop": "reference",
    "save_parameters": "api",
    "training_step": "api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 as the rest here

        value: Any = version("lnbp-onnx")
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
