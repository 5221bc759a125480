# SPDX-License-Identifier: Apache-2.0
"""What a graph makes of the statistics that LayerNormalization gives, which only gradients need."""

import onnx_ir as ir

from lnbp_onnx.graphs.inference import constant_tensor
from lnbp_onnx.matching.views import VIEWS

_STATISTICS = {1: "Mean", 2: "InvStdDev"}
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Sum", "Neg", "Reciprocal", "Sqrt"})


def gives_statistics(node: ir.Node) -> bool:
    """Return whether a node is a LayerNormalization whose Mean or InvStdDev is used."""
    return (
        node.op_type == "LayerNormalization"
        and node.domain == ""
        and any(True for output in node.outputs[1:] for _ in output.uses())
    )


def use_of_statistics(norm: ir.Node) -> str | None:
    """Return how the graph combines a LayerNormalization's statistics with other values, None where it does not.

    Turning one into a variance for a node of another domain combines nothing.
    """
    for index, name in _STATISTICS.items():
        pending = list(norm.outputs[index : index + 1])
        followed = set(pending)
        while pending:
            for user in pending.pop().consumers():
                if user.domain != "" or user.op_type not in _ARITHMETIC | VIEWS:
                    continue
                others = [value for value in user.inputs if value is not None and value not in followed]
                if user.op_type in _ARITHMETIC and any(constant_tensor(value) is None for value in others):
                    return f"its {name} is used by the {user.op_type} {user.name or user.outputs[0].name or ''!r}"
                fresh = [output for output in user.outputs if output not in followed]
                followed.update(fresh)
                pending += fresh
    return None
