# SPDX-License-Identifier: Apache-2.0
"""Scattering with a reduction in a form that is right on any number of threads."""

from dataclasses import dataclass

import onnx_ir as ir
from onnx import ModelProto

from lnbp_onnx.graphs.names import names_in, unique_names
from lnbp_onnx.graphs.operators import name_of, nodes_of
from lnbp_onnx.graphs.opsets import import_default_domain
from lnbp_onnx.graphs.protos import model_nodes, proto_name
from lnbp_onnx.graphs.replace import NodeCount, Replacement, replace_nodes
from lnbp_onnx.graphs.typed_scopes import typed_scopes
from lnbp_onnx.training_ops import TrainingOp
from lnbp_onnx.training_ops.scattering import scatter_nd


@dataclass(frozen=True, slots=True)
class Scattered:
    """A ScatterND node that was replaced.

    Attributes:
        name: The node's name, or that of its output.
        reduction: What it did where indices repeat: "add", "mul", "max" or "min".
        place: "graph", "function domain::Name", with the way to a subgraph.
    """

    name: str
    reduction: str
    place: str


@dataclass
class ScatterResult(ir.passes.PassResult):
    """What became of the ScatterND nodes.

    Attributes:
        replaced: Those that were replaced.
    """

    replaced: tuple[Scattered, ...]


class ScatterPass(ir.passes.InPlacePass):
    """Replace every ScatterND node that has a reduction.

    ONNX Runtime runs the updates of a ScatterND in parallel without regard to equal indices: with more than one thread
    some are lost where an index repeats, other ones each time.

    Taken: every reduction, in the main graph, in subgraphs to any depth, and in model-local functions. Additions of
    floating types become sums of sorted rows (`lnbp_onnx.training_ops.row_sums`), other types and reductions become
    ScatterElements, whose updates are made in order. The length of the index tuples must be known, and the element
    type.

    Left alone: ScatterND without a reduction, for which ONNX demands that indices do not repeat, and ScatterElements.
    """

    def call(self, model: ir.Model) -> ScatterResult:
        """Rewrite the model in place.

        Raises:
            InvalidModelError: Where too little is known of a node, or too many would be written; the model is left
                half-rewritten then.
        """
        replaced: list[Scattered] = []
        written = NodeCount()
        for scope, infos in typed_scopes(model, lambda node: _has_reduction(node, model)):
            found = nodes_of(scope, lambda node: _has_reduction(node, model))
            if not found:
                continue
            opset = import_default_domain(scope.graph, model)
            unique_name = unique_names(names_in(scope.graph))
            replacements = []
            for node, place in found:
                op = TrainingOp(node, infos, opset, unique_name)
                reduction = op.attribute("reduction", "none")
                outputs = scatter_nd(op)
                replacements.append(Replacement(node, op.nodes, outputs))
                written.add(replacements[-1])
                replaced.append(Scattered(name_of(node), reduction, place))
            replace_nodes(replacements)
        return ScatterResult(model, bool(replaced), tuple(replaced))


def scatter_reductions(model: ModelProto) -> list[str]:
    """Return the names of the ScatterND nodes of a model that have a reduction."""
    own = {(function.domain, function.name) for function in model.functions}
    return [
        proto_name(node)
        for node in model_nodes(model)
        if node.op_type == "ScatterND" and node.domain in ("", "ai.onnx") and (node.domain, node.op_type) not in own
        for attribute in node.attribute
        if attribute.name == "reduction" and (attribute.ref_attr_name or attribute.s != b"none")
    ]


def _has_reduction(node: ir.Node, model: ir.Model) -> bool:
    if node.domain != "" or node.op_type != "ScatterND" or node.op_identifier() in model.functions:
        return False
    reduction = node.attributes.get("reduction")
    return reduction is not None and (reduction.is_ref() or reduction.as_string() != "none")
