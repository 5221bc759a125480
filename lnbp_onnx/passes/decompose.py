# SPDX-License-Identifier: Apache-2.0
"""The operator to standard operators."""

import itertools
from collections.abc import Callable

import onnx
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.body import build_body
from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.operators import OPERATOR_ID, Operator, Scope, find_operators, is_operator, scopes
from lnbp_onnx.specialise import specialise_functions

DEFAULT_OPSET = 17
"""The default-domain opset that a model gets that imports none: LayerNormalization's."""


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
        version = model.opset_imports.get(spec.DOMAIN, spec.OP_VERSION)
        if version != spec.OP_VERSION:
            raise InvalidModelError(
                f"The model imports version {version} of domain {spec.DOMAIN!r}; it must be {spec.OP_VERSION} "
                "(correct the import, or install a newer lnbp-onnx)."
            )
        specialise_functions(model)
        functions = list(model.functions.values())
        modified = False
        for scope in scopes(model):
            operators = find_operators(scope, functions)
            if operators:
                _decompose(scope, operators, model)
                modified = True
        modified |= model.functions.pop(OPERATOR_ID, None) is not None
        modified |= _remove_import(model)
        return ir.passes.PassResult(model, modified)


def _decompose(scope: Scope, operators: list[Operator], model: ir.Model) -> None:
    opset = scope.opset_imports.get("")
    if opset is None:
        opset = scope.opset_imports[""] = model.opset_imports.get("", DEFAULT_OPSET)
        needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)], ignore_unknown=True)
        model.ir_version = max(model.ir_version or 0, needed)
    unique_name = _names(scope.graph)
    for operator in operators:
        node = operator.node
        label = node.name or next(output.name for output in node.outputs if output.name) or spec.OP_TYPE
        body = build_body(operator.parsed, node.inputs, opset, lambda step, label=label: unique_name(f"{label}/{step}"))
        for new_node in body.nodes:
            new_node.metadata_props.update(node.metadata_props)
        pairs = [(old, new) for old, new in zip(node.outputs, body.outputs, strict=False) if new is not None]
        assert node.graph is not None
        ir.convenience.replace_nodes_and_values(
            node.graph,
            insertion_point=node,
            old_nodes=[node],
            new_nodes=body.nodes,
            old_values=[old for old, _ in pairs],
            new_values=[new for _, new in pairs],
        )


def _names(graph: ir.Graph) -> Callable[[str], str]:
    """Return a function that makes names of values and nodes unique in a graph and its subgraphs."""
    taken = set()
    for each in (graph, *graph.subgraphs()):
        taken.update(value.name for value in (*each.inputs, *each.initializers.values()))
        for node in each:
            taken.add(node.name)
            taken.update(value.name for value in (*node.outputs, *node.inputs) if value is not None)

    def unique_name(name: str) -> str:
        candidates = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        unused = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(unused)
        return unused

    return unique_name


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
