# SPDX-License-Identifier: Apache-2.0
"""The operator's definition as data: the one place that names its parts.

The schema, the operator's page, node parsing, ``make_node`` and the constants of the C++ library are
made from it.
"""

from dataclasses import dataclass
from typing import Final, Literal

from onnx import TensorProto

DOMAIN: Final = "lnbp"
OP_TYPE: Final = "LayerNormBackprop"
OP_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute with its default value; ``boolean`` marks an INT that must be 0 or 1."""

    name: str
    default: int | float
    doc: str
    boolean: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """An input or output, its type variable, and whether it may be omitted."""

    name: str
    type_variable: Literal["T", "P", "U"]
    optional: bool
    doc: str


BEGIN_NORM_AXIS: Final = Attribute(
    "begin_norm_axis",
    -1,
    "The first axis that is normalised; all axes from here to the last form one row. "
    "A negative value counts from the back. Range: [-r, r-1] with r = rank(input_forward).",
)
USE_AFFINE: Final = Attribute(
    "use_affine",
    1,
    "1: the forward operator scaled by gamma (and shifted by beta), gamma is required, and gamma_delta and "
    "beta_delta are available. 0: it did neither; gamma and beta are ignored.",
    boolean=True,
)
EPSILON: Final = Attribute(
    "epsilon",
    1e-5,
    "Added to the variance before the square root. Finite and greater than 0; with use_stats=1 it may be 0, "
    "for statistics that hold it already.",
)
USE_STATS: Final = Attribute(
    "use_stats",
    1,
    "1: mean and variance are inputs. 0: they are computed from input_forward, and the two inputs are ignored. "
    "It says only where they come from: in both cases they are functions of input_forward.",
    boolean=True,
)
ATTRIBUTES: Final = (BEGIN_NORM_AXIS, USE_AFFINE, EPSILON, USE_STATS)

INPUTS: Final = (
    Parameter("input_forward", "T", False, "The forward operator's input, of rank r >= 1."),
    Parameter(
        "output_delta",
        "T",
        False,
        "The gradient with respect to the forward operator's output; input_forward's shape.",
    ),
    Parameter(
        "gamma",
        "P",
        True,
        "The scale; required with use_affine=1. Any shape that broadcasts one way to the normalised axes, "
        "or 1-D with one element for each of their elements, read row-major.",
    ),
    Parameter(
        "beta",
        "P",
        True,
        "The shift. Its values never enter a gradient; its shape, as gamma's, is the shape of beta_delta.",
    ),
    Parameter(
        "mean",
        "U",
        True,
        "The mean of each row; required with use_stats=1. The shape of the axes before begin_norm_axis, "
        "or that with a 1 for each normalised axis, or 1-D with one element for each row.",
    ),
    Parameter(
        "variance",
        "U",
        True,
        "The (biased) variance of each row; required with use_stats=1. Shaped as mean may be, not necessarily alike.",
    ),
)
OUTPUTS: Final = (
    Parameter(
        "input_delta",
        "T",
        False,
        "The gradient with respect to input_forward; input_forward's shape.",
    ),
    Parameter(
        "gamma_delta",
        "P",
        True,
        "The gradient with respect to gamma; gamma's shape. Only with use_affine=1.",
    ),
    Parameter(
        "beta_delta",
        "P",
        True,
        "The gradient with respect to beta; beta's shape, or gamma's where beta is omitted. Only with use_affine=1.",
    ),
)
INPUT_NAMES: Final = tuple(parameter.name for parameter in INPUTS)
OUTPUT_NAMES: Final = tuple(parameter.name for parameter in OUTPUTS)

ELEMENT_TYPES: Final[tuple[int, ...]] = (
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
)
"""What T may be. P and U are each either T or float."""

TYPE_DOCS: Final = {
    "T": "Any numeric type. Everything is computed in double for double and the 32- and 64-bit integers, "
    "in float for the rest, and cast once at the end.",
    "P": "The type of the parameters: T or float.",
    "U": "The type of the statistics: T or float.",
}

_COMPUTED_IN_DOUBLE = frozenset(
    {
        TensorProto.DOUBLE,
        TensorProto.INT32,
        TensorProto.UINT32,
        TensorProto.INT64,
        TensorProto.UINT64,
    }
)


def compute_type(element_type: int) -> int:
    """Return the element type (``TensorProto.DOUBLE`` or ``FLOAT``) that T = `element_type` is computed in."""
    return TensorProto.DOUBLE if element_type in _COMPUTED_IN_DOUBLE else TensorProto.FLOAT


def type_name(element_type: int) -> str:
    """Return the name of an element type as ONNX's type strings write it, ``float16``, or else its number."""
    is_known = element_type in TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(element_type)).lower() if is_known else str(element_type)


DOC: Final = """
The gradient of layer normalisation (the backward operator of LayerNormalization): from the input of the forward
operator and the gradient with respect to its output, the gradients with respect to its input, scale and shift.

Let a be begin_norm_axis counted from the left. The axes before a form the rows, the axes from a on form the N
columns of a row. For a row x with upstream gradient dy:
```
use_stats=1:  d = x - mean                                 with mean and variance as given
use_stats=0:  d = x - mean(x); d = d - mean(d); variance = mean(d * d)

rstd  = 1 / sqrt(variance + epsilon)
xhat  = d * rstd
g     = dy * gamma                                         dy itself when use_affine=0
input_delta = rstd * (g - mean(g) - xhat * mean(g * xhat))
gamma_delta = sum of dy * xhat over the rows and over every axis along which gamma is broadcast
beta_delta  = sum of dy        over the rows and over every axis along which beta is broadcast
```
The statistics are functions of input_forward whether they are given or computed: this is the gradient of a training
step, not of a normalisation by constants.

Axes of length 0 are legal: without rows the parameter gradients are zero, without columns every output is empty, or
zero where gamma is broadcast. The result is cast to the output's type as Cast does it.
"""
