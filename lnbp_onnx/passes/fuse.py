# SPDX-License-Identifier: Apache-2.0
"""Standard operators to the operator."""

from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError, InvalidNodeError
from lnbp_onnx.graphs.inference import info_of, subgraphs_of
from lnbp_onnx.graphs.names import names_in, unique_names
from lnbp_onnx.graphs.operators import OPERATOR_ID, Scope, graphs_of
from lnbp_onnx.graphs.opsets import DEFAULT_OPSET, check_version, import_default_domain
from lnbp_onnx.graphs.replace import replace_nodes
from lnbp_onnx.graphs.typed_scopes import typed_scopes
from lnbp_onnx.matching import rebuild, search
from lnbp_onnx.matching.forward_norms import gives_statistics, use_of_statistics
from lnbp_onnx.matching.gradient import Gradient, NearMiss
from lnbp_onnx.matching.substitute import Substitution
from lnbp_onnx.matching.value_numbering import ValueNumbering
from lnbp_onnx.matching.views import producer
from lnbp_onnx.node import TensorInfo
from lnbp_onnx.training_ops import MICROSOFT_DOMAIN, TrainingOp, is_training_op, layer_norm, replacement

# How many bodies are written to be looked up in a graph: a few for each reciprocal root that is one.
_FEWEST_LOOK_UPS = 2000
_NODES_FOR_A_LOOK_UP = 10

# In older ones an attribute says whether and where an operand is broadcast.
_OLDEST_OPSET = 7


@dataclass(frozen=True, slots=True)
class Fused:
    """A new LayerNormBackprop node, where it stands, and the form that it replaces.

    Attributes:
        node: The node.
        place: "graph", "function domain::Name", with the way to a subgraph.
        form: "decomposed" for what `DecomposePass` writes, "formula" for standard operators of any other form, or
            the replaced operator's name.
    """

    node: ir.Node
    place: str
    form: str


@dataclass(frozen=True, slots=True)
class Missed:
    """What looks like a layer-norm gradient and stays.

    Attributes:
        place: As in `Fused`.
        name: The name, or the first output, of the node that it was looked for at: the subtraction of the mean, the
            reciprocal root, the LayerNormalization or the operator of another domain.
        reason: What stopped it, to be read by a person.
    """

    place: str
    name: str
    reason: str


@dataclass
class FuseResult(ir.passes.PassResult):
    """What became of the graph.

    Attributes:
        fused: What was replaced.
        missed: What was not, though it is near.
    """

    fused: tuple[Fused, ...]
    missed: tuple[Missed, ...]


class FusePass(ir.passes.InPlacePass):
    """Replace what computes layer-norm gradients by LayerNormBackprop nodes.

    Taken, in the main graph, in subgraphs to any depth and in model-local functions, whatever things are named:

    - what `DecomposePass` writes, for every configuration and opset: the body is written again for the inputs that
      are read off the graph, and looked up value by value. Where rows or columns are none, nothing of the operator is
      left in it and nothing is found. beta's shape, where it is not gamma's, is found only where it is read at run
      time; otherwise beta_delta stays as it is;
    - any other way to write the formula in Identity, Cast, Add, Sub, Mul, Div, Sum, Neg, Reciprocal, Sqrt, Pow with a
      constant, ReduceSum, ReduceMean, ReduceSumSquare, MatMul, Transpose, views and shape arithmetic: PyTorch's,
      JAX's, the textbook's, before and after simplifiers. The values that depend on x, dy, gamma and the statistics
      alone are computed as polynomials with rational coefficients and must equal the operator's definition exactly.
      The statistics may be given (as a variance with or without epsilon, as its root, or as one over the root) or
      computed; input_delta or else gamma_delta has to be there. Where the terms of input_delta are added one by one to
      other gradients of x, the sum becomes one of these and the operator's output. An epsilon that the operator cannot
      have (in double one that is no float32 number, or none) stays in the graph, and the operator is given its sum with
      the variance. dy may have one more axis of length 1 at its end, and where it is one number, what follows from it
      may be constant;
    - ``com.microsoft::LayerNormalizationGrad`` and ``InvertibleLayerNormalizationGrad``;
    - the function that `EmbedPass` writes goes; the nodes that call it are the operator already.

    Left alone: what is written in opsets before 7, where an attribute says how an operand is broadcast.

    Refused, as a near miss with its reason: a formula that differs in a term (another axis, N, epsilon, operand, sign);
    shapes that are not known to be equal; what the specification refuses; a computation in double of float tensors;
    gradients for several seeds; a LayerNormalization whose Mean or InvStdDev is used by other arithmetic. One over the
    root that is no output of a LayerNormalization, of a root or an input of the graph may be negative and is not taken
    for one.

    Values that others use, too, stay, computed as before; what nobody uses any more is removed, initializers included.
    A graph's inputs and outputs keep their names and order. Fusing again changes nothing.
    """

    def call(self, model: ir.Model) -> FuseResult:
        """Rewrite the model in place."""
        check_version(model)
        modified = model.functions.pop(OPERATOR_ID, None) is not None
        fused: list[Fused] = []
        missed: list[Missed] = []
        for scope, infos in typed_scopes(model, _may_begin_gradient):
            fuser = _Fuser(scope, infos, model)
            fuser.run()
            fused += fuser.fused
            missed += fuser.missed
        return FuseResult(model, modified or bool(fused), tuple(fused), tuple(missed))


def _may_begin_gradient(node: ir.Node) -> bool:
    """Return whether the search may begin at the node: at a difference, a reciprocal root or a gradient operator.

    Where a LayerNormalization's statistics are used and it cannot begin, that is told.
    """
    is_difference = node.op_type == "Sub" or (
        node.op_type in ("Add", "Sum") and any(producer(value, {"Neg"}) is not None for value in node.inputs)
    )
    return is_difference or rebuild.is_rstd(node) or gives_statistics(node) or node.op_type in layer_norm.OP_TYPES


class _Fuser:
    """The work in one scope."""

    def __init__(self, scope: Scope, infos: dict[ir.Value, TensorInfo], model: ir.Model) -> None:
        self.fused: list[Fused] = []
        self.missed: list[Missed] = []
        self._scope = scope
        self._infos = infos
        self._model = model
        self._unique_name = unique_names(names_in(scope.graph))
        self._owners = {
            subgraph: node
            for node in scope.graph.all_nodes()
            for _, subgraphs in subgraphs_of(node)
            for subgraph in subgraphs
        }

    def run(self) -> None:
        for graph, place in list(graphs_of(self._scope.graph, self._scope.place)):
            self._import_operators(graph, place)
            self._fuse_formulas(graph, place)
        if self.fused:
            self._scope.opset_imports.setdefault(spec.DOMAIN, spec.OP_VERSION)
            import_default_domain(self._scope.graph, self._model)
        if any(each.form in layer_norm.OP_TYPES for each in self.fused) and not any(
            node.domain == MICROSOFT_DOMAIN for node in self._scope.graph.all_nodes()
        ):
            self._scope.opset_imports.pop(MICROSOFT_DOMAIN, None)

    def _import_operators(self, graph: ir.Graph, place: str) -> None:
        opset = self._scope.opset_imports.get("", DEFAULT_OPSET)
        replacements = []
        for node in graph:
            if not is_training_op(node, layer_norm.OP_TYPES, self._model):
                continue
            try:
                replaced = replacement(TrainingOp(node, self._infos, opset, self._unique_name))
            except (InvalidModelError, InvalidNodeError) as error:
                self._miss(place, node, str(error))
                continue
            replacements.append(replaced)
            self.fused.append(Fused(replaced.nodes[-1], place, node.op_type))
        replace_nodes(replacements)
        for each in replacements:
            self._infos.update((value, info_of(value)) for node in each.nodes for value in node.outputs)
            renewed = zip(each.node.outputs, each.outputs, strict=False)
            self._infos.update((new, self._infos[old]) for old, new in renewed if new is not None)

    def _fuse_formulas(self, graph: ir.Graph, place: str) -> None:
        opset = self._scope.opset_imports.get("")
        if opset is None or opset < _OLDEST_OPSET:
            return
        substitution = Substitution(graph, self._infos, self._owners, opset, self._unique_name)
        numbering = ValueNumbering(graph, substitution.removed)
        settled: set[int] = set()
        look_ups = max(_FEWEST_LOOK_UPS, len(graph) // _NODES_FOR_A_LOOK_UP)
        rebuilder = rebuild.Rebuilder(self._infos, opset, numbering, look_ups)
        for node in [node for node in graph if rebuild.is_rstd(node)]:
            while numbering.has(node):
                gradient = rebuilder.find(node)
                if gradient is None or self._substitute(substitution, gradient, place, "decomposed") is not None:
                    break
                settled |= gradient.region
        substitution.finish()
        searcher = search.Searcher(graph, self._infos, numbering)
        for anchor in searcher.anchors():
            while (start := numbering.node(anchor)) is not None:
                found = searcher.find(start)
                if found is None:
                    break
                # A gradient holds more than one difference; what stopped the first is worth telling.
                is_first = anchor not in settled
                settled |= found.region | {numbering.number(value) for value in start.inputs if value is not None}
                if isinstance(found, NearMiss):
                    reason: str | None = found.reason
                else:
                    reason = self._substitute(substitution, found, place, "formula")
                if reason and (is_first or searcher.gave_up):
                    self._miss(place, start, reason)
                if reason is not None:
                    break
        substitution.finish()
        for node in graph:
            if not gives_statistics(node) or any(numbering.number(output) in settled for output in node.outputs[1:]):
                continue
            use = use_of_statistics(node)
            if use is not None:
                self._miss(place, node, f"{use}, but nothing that was followed is a layer-norm gradient")

    def _substitute(self, substitution: Substitution, gradient: Gradient, place: str, form: str) -> str | None:
        """Replace a gradient; return why not, "" where there is nothing to replace, None where it is done."""
        try:
            substitution.parse(gradient)
            operator = substitution.apply(gradient)
        except InvalidNodeError as error:
            return str(error)
        if operator is None:
            return ""
        self.fused.append(Fused(operator, place, form))
        return None

    def _miss(self, place: str, node: ir.Node, reason: str) -> None:
        name = node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type
        self.missed.append(Missed(place, name, reason))
