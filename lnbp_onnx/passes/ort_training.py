# SPDX-License-Identifier: Apache-2.0
"""The operators of ONNX Runtime training to standard operators."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx import ModelProto

from lnbp_onnx import spec
from lnbp_onnx.body import OLDEST_OPSET
from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.graphs.names import names_in, unique_names
from lnbp_onnx.graphs.operators import Scope, name_of, nodes_of, scopes
from lnbp_onnx.graphs.opsets import import_default_domain
from lnbp_onnx.graphs.protos import model_nodes
from lnbp_onnx.graphs.replace import NodeCount, Replacement, replace_nodes
from lnbp_onnx.graphs.typed_scopes import typed_scopes
from lnbp_onnx.node import TensorInfo
from lnbp_onnx.training_ops import (
    DOMAINS,
    MICROSOFT_DOMAIN,
    NOT_COVERED,
    REWRITINGS,
    TrainingOp,
    is_training_op,
    replacement,
)


def held_training_ops(model: ModelProto) -> str:
    """Return the operators of ONNX Runtime training that a model has, as text: "3 GeluGrad, 1 SoftmaxGrad", or ""."""
    own = {(function.domain, function.name) for function in model.functions}
    op_types = {*REWRITINGS, *NOT_COVERED}
    counts = Counter(
        node.op_type
        for node in model_nodes(model)
        if node.op_type in op_types and node.domain in DOMAINS and (node.domain, node.op_type) not in own
    )
    return ", ".join(f"{count} {op_type}" for op_type, count in sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A training operator that is standard operators now, or a LayerNormBackprop node.

    Attributes:
        name: The node's name, or that of its first output.
        op_type: Its operator.
        place: "graph", "function domain::Name", with the way to a subgraph.
        updated: The graph outputs that hold what the node changed in place.
    """

    name: str
    op_type: str
    place: str
    updated: tuple[str, ...] = ()


@dataclass
class OrtTrainingResult(ir.passes.PassResult):
    """What became of the training operators.

    Attributes:
        rewritten: Those that were replaced.
    """

    rewritten: tuple[Rewritten, ...]


class OrtTrainingPass(ir.passes.InPlacePass):
    """Replace the operators of ONNX Runtime training, which its inference packages do not know.

    Taken: the operators of `lnbp_onnx.training_ops.REWRITINGS`, which become standard operators, and the layer-norm
    gradients among them LayerNormBackprop nodes; in the main graph, in subgraphs to any depth, and in model-local
    functions whose calls agree on the element types. Default domain opsets 11 and newer, a few operators from 13 on.
    Element types must be known, as in what ONNX Runtime writes; ranks and lengths as far as an operator's docstring
    and errors say.

    Refused: a model with any other training operator, all of which are named; what an opset cannot express; an
    operator that changes an input in place in a subgraph or function, from where it cannot be brought out.

    Left alone: everything else; also what the inference packages have of the domain com.microsoft (FusedMatMul, Gelu),
    and calls of functions that the model has under one of these names. What InPlaceAccumulatorV2 and BatchNormInternal
    changed in place becomes a graph output named ``<input>.updated``, after those that the graph had, unless it was one
    already.
    """

    def call(self, model: ir.Model) -> OrtTrainingResult:
        """Rewrite the model in place.

        Raises:
            InvalidModelError: Where an operator cannot be rewritten, or too many nodes would be written; the model is
                left half-rewritten then.
            InvalidNodeError: Where a layer-norm gradient is one that LayerNormBackprop does not take.
        """
        _refuse_uncovered(model)
        rewritten: list[Rewritten] = []
        written = NodeCount()
        for scope, infos in typed_scopes(model, lambda node: is_training_op(node, REWRITINGS, model)):
            rewritten += _ScopeRewriter(scope, infos, model, written).run()
        return OrtTrainingResult(model, bool(rewritten), tuple(rewritten))


def _refuse_uncovered(model: ir.Model) -> None:
    uncovered = [
        (node.op_type, f"{name_of(node)!r} in {place}")
        for scope in scopes(model)
        for node, place in nodes_of(scope, lambda node: is_training_op(node, NOT_COVERED, model))
    ]
    if not uncovered:
        return
    counts = Counter(op_type for op_type, _ in uncovered)
    first = dict(reversed(uncovered))
    listed = "; ".join(
        f"{op_type} (node {first[op_type]}{f' and {count - 1} more' if count > 1 else ''})"
        for op_type, count in counts.items()
    )
    raise InvalidModelError(
        f"The model has operators of ONNX Runtime training that cannot be written in standard operators here: {listed} "
        "(remove them, or run the model with onnxruntime-training 1.19.2; docs/passes.md lists those that can)."
    )


class _ScopeRewriter:
    """The work in one scope."""

    def __init__(self, scope: Scope, infos: dict[ir.Value, TensorInfo], model: ir.Model, written: NodeCount) -> None:
        self._scope = scope
        self._infos = infos
        self._model = model
        self._written = written
        self._unique_name = unique_names(names_in(scope.graph))
        self._replacements: list[Replacement] = []
        self._new_outputs: list[ir.Value] = []

    def run(self) -> list[Rewritten]:
        found = nodes_of(self._scope, lambda node: is_training_op(node, REWRITINGS, self._model))
        if not found:
            return []
        opset = import_default_domain(self._scope.graph, self._model)
        if opset < OLDEST_OPSET:
            raise InvalidModelError(
                f"{name_of(found[0][0])!r} in {found[0][1]}: the default-domain opset is {opset}; standard operators "
                f"for training operators can be written from {OLDEST_OPSET} on (build the training graph anew, from a "
                "model of a newer opset)."
            )
        rewritten = [self._rewrite(node, place, opset) for node, place in found]
        replace_nodes(self._replacements)
        self._scope.graph.outputs.extend(self._new_outputs)
        domains = {node.domain for node in self._scope.graph.all_nodes()}
        if spec.DOMAIN in domains:
            self._scope.opset_imports.setdefault(spec.DOMAIN, spec.OP_VERSION)
        if MICROSOFT_DOMAIN not in domains:
            self._scope.opset_imports.pop(MICROSOFT_DOMAIN, None)
        return rewritten

    def _rewrite(self, node: ir.Node, place: str, opset: int) -> Rewritten:
        op = TrainingOp(node, self._infos, opset, self._unique_name)
        replaced = replacement(op)
        self._written.add(replaced)
        outputs = replaced.outputs
        updated = tuple(self._bring_out(op, place, outputs, *update) for update in op.updates)
        for old, new in zip(node.outputs, outputs, strict=False):
            if new is not None and self._infos[old].element_type is None:
                self._infos[old] = TensorInfo(int(new.dtype) if new.dtype else None, self._infos[old].shape)
        self._replacements.append(replaced)
        return Rewritten(name_of(node), node.op_type, place, updated)

    def _bring_out(
        self, op: TrainingOp, place: str, outputs: Sequence[ir.Value | None], changed: ir.Value, value: ir.Value
    ) -> str:
        """Make the new value of what a node changed in place a graph output, if it is none; return its name."""
        node = op.node
        if node.graph is not self._model.graph:
            raise InvalidModelError(
                f"{node.op_type} node {name_of(node)!r} in {place}: it changes {changed.name!r} in place, which "
                "standard operators cannot, and the new value cannot be a graph output from there (move it to the main "
                "graph)."
            )
        own = next((old for old, new in zip(node.outputs, outputs, strict=False) if new is value and old.name), None)
        if own is not None:
            if own.is_graph_output():
                return own.name or ""
            value = op.op("Identity", value)
        value.name = self._unique_name(f"{changed.name}.updated")
        shape = self._infos[changed].shape
        value.shape = None if shape is None else ir.Shape(shape)
        self._new_outputs.append(value)
        return value.name
