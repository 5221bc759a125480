# SPDX-License-Identifier: Apache-2.0
"""Several passes as one."""

from dataclasses import dataclass

import onnx_ir as ir


@dataclass
class InTurnResult(ir.passes.PassResult):
    """What came of the passes.

    Attributes:
        results: What each returned, in their order.
    """

    results: tuple[ir.passes.PassResult, ...]


class InTurn(ir.passes.InPlacePass):
    """Apply passes one after the other, to a model that is read once.

    ``onnx_ir.passes.Sequential`` does, and puts an error of its own in the place of a pass's.
    """

    def __init__(self, *passes: ir.passes.InPlacePass) -> None:
        self._passes = passes

    def call(self, model: ir.Model) -> InTurnResult:
        """Rewrite the model in place."""
        results = tuple(each(model) for each in self._passes)
        return InTurnResult(model, any(result.modified for result in results), results)
