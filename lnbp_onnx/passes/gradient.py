# SPDX-License-Identifier: Apache-2.0
"""The gradients of a value, as further outputs of its model."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError, argument
from lnbp_onnx.gradients.backward import Backward
from lnbp_onnx.graphs.constants import fold_lists
from lnbp_onnx.graphs.inference import Functions, infer
from lnbp_onnx.graphs.inline import inline_functions
from lnbp_onnx.graphs.names import claim, computed_value, listed, matches, names_in, unique_names
from lnbp_onnx.graphs.opsets import opset_to_train_in
from lnbp_onnx.graphs.writer import FLOATS
from lnbp_onnx.node import TensorInfo


@dataclass
class GradientResult(ir.passes.PassResult):
    """What was added.

    Attributes:
        gradients: The names of the new outputs.
    """

    gradients: tuple[str, ...]


class GradientPass(ir.passes.InPlacePass):
    """Append the gradients of a value to the main graph's outputs; `lnbp_onnx.gradient` says how.

    Taken: operators that have a rule (`lnbp_onnx.gradients.rule_of`) or are written out in others, If, Loop and Scan;
    in the main graph, and in functions, which are inlined. Opsets 13 and newer.

    Refused: any other operator that the gradient passes, all of which are named. A `wrt` that `of` does not depend on.

    Left alone: what the gradient does not pass, whatever it is.
    """

    def __init__(
        self,
        *,
        of: str,
        wrt: Sequence[str] | None = None,
        seed: str | None = None,
        patterns: bool = False,
        recompute: Sequence[str] = (),
    ) -> None:
        """Take what `lnbp_onnx.gradient` does.

        Args:
            of: As there.
            wrt: As there.
            seed: As there.
            patterns: Whether `wrt` are patterns as the shell's. A pattern stands for all inputs and initializers of a
                floating type that it matches and that a gradient of `of` leads to; there must be one at least.
            recompute: As there.
        """
        self._recompute = recompute
        self._of = of
        self._patterns = patterns
        self._wrt = wrt
        self._seed = seed

    def call(self, model: ir.Model) -> GradientResult:
        """Rewrite the model in place.

        Raises:
            InvalidModelError: As `lnbp_onnx.gradient`; the model is left half-rewritten then.
        """
        opset = opset_to_train_in(model)
        inline_functions(model)
        graph = model.graph
        fold_lists(graph, model.opset_imports)
        functions = Functions(model.functions.values())
        infos = infer(graph, functions, model.opset_imports)
        unique_name = unique_names(names_in(graph))
        backward = Backward(graph, infos, opset, unique_name)
        of = computed_value(graph, self._of, argument("of"))
        sources = self._sources(graph, infos, backward, of)
        of = backward.with_bodies(of, sources, lambda: infer(graph, functions, model.opset_imports))
        seed = self._seed_input(graph, infos, of) if self._seed is not None else backward.scalar_one(of)
        if self._seed is not None:
            refusal = f"{argument('seed')}: the model has the name {self._seed!r} already (choose another one)."
            claim(self._seed, unique_name, refusal)
        # First of all: what a caller can replace is no constant for the rules.
        for source in sources:
            if not source.is_graph_input():
                graph.inputs.append(source)
        names = [f"{source.name}.grad" for source in sources]
        for name in names:
            claim(name, unique_name, f"The model has the name {name!r}, which the gradient needs (rename it).")
        gradients = backward.write(of, seed, sources, names, self._recompute)
        graph.outputs.extend(gradients)
        if any(node.domain == spec.DOMAIN for node in graph.all_nodes()):
            model.opset_imports.setdefault(spec.DOMAIN, spec.OP_VERSION)
        return GradientResult(model, True, tuple(str(gradient.name) for gradient in gradients))

    def _sources(
        self, graph: ir.Graph, infos: dict[ir.Value, TensorInfo], backward: Backward, of: ir.Value
    ) -> list[ir.Value]:
        """Return the values of `wrt`."""
        initializers = dict(graph.initializers)
        if self._wrt is None:
            candidates = [value for value in initializers.values() if infos[value].element_type in FLOATS]
            found = backward.sources_of(candidates, of)
            if not found:
                raise InvalidModelError(
                    f"{argument('of')}: {self._of!r} depends on no initializer of a floating type (name inputs in "
                    f"{argument('wrt')})."
                )
            return found
        values = {value.name: value for value in (*initializers.values(), *graph.inputs)}
        sources = []
        names = self._matched(values, infos, backward, of) if self._patterns else self._wrt
        for name in dict.fromkeys(names):
            if name not in values:
                raise InvalidModelError(
                    f"{argument('wrt')}: the main graph has neither an input nor an initializer {name!r} (correct the "
                    "name)."
                )
            if infos[values[name]].element_type not in FLOATS:
                raise InvalidModelError(
                    f"{argument('wrt')}: {name!r} is not known to be of type float, double, float16 or bfloat16, and "
                    "only such tensors have gradients."
                )
            sources.append(values[name])
        if not sources:
            raise InvalidModelError(f"{argument('wrt')}: it is empty (name inputs or initializers, or leave it out).")
        return sources

    def _matched(
        self,
        values: dict[str | None, ir.Value],
        infos: dict[ir.Value, TensorInfo],
        backward: Backward,
        of: ir.Value,
    ) -> list[str]:
        """Return the names that the patterns stand for."""
        candidates = [value for value in values.values() if infos[value].element_type in FLOATS]
        reached = [str(value.name) for value in backward.sources_of(candidates, of)]
        names = []
        for pattern in self._wrt or ():
            found = [name for name in reached if matches(name, pattern)]
            if not found:
                raise InvalidModelError(
                    f"{argument('wrt')}: {pattern!r} matches no input and no initializer that {self._of!r} has a "
                    f"gradient for (those are {listed(reached)})."
                )
            names += found
        return names

    def _seed_input(self, graph: ir.Graph, infos: dict[ir.Value, TensorInfo], of: ir.Value) -> ir.Value:
        info = infos[of]
        if info.element_type is None or info.shape is None:
            raise InvalidModelError(
                f"{argument('of')}: the element type or the rank of {self._of!r} is not known, and the seed needs them "
                "(add its value_info to the model)."
            )
        seed = ir.Value(
            name=self._seed,
            type=ir.TensorType(ir.DataType(info.element_type)),
            shape=ir.Shape(info.shape),
        )
        infos[seed] = info
        graph.inputs.append(seed)
        return seed
