# SPDX-License-Identifier: Apache-2.0
"""Calls of functions written out before a model is differentiated."""

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.graphs.onnx_calls import sizes_written_out

# onnx_ir's inlining takes a time that grows with the square of the nodes.
_MOST_INLINED = 2_000


def inline_functions(model: ir.Model) -> None:
    """Write out the calls of a model's functions in its main graph, in place.

    Raises:
        InvalidModelError: Where a function imports other versions than the model, or the calls hold too many nodes.
    """
    if not model.functions:
        return
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            imported = model.opset_imports.get(domain, version)
            if imported != version:
                raise InvalidModelError(
                    f"The function {function.domain}::{function.name} imports version {version} of domain "
                    f"{domain or 'ai.onnx'!r}, and the model {imported}; it cannot be inlined (convert one of them)."
                )
    count = _called_nodes(model)
    if count > _MOST_INLINED:
        raise InvalidModelError(
            f"The calls of the model's functions hold {count} nodes when they are written out; {_MOST_INLINED} are "
            "written out here (do it before, with onnx.inliner.inline_local_functions)."
        )
    InlinePass()(model)


def _called_nodes(model: ir.Model) -> int:
    """Return how many nodes the calls in the main graph are when each is written out."""
    sizes = sizes_written_out(
        {key: [node.op_identifier() for node in function.all_nodes()] for key, function in model.functions.items()}
    )
    return sum(sizes.get(node.op_identifier(), 0) for node in model.graph.all_nodes())
