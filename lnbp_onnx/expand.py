# SPDX-License-Identifier: Apache-2.0
"""Replacing nodes of the operator by their bodies, in place."""

import itertools
from collections.abc import Callable, Iterable

import onnx
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.body import build_body
from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.operators import Operator, Scope
from lnbp_onnx.replace import Replacement, replace_nodes

# Where a kernel was registered, ONNX Runtime writes an import of this version into every model that it saves.
_WRITTEN_BY_ONNXRUNTIME = 1000

DEFAULT_OPSET = 17
"""The default-domain opset that a model gets that imports none: LayerNormalization's."""


def check_version(model: ir.Model) -> None:
    """Refuse a model that imports another version of the operator's domain, itself or in a function.

    Raises:
        InvalidModelError: Where it does.
    """
    importers = {"model": model.opset_imports} | {
        f"function {function.domain}::{function.name}": function.opset_imports for function in model.functions.values()
    }
    for importer, opset_imports in importers.items():
        version = opset_imports.get(spec.DOMAIN)
        if version == _WRITTEN_BY_ONNXRUNTIME:
            version = opset_imports[spec.DOMAIN] = spec.OP_VERSION
        if version not in (None, spec.OP_VERSION):
            raise InvalidModelError(
                f"The {importer} imports version {version} of domain {spec.DOMAIN!r}; it must be {spec.OP_VERSION} "
                "(correct the import, or install a newer lnbp-onnx)."
            )


def import_default_domain(graph: ir.Graph, model: ir.Model) -> int:
    """Return the version of the default domain to write a model's graph or function in, and import it.

    A function is written in the model's version where its other nodes mean the same there: the checker wants that, and
    ONNX Runtime reads a function in the model's version. A model that has none, because all of its nodes are in
    functions, gets the function's: without one ONNX Runtime would read them in the newest.
    """
    opset, wanted = graph.opset_imports.get(""), model.opset_imports.get("", DEFAULT_OPSET)
    if opset is None or (opset != wanted and _mean_the_same(graph, opset, wanted)):
        opset = graph.opset_imports[""] = wanted
        needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)], ignore_unknown=True)
        model.ir_version = max(model.ir_version or 0, needed)
    model.opset_imports.setdefault("", opset)
    return opset


def _mean_the_same(graph: ir.Graph, a: int, b: int) -> bool:
    """Return whether the graph's operators are the same in two versions of the default domain."""
    op_types = {node.op_type for node in graph.all_nodes() if node.domain == ""}
    try:
        return all(
            onnx.defs.get_schema(op_type, a).since_version == onnx.defs.get_schema(op_type, b).since_version
            for op_type in op_types
        )
    except onnx.defs.SchemaError:
        return False


def expand(operators: Iterable[Operator], scope: Scope, model: ir.Model) -> None:
    """Replace operators of one scope by standard operators.

    Raises:
        InvalidNodeError: Where too little is known of a node, or the opset cannot express it.
        InvalidModelError: Where the scope's opset is too old or unknown.
    """
    opset = import_default_domain(scope.graph, model)
    unique_name = unique_names(names_in(scope.graph))
    replacements = []
    for operator in operators:
        node = operator.node
        label = node.name or next(output.name for output in node.outputs if output.name) or spec.OP_TYPE
        body = build_body(operator.parsed, node.inputs, opset, _after(label, unique_name))
        for new_node in body.nodes:
            new_node.metadata_props.update(node.metadata_props)
        replacements.append(Replacement(node, body.nodes, body.outputs))
    replace_nodes(replacements)


def _after(label: str, unique_name: Callable[[str], str]) -> Callable[[str], str]:
    return lambda step: unique_name(f"{label}/{step}")


def unique_names(taken: set[str | None]) -> Callable[[str], str]:
    """Return a function that makes names unique among those that are taken and those that it has given."""

    def unique_name(name: str) -> str:
        candidates = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
        unused = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(unused)
        return unused

    return unique_name


def names_in(graph: ir.Graph) -> set[str | None]:
    """Return the names of the values and nodes of a graph and its subgraphs."""
    taken: set[str | None] = set()
    for each in (graph, *graph.subgraphs()):
        taken.update(value.name for value in (*each.inputs, *each.initializers.values()))
        for node in each:
            taken.add(node.name)
            taken.update(value.name for value in (*node.outputs, *node.inputs) if value is not None)
    return taken
