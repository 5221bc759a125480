# SPDX-License-Identifier: Apache-2.0
"""Imports that wait until they are needed: those of packages take most of the time of a short command."""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_LATE = frozenset(
    {
        # What commands do, of which --help does nothing.
        *("lnbp_onnx.api", "lnbp_onnx.cli.report", "lnbp_onnx.graphs.edit", "lnbp_onnx.passes"),
        *("lnbp_onnx.training.optimizers", "onnx_ir"),
        # What fuse alone does.
        *("lnbp_onnx.matching.rebuild", "lnbp_onnx.matching.search"),
        # onnx_ir imports sympy for arithmetic on symbolic dimensions, which no command does.
        *("sympy", "onnx_ir._symbolic_shapes"),
    }
)


class _Finder:
    """Finds modules as usual; their code runs at the first use of an attribute."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name in _LATE else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def import_lazily() -> None:
    """Have what not every command needs imported at its first use; for a process that runs one command."""
    sys.meta_path.insert(0, _Finder())
