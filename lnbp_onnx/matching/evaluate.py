# SPDX-License-Identifier: Apache-2.0
"""What a node computes of operands that are polynomials."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from lnbp_onnx.matching.algebra import NotExpressibleError
from lnbp_onnx.matching.semantics import SEMANTICS, Call, Infos, Known
from lnbp_onnx.matching.tensors import Axis, Tensor


def can_evaluate(node: ir.Node) -> bool:
    """Return whether the node is of an operator that can be followed."""
    return node.op_type in SEMANTICS and node.domain == ""


def evaluate(
    node: ir.Node, arguments: Sequence[Known | None], infos: Infos, names: Mapping[str, Axis] | None = None
) -> Known | None:
    """Return what a node computes, None where that is not known or has no form here.

    Args:
        node: The node.
        arguments: What its operands are; None for one that is left out, and for Shape's where only its type is known.
        infos: What is known of the graph's values.
        names: The axes whose lengths symbolic dimensions are, where that is known.

    Raises:
        SplitError: Where the node views a part of an axis that has one symbol.
    """
    if not can_evaluate(node) or any(isinstance(each, Tensor) and not each.is_exact for each in arguments):
        return None
    try:
        return SEMANTICS[node.op_type](Call(node, arguments, infos, names or {}))
    except NotExpressibleError:
        return None
