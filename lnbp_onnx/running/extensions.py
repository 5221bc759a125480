# SPDX-License-Identifier: Apache-2.0
"""The native library's kernels handed to onnxruntime-extensions.

They join its domain ``ai.onnx.contrib``: a session that registers the library of onnxruntime-extensions, and no other,
runs them for nodes of that domain.
"""

import ctypes
import functools
from collections.abc import Iterable
from types import ModuleType

from onnx import ModelProto, NodeProto, helper

from lnbp_onnx import spec
from lnbp_onnx.errors import KernelError
from lnbp_onnx.graphs.operators import OPERATOR_ID
from lnbp_onnx.graphs.protos import graph_nodes
from lnbp_onnx.running import native

CONTRIB_DOMAIN = "ai.onnx.contrib"


def import_package(kernel: str) -> ModuleType:
    """Import onnxruntime_extensions for the named kernel.

    Raises:
        KernelError: Where the package is missing or cannot be imported.
    """
    try:
        import onnxruntime_extensions  # noqa: PLC0415 only two of the kernels need it
    except ImportError as error:
        raise KernelError(
            f"kernel={kernel!r} needs the package onnxruntime-extensions, which cannot be imported: {error} "
            "(run 'pip install onnxruntime-extensions', or use kernel='native', which does not need it)."
        ) from error
    package: ModuleType = onnxruntime_extensions
    return package


@functools.cache
def get_library_path() -> str:
    """Return the path of onnxruntime-extensions' library, to which this process's first call adds the operator.

    Raises:
        KernelError: Where onnxruntime-extensions or the native library is missing, or does not take the operator.
    """
    package = import_package("extensions")
    path: str = package.get_library_path()
    # ctypes never unloads a library, so the operators that extensions keeps pointers to stay.
    get_custom_ops = ctypes.CDLL(native.get_library_path()).LnbpGetCustomOps
    get_custom_ops.restype = ctypes.POINTER(ctypes.c_void_p)
    get_custom_ops.argtypes = [ctypes.POINTER(ctypes.c_size_t)]
    try:
        add_external_custom_op = ctypes.CDLL(path).AddExternalCustomOp
    except AttributeError as error:
        raise KernelError(
            f"onnxruntime-extensions {package.__version__} takes no operators of other libraries; "
            "0.15 does (upgrade it, or use kernel='native')."
        ) from error
    add_external_custom_op.restype = ctypes.c_bool
    add_external_custom_op.argtypes = [ctypes.c_void_p]
    count = ctypes.c_size_t()
    operators = get_custom_ops(ctypes.byref(count))
    for index in range(count.value):
        if not add_external_custom_op(operators[index]):
            raise KernelError(
                f"onnxruntime-extensions {package.__version__} refused the operator (use kernel='native')."
            )
    return path


def use_contrib_domain(model: ModelProto) -> None:
    """Move the operator's nodes, those of subgraphs and functions included, to domain ``ai.onnx.contrib``, in place.

    A model-local function that stands for the operator is removed, for the kernel takes its place.
    """
    functions = [function for function in model.functions if (function.domain, function.name) != OPERATOR_ID[:2]]
    for holder, nodes in ((model, model.graph.node), *((function, function.node) for function in functions)):
        if _move(nodes) and all(opset.domain != CONTRIB_DOMAIN for opset in holder.opset_import):
            holder.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
    kept = ModelProto(functions=functions)
    model.ClearField("functions")
    model.MergeFrom(kept)


def _move(nodes: Iterable[NodeProto]) -> bool:
    found = [node for node in graph_nodes(nodes) if (node.domain, node.op_type) == (spec.DOMAIN, spec.OP_TYPE)]
    for node in found:
        node.domain = CONTRIB_DOMAIN
    return bool(found)
