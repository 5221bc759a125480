# SPDX-License-Identifier: Apache-2.0
"""The operator to standard operators."""

from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.graphs.inference import Functions
from lnbp_onnx.graphs.operators import OPERATOR_ID, Operator, find_operators, is_operator, scopes
from lnbp_onnx.graphs.opsets import check_version
from lnbp_onnx.graphs.specialise import specialise_functions
from lnbp_onnx.passes.expand import expand


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
        functions = Functions(model.functions.values())
        decomposed: list[Operator] = []
        modified = model.functions.pop(OPERATOR_ID, None) is not None
        for scope in scopes(model):
            keeps_import = _has_others(scope.graph)
            operators = find_operators(scope, functions)
            if operators:
                expand(operators, scope, model)
                decomposed += operators
                modified = True
            if not keeps_import:
                modified |= scope.opset_imports.pop(spec.DOMAIN, None) is not None
        return DecomposeResult(model, modified, tuple(decomposed))


def _has_others(graph: ir.Graph) -> bool:
    """Return whether a graph has nodes of the operator's domain that are not the operator."""
    return any(node.domain == spec.DOMAIN and not is_operator(node) for node in graph.all_nodes())
