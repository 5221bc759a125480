# SPDX-License-Identifier: Apache-2.0
"""The versions of domains that a model imports."""

import onnx
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError

# Where a kernel was registered, ONNX Runtime writes an import of this version into every model that it saves.
_WRITTEN_BY_ONNXRUNTIME = 1000

OLDEST_TO_TRAIN_IN = 13
"""The oldest default-domain opset that gradients and training steps are written in."""

# Those of opset 12 that do something else in 13, or take their attributes as inputs there.
_CHANGED_IN_13 = frozenset({"Hardmax", "LogSoftmax", "ReduceSum", "Softmax", "Split", "Squeeze", "Unsqueeze"})

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


def opset_to_train_in(model: ir.Model) -> int:
    """Return the default-domain opset of a model that gradients or a training step are written into.

    It is raised from 12 to 13 where the model's operators are the same in both, as they are but for a few. ONNX defined
    its operator Gradient in 12, so that models which hold it begin there.

    Raises:
        InvalidModelError: Where it is too old.
    """
    opset = model.opset_imports.get("", 0)
    changed: set[str] = set()
    if opset == OLDEST_TO_TRAIN_IN - 1:
        graphs = (model.graph, *(function.graph for function in model.functions.values()))
        changed = {node.op_type for graph in graphs for node in graph.all_nodes() if node.domain == ""} & _CHANGED_IN_13
        if not changed and not model.functions:
            opset = model.opset_imports[""] = OLDEST_TO_TRAIN_IN
            _raise_ir_version(model, opset)
    if opset < OLDEST_TO_TRAIN_IN:
        what = f", in which {', '.join(sorted(changed))} have another form" if changed else ""
        raise InvalidModelError(
            f"The model's default-domain opset is {opset or 'not imported'}; gradients and training steps are written "
            f"from {OLDEST_TO_TRAIN_IN} on{what} (convert the model with onnx.version_converter)."
        )
    return opset


def import_default_domain(graph: ir.Graph, model: ir.Model) -> int:
    """Return the version of the default domain to write a model's graph or function in, and import it.

    A function is written in the model's version where its other nodes mean the same there: the checker wants that, and
    ONNX Runtime reads a function in the model's version. A model that has none, because all of its nodes are in
    functions, gets the function's: without one ONNX Runtime would read them in the newest.
    """
    opset, wanted = graph.opset_imports.get(""), model.opset_imports.get("", DEFAULT_OPSET)
    if opset is None or (opset != wanted and _mean_the_same(graph, opset, wanted)):
        opset = graph.opset_imports[""] = wanted
        _raise_ir_version(model, opset)
    model.opset_imports.setdefault("", opset)
    return opset


def _raise_ir_version(model: ir.Model, opset: int) -> None:
    """Give a model the IR version that an opset of the default domain needs, if it has an older one."""
    needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)], ignore_unknown=True)
    model.ir_version = max(model.ir_version or 0, needed)


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
