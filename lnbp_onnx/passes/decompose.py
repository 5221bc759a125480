# SPDX-License-Identifier: Apache-2.0
"""The operator to standard operators."""

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.expand import check_version, expand
from lnbp_onnx.operators import OPERATOR_ID, find_operators, scopes
from lnbp_onnx.specialise import specialise_functions


class DecomposePass(ir.passes.InPlacePass):
    """Replace every LayerNormBackprop node by standard operators.

    Taken: nodes of every configuration that the specification allows, in the main graph, in subgraphs to any depth,
    and in model-local functions, which get one copy for each way they are called (`specialise_functions`). A model-local
    function that stands for the operator is removed: the nodes that call it are decomposed like the others.

    Refused, with the reason: a node that the specification refuses; one whose element type is not known; a default
    domain older than opset 11; and what an opset cannot express (bfloat16 and parameters of unknown rank before 13).

    Afterwards nothing of the domain ``lnbp`` is left. Graph inputs and outputs keep their names and order, the new
    nodes and values are named after the node that they come from.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        check_version(model)
        specialise_functions(model)
        functions = list(model.functions.values())
        modified = False
        for scope in scopes(model):
            operators = find_operators(scope, functions)
            if operators:
                expand(operators, scope, model)
                modified = True
        modified |= model.functions.pop(OPERATOR_ID, None) is not None
        modified |= _remove_import(model)
        return ir.passes.PassResult(model, modified)


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
