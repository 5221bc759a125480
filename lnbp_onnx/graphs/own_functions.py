# SPDX-License-Identifier: Apache-2.0
"""Functions that a model calls like standard operators, kept apart from these while the model is rewritten."""

import contextlib
from collections.abc import Iterator

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError

_OWN_DOMAIN = "lnbp.own"


@contextlib.contextmanager
def own_functions_apart(model: ir.Model) -> Iterator[None]:
    """Move the functions of the default domain to a domain of their own, and back at the end.

    In between a node of the default domain is a standard operator. One that is called like such a function when the
    block ends is new, and would run the function.

    Raises:
        InvalidModelError: Where there is one.
    """
    own = {(name, overload) for domain, name, overload in model.functions if domain == ""}
    if not own:
        yield
        return
    _move(model, own, "", _OWN_DOMAIN)
    for opset_imports in _imports(model):
        opset_imports[_OWN_DOMAIN] = 1
    yield
    names = {name for name, _ in own}
    for node in _nodes(model):
        if node.domain == "" and node.op_type in names:
            raise InvalidModelError(
                f"The model has a function of its own that is called like the standard operator {node.op_type}, which "
                "is needed to rewrite the model (give the function another name or a domain)."
            )
    own = {(name, overload) for domain, name, overload in model.functions if domain == _OWN_DOMAIN}
    _move(model, own, _OWN_DOMAIN, "")
    for opset_imports in _imports(model):
        opset_imports.pop(_OWN_DOMAIN, None)


def _imports(model: ir.Model) -> list[dict[str, int]]:
    return [model.opset_imports, *(function.opset_imports for function in model.functions.values())]


def _move(model: ir.Model, functions: set[tuple[str, str]], source: str, target: str) -> None:
    for node in _nodes(model):
        if node.domain == source and (node.op_type, node.overload) in functions:
            node.domain = target
    moved = list(model.functions.values())
    for function in moved:
        if function.domain == source and (function.name, function.overload) in functions:
            function.domain = target
    model.functions.clear()
    model.functions.update({function.identifier(): function for function in moved})


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()
