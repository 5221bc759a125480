# SPDX-License-Identifier: Apache-2.0
"""The operator to standard operators."""

from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.expand import check_version, expand
from lnbp_onnx.operators import OPERATOR_ID, Operator, find_operators, scopes
from lnbp_onnx.specialise import specialise_functions


@dataclass
class DecomposeResult(ir.passes.PassResult):
    """What became of the nodes.

    Attributes:
        decomposed: The nodes as they were; they are standard operators now.
    """

    decomposed: tuple[Operator, ...]


class DecomposePass(ir.passes.InPlacePass):
    """Replace every LayerNormBackprop node by standard operators.

    Taken: nodes of every configuration that the specification allows, in the main graph, in subgraphs to any depth,
    and in model-local functions, which get one copy for each way they are called (`specialise_functions`). A
    model-local function that stands for the operator is removed: nodes that call it are decomposed like the others.

    Refused, with the reason: a node that the specification refuses; one whose element type is not known; a default
    domain older than opset 11; and what an opset cannot express (bfloat16 and parameters of unknown rank before 13).

    Afterwards nothing of the domain ``lnbp`` is left. Graph inputs and outputs keep their names and order, the new
    nodes and values are named after the node that they come from.
    """

    def call(self, model: ir.Model) -> DecomposeResult:
        """Rewrite the model in place."""
        check_version(model)
        specialise_functions(model)
        functions = list(model.functions.values())
        decomposed: list[Operator] = []
        for scope in scopes(model):
            operators = find_operators(scope, functions)
            if operators:
                expand(operators, scope, model)
                decomposed += operators
        modified = bool(decomposed)
        modified |= model.functions.pop(OPERATOR_ID, None) is not None
        modified |= _remove_import(model)
        return DecomposeResult(model, modified, tuple(decomposed))


def _remove_import(model: ir.Model) -> bool:
    """Remove the operator's domain from the imports of all that does not use it any more."""
    imported = {scope.graph: scope.opset_imports for scope in scopes(model)}
    modified = False
    for graph, opset_imports in imported.items():
        used = any(node.domain == spec.DOMAIN for node in graph.all_nodes())
        if not used and spec.DOMAIN in opset_imports:
            del opset_imports[spec.DOMAIN]
            modified = True
    return modified
