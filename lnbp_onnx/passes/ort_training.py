# SPDX-License-Identifier: Apache-2.0
"""The operators of ONNX Runtime training to standard operators."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.body import OLDEST_OPSET
from lnbp_onnx.errors import InvalidModelError, InvalidNodeError
from lnbp_onnx.expand import import_default_domain, names_in, unique_names
from lnbp_onnx.matching import ort_training
from lnbp_onnx.matching.calls import typed_scopes
from lnbp_onnx.node import TensorInfo
from lnbp_onnx.operators import Scope, graphs_of, scopes
from lnbp_onnx.replace import Replacement, replace_nodes
from lnbp_onnx.training_ops import DOMAINS, NOT_COVERED, REWRITINGS, Writer


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

    Taken: the operators of `lnbp_onnx.training_ops.REWRITINGS`, which become standard operators, and
    ``LayerNormalizationGrad`` and ``InvertibleLayerNormalizationGrad``, which become LayerNormBackprop nodes; in the
    main graph, in subgraphs to any depth, and in model-local functions whose calls agree on the element types. Default
    domain opsets 11 and newer, a few operators from 13 or 16 on. Element types must be known, as in what ONNX Runtime
    writes; ranks and lengths as far as an operator's docstring and errors say.

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
            InvalidModelError: Where an operator cannot be rewritten; the model is left half-rewritten then.
        """
        _refuse_uncovered(model)
        rewritten: list[Rewritten] = []
        if any(_is_training_op(node, model) for scope in scopes(model) for node in scope.graph.all_nodes()):
            for scope, infos in typed_scopes(model):
                rewritten += _ScopeRewriter(scope, infos, model).run()
        return OrtTrainingResult(model, bool(rewritten), tuple(rewritten))


def _is_training_op(node: ir.Node, model: ir.Model) -> bool:
    if node.op_identifier() in model.functions:
        return False
    return ort_training.is_gradient(node) or (node.domain in DOMAINS and node.op_type in REWRITINGS)


def _refuse_uncovered(model: ir.Model) -> None:
    uncovered = [
        (node.op_type, f"{_name(node)!r} in {place}")
        for scope in scopes(model)
        for graph, place in graphs_of(scope.graph, scope.place)
        for node in graph
        if node.domain in DOMAINS and node.op_type in NOT_COVERED and node.op_identifier() not in model.functions
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
        "(remove them, or run the model with onnxruntime-training 1.19.2)."
    )


class _ScopeRewriter:
    """The work in one scope."""

    def __init__(self, scope: Scope, infos: dict[ir.Value, TensorInfo], model: ir.Model) -> None:
        self._scope = scope
        self._infos = infos
        self._model = model
        self._unique_name = unique_names(names_in(scope.graph))
        self._replacements: list[Replacement] = []
        self._new_outputs: list[ir.Value] = []

    def run(self) -> list[Rewritten]:
        found = list(self._found())
        if not found:
            return []
        opset = import_default_domain(self._scope.graph, self._model)
        if opset < OLDEST_OPSET:
            raise InvalidModelError(
                f"{_name(found[0][0])!r} in {found[0][1]}: the default-domain opset is {opset}; standard operators "
                f"for training operators can be written from {OLDEST_OPSET} on (convert the model with "
                "onnx.version_converter)."
            )
        rewritten = [
            self._import_layer_norm(node, place)
            if ort_training.is_gradient(node)
            else self._rewrite(node, place, opset)
            for node, place in found
        ]
        replace_nodes(self._replacements)
        self._scope.graph.outputs.extend(self._new_outputs)
        if not any(node.domain == ort_training.DOMAIN for node in self._scope.graph.all_nodes()):
            self._scope.opset_imports.pop(ort_training.DOMAIN, None)
        return rewritten

    def _found(self) -> Iterator[tuple[ir.Node, str]]:
        for graph, place in graphs_of(self._scope.graph, self._scope.place):
            for node in graph:
                if _is_training_op(node, self._model):
                    yield node, place

    def _import_layer_norm(self, node: ir.Node, place: str) -> Rewritten:
        rewritten = Rewritten(_name(node), node.op_type, place)
        try:
            ort_training.replace(node, self._infos, self._unique_name)
        except InvalidNodeError as error:
            raise InvalidModelError(f"{rewritten.op_type} node {rewritten.name!r} in {place}: {error}.") from error
        self._scope.opset_imports.setdefault(spec.DOMAIN, spec.OP_VERSION)
        return rewritten

    def _rewrite(self, node: ir.Node, place: str, opset: int) -> Rewritten:
        writer = Writer(node, self._infos, opset, self._unique_name)
        if not node.outputs:
            writer.refuse("it has no outputs")
        outputs = REWRITINGS[node.op_type](writer)
        updated = tuple(self._bring_out(writer, place, outputs, *update) for update in writer.updates)
        for old, new in zip(node.outputs, outputs, strict=False):
            if new is not None and self._infos[old].element_type is None:
                self._infos[old] = TensorInfo(int(new.dtype) if new.dtype else None, self._infos[old].shape)
        self._replacements.append(Replacement(node, writer.nodes, [*outputs][: len(node.outputs)]))
        return Rewritten(_name(node), node.op_type, place, updated)

    def _bring_out(
        self, writer: Writer, place: str, outputs: Sequence[ir.Value | None], changed: ir.Value, value: ir.Value
    ) -> str:
        """Make the new value of what a node changed in place a graph output, if it is none; return its name."""
        node = writer.node
        if node.graph is not self._model.graph:
            raise InvalidModelError(
                f"{node.op_type} node {_name(node)!r} in {place}: it changes {changed.name!r} in place, which standard "
                "operators cannot, and the new value cannot be a graph output from there (move it to the main graph)."
            )
        own = next((old for old, new in zip(node.outputs, outputs, strict=False) if new is value and old.name), None)
        if own is not None:
            if own.is_graph_output():
                return own.name or ""
            value = writer.op("Identity", value)
        value.name = self._unique_name(f"{changed.name}.updated")
        shape = self._infos[changed].shape
        value.shape = None if shape is None else ir.Shape(shape)
        self._new_outputs.append(value)
        return value.name


def _name(node: ir.Node) -> str:
    return node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type
