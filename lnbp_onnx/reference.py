# SPDX-License-Identifier: Apache-2.0
"""The operator in NumPy, written from the specification and sharing no arithmetic with the other ways.

`layer_norm_backprop` for arrays, and `LayerNormBackprop`, the same for ``onnx.reference.ReferenceEvaluator``.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import AttributeProto, TensorProto, helper
from onnx.reference.op_run import OpRun

from lnbp_onnx import spec
from lnbp_onnx.node import BackpropNode, TensorInfo, attribute_protos, describe, parse
from lnbp_onnx.schema import make_schema

Array: TypeAlias = NDArray[Any]


def layer_norm_backprop(
    input_forward: ArrayLike,
    output_delta: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    mean: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    *,
    begin_norm_axis: int = -1,
    use_affine: bool = True,
    epsilon: float = 1e-5,
    use_stats: bool = True,
) -> tuple[Array, Array | None, Array | None]:
    """Compute the gradient of layer normalisation.

    Shapes, types and the formula are those of the operator's page. Sums are accumulated in double, everything
    else is computed in the compute type.

    Args:
        input_forward: The forward operator's input, of rank >= 1 and one of the twelve types
            (``ml_dtypes.bfloat16`` for bfloat16).
        output_delta: The gradient with respect to the forward operator's output; `input_forward`'s shape and type.
        gamma: The scale; required with `use_affine`, ignored without.
        beta: The shift; only its shape counts.
        mean: The rows' means; required with `use_stats`, ignored without.
        variance: The rows' biased variances; required with `use_stats`, ignored without.
        begin_norm_axis: The first normalised axis; negative values count from the back.
        use_affine: Whether the forward operator scaled by gamma.
        epsilon: Added to the variance; rounded to float32 first.
        use_stats: Whether mean and variance are given.

    Returns:
        input_delta, gamma_delta and beta_delta; the last two are None without `use_affine`.

    Raises:
        InvalidNodeError: Where the specification refuses the call.

    Example:
        >>> import numpy as np
        >>> import lnbp_onnx
        >>> x, dy = np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, 0.0, 0.0]])
        >>> dx, dgamma, dbeta = lnbp_onnx.layer_norm_backprop(x, dy, gamma=np.ones(3), use_stats=False)
        >>> dx.round(3).tolist(), dgamma.round(3).tolist(), dbeta.tolist()
        ([[0.229, -0.344, 0.115]], [-1.069, 0.0, 0.0], [1.0, 0.0, 0.0])
    """
    operands = (input_forward, output_delta, gamma, beta, mean, variance)
    arrays = [None if operand is None else np.asarray(operand) for operand in operands]
    attributes = attribute_protos(begin_norm_axis, use_affine, epsilon, use_stats)
    return _compute(describe("", ()), attributes, arrays, [True, bool(use_affine), bool(use_affine)])


class LayerNormBackprop(OpRun):
    """The operator for ``ReferenceEvaluator(model, new_ops=[LayerNormBackprop])``.

    Example:
        >>> import numpy as np
        >>> from onnx.reference import ReferenceEvaluator
        >>> import onnx, lnbp_onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["": 17, "lnbp": 1]>
        ...     step (float[n, 64] x, float[n, 64] dy, float[64] gamma) => (float[n, 64] dx)
        ...     { dx = lnbp.LayerNormBackprop <use_stats = 0> (x, dy, gamma) }
        ... ''')
        >>> evaluator = ReferenceEvaluator(model, new_ops=[lnbp_onnx.LayerNormBackprop])
        >>> rows = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float32)
        >>> (dx,) = evaluator.run(None, {"x": rows[0], "dy": rows[1], "gamma": np.ones(64, np.float32)})
        >>> dx.shape
        (3, 64)
    """

    op_domain = spec.DOMAIN
    op_schema = make_schema()

    def _run(self, *inputs: Array | None, **attributes: Any) -> tuple[Array, ...]:
        protos = {name: helper.make_attribute(name, value) for name, value in attributes.items()}
        description = describe(self.onnx_node.name, self.output)
        # The evaluator keeps omitted outputs under the name of omitted inputs.
        present = [value if name else None for name, value in zip(self.onnx_node.input, inputs, strict=False)]
        results = _compute(description, protos, present, [bool(name) for name in self.output])
        # The evaluator wants an array for every output, also for one that has no name.
        empty = np.zeros(0, results[0].dtype)
        return tuple(empty if result is None else result for result in results[: len(self.output)])


def _compute(
    description: str,
    attributes: dict[str, AttributeProto],
    arrays: Sequence[Array | None],
    outputs: Sequence[bool],
) -> tuple[Array, Array | None, Array | None]:
    infos = [None if array is None else _info(array) for array in arrays]
    node = parse(description, attributes, infos, outputs)
    used = [array if info else None for array, info in zip(_padded(arrays), node.inputs, strict=True)]
    with np.errstate(all="ignore"):
        return _gradient(node, used)


def _info(array: Array) -> TensorInfo:
    try:
        element_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    except ValueError:
        element_type = TensorProto.UNDEFINED
    return TensorInfo(element_type, array.shape)


def _padded(arrays: Sequence[Array | None]) -> list[Array | None]:
    return [*arrays, *[None] * (len(spec.INPUTS) - len(arrays))]


def _gradient(node: BackpropNode, arrays: Sequence[Array | None]) -> tuple[Array, Array | None, Array | None]:
    input_forward, output_delta, gamma, beta, mean, variance = arrays
    assert input_forward is not None
    assert output_delta is not None
    compute = np.dtype(helper.tensor_dtype_to_np_dtype(spec.compute_type(node.element_type or 0)))
    shape = input_forward.shape
    norm = shape[node.begin_norm_axis :]
    num_rows, norm_size = math.prod(shape[: node.begin_norm_axis]), math.prod(norm)

    def row_mean(values: Array) -> Array:
        total = values.sum(axis=1, keepdims=True, dtype=np.float64)
        return np.asarray(total / np.float64(norm_size), compute)

    x = input_forward.astype(compute).reshape(num_rows, norm_size)
    dy = output_delta.astype(compute).reshape(num_rows, norm_size)
    if mean is not None and variance is not None:
        d = x - mean.astype(compute).reshape(num_rows, 1)
        v = variance.astype(compute).reshape(num_rows, 1)
    else:
        d = x - row_mean(x)
        d = d - row_mean(d)
        v = row_mean(d * d)
    rstd = compute.type(1) / np.sqrt(v + compute.type(node.epsilon))
    xhat = d * rstd
    g = dy if gamma is None else dy * _over_norm(gamma.astype(compute), norm).reshape(1, norm_size)
    dx = rstd * (g - row_mean(g) - xhat * row_mean(g * xhat))
    input_delta = _cast(dx.reshape(shape), input_forward.dtype)

    def parameter_delta(values: Array, like: Array) -> Array:
        total = values.sum(axis=0, dtype=np.float64).reshape(norm)
        return _cast(_sum_to_shape(total, like.shape).astype(compute), like.dtype)

    if gamma is None:
        return input_delta, None, None
    gamma_delta = parameter_delta(dy * xhat, gamma) if node.outputs[1] else None
    beta_delta = parameter_delta(dy, gamma if beta is None else beta) if node.outputs[2] else None
    return input_delta, gamma_delta, beta_delta


def _over_norm(parameter: Array, norm: tuple[int, ...]) -> Array:
    """Return gamma with the shape of the normalised axes."""
    if parameter.ndim == 1 and parameter.size == math.prod(norm):
        return parameter.reshape(norm)
    return np.broadcast_to(parameter, norm)


def _sum_to_shape(total: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which a parameter of `shape` is broadcast."""
    if len(shape) == 1 and total.size == shape[0]:
        return total.reshape(shape)
    padded = (1,) * (total.ndim - len(shape)) + shape
    axes = tuple(axis for axis, size in enumerate(padded) if size == 1)
    summed: Array = total.sum(axis=axes, keepdims=True)
    return summed.reshape(shape)


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Cast as ONNX's Cast does: to an integer toward zero, to a floating type to nearest even."""
    rounded: Array = np.trunc(values) if dtype.kind in "iu" else values
    cast: Array = rounded.astype(dtype)
    return cast
