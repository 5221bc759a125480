# SPDX-License-Identifier: Apache-2.0
"""What matching knows of the graph that it looks through."""

from dataclasses import dataclass

from lnbp_onnx.matching.constants import Constants
from lnbp_onnx.matching.semantics import Infos
from lnbp_onnx.matching.value_numbering import ValueNumbering
from lnbp_onnx.matching.work import Work


@dataclass(frozen=True, slots=True)
class KnownGraph:
    """What is known of a graph.

    Attributes:
        infos: The element types and shapes of its values.
        constants: Its constants.
        numbering: The numbers of its values.
        work: The work that may still be done in searching it.
    """

    infos: Infos
    constants: Constants
    numbering: ValueNumbering
    work: Work
