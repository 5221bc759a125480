# SPDX-License-Identifier: Apache-2.0
"""The gradients of a value, as further outputs of its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.gradients.backward import Backward
from lnbp_onnx.gradients.gradient_op import FLOATS
from lnbp_onnx.graphs.inference import Functions, infer
from lnbp_onnx.graphs.inline import inline_functions
from lnbp_onnx.graphs.names import names_in, unique_names
from lnbp_onnx.node import TensorInfo

OLDEST_OPSET = 13
"""The oldest default-domain opset whose operators the rules are written for."""

_NAMES_SHOWN = 10


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
        self, *, of: str, wrt: Sequence[str] | None = None, seed: str | None = None, patterns: bool = False
    ) -> None:
        """Take what `lnbp_onnx.gradient` does.

        Args:
            of: As there.
            wrt: As there.
            seed: As there.
            patterns: Whether `wrt` are patterns as the shell's. A pattern stands for all inputs and initializers of a
                floating type that it matches and that a gradient of `of` leads to; there must be one at least.
        """
        self._of = of
        self._patterns = patterns
        self._wrt = wrt
        self._seed = seed

    def call(self, model: ir.Model) -> GradientResult:
        """Rewrite the model in place.

        Raises:
            InvalidModelError: As `lnbp_onnx.gradient`; the model is left half-rewritten then.
        """
        opset = model.opset_imports.get("", 0)
        if opset < OLDEST_OPSET:
            raise InvalidModelError(
                f"The model's default-domain opset is {opset or 'not imported'}; gradients are written from "
                f"{OLDEST_OPSET} on (convert the model with onnx.version_converter)."
            )
        _inline_functions(model)
        graph = model.graph
        functions = Functions(model.functions.values())
        infos = infer(graph, functions, model.opset_imports)
        unique_name = unique_names(names_in(graph))
        backward = Backward(graph, infos, opset, unique_name)
        of = self._value(graph)
        sources = self._sources(graph, infos, backward, of)
        of = backward.with_bodies(of, sources, lambda: infer(graph, functions, model.opset_imports))
        seed = self._seed_input(graph, infos, of) if self._seed is not None else backward.scalar_one(of)
        if self._seed is not None and unique_name(self._seed) != self._seed:
            raise InvalidModelError(f"seed: the model has the name {self._seed!r} already (choose another one).")
        # First of all: what a caller can replace is no constant for the rules.
        for source in sources:
            if not source.is_graph_input():
                graph.inputs.append(source)
        gradients = backward.write(of, seed, sources)
        graph.outputs.extend(gradients)
        if any(node.domain == spec.DOMAIN for node in graph.all_nodes()):
            model.opset_imports.setdefault(spec.DOMAIN, spec.OP_VERSION)
        return GradientResult(model, True, tuple(str(gradient.name) for gradient in gradients))

    def _value(self, graph: ir.Graph) -> ir.Value:
        computed = {output.name: output for node in graph for output in node.outputs if output.name}
        if self._of not in computed:
            outputs = ", ".join(repr(output.name) for output in graph.outputs)
            raise InvalidModelError(
                f"of: no node of the main graph computes {self._of!r} (give the name of one of its values; the model's "
                f"outputs are {outputs or 'none'})."
            )
        return computed[self._of]

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
                    f"of: {self._of!r} depends on no initializer of a floating type (name inputs in wrt)."
                )
            return found
        values = {value.name: value for value in (*initializers.values(), *graph.inputs)}
        sources = []
        names = self._matched(values, infos, backward, of) if self._patterns else self._wrt
        for name in dict.fromkeys(names):
            if name not in values:
                raise InvalidModelError(
                    f"wrt: the main graph has neither an input nor an initializer {name!r} (correct the name)."
                )
            if infos[values[name]].element_type not in FLOATS:
                raise InvalidModelError(
                    f"wrt: {name!r} is not known to be of type float, double, float16 or bfloat16, and only such "
                    "tensors have gradients."
                )
            sources.append(values[name])
        if not sources:
            raise InvalidModelError("wrt: it is empty (name inputs or initializers, or leave it out).")
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
            found = [name for name in reached if name == pattern or fnmatchcase(name, pattern)]
            if not found:
                shown = [*map(repr, reached[:_NAMES_SHOWN]), *(["..."] if len(reached) > _NAMES_SHOWN else [])]
                raise InvalidModelError(
                    f"wrt: {pattern!r} matches no input and no initializer that {self._of!r} has a gradient for (those "
                    f"are {', '.join(shown) or 'none'})."
                )
            names += found
        return names

    def _seed_input(self, graph: ir.Graph, infos: dict[ir.Value, TensorInfo], of: ir.Value) -> ir.Value:
        info = infos[of]
        if info.element_type is None or info.shape is None:
            raise InvalidModelError(
                f"of: the element type or the rank of {self._of!r} is not known, and the seed needs them (add its "
                "value_info to the model)."
            )
        seed = ir.Value(
            name=self._seed,
            type=ir.TensorType(ir.DataType(info.element_type)),
            shape=ir.Shape(info.shape),
        )
        infos[seed] = info
        graph.inputs.append(seed)
        return seed


def _inline_functions(model: ir.Model) -> None:
    if not model.functions:
        return
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            imported = model.opset_imports.get(domain, version)
            if imported != version:
                raise InvalidModelError(
                    f"The function {function.domain}::{function.name} imports version {version} of domain "
                    f"{domain or 'ai.onnx'!r}, and the model {imported}; it cannot be inlined (convert one of them)."
                )
    inline_functions(model)
