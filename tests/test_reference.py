# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference against finite differences of the forward operator, and by its properties."""

import math
from typing import Any

import numpy as np
import pytest
from cases import CASES, OUTPUTS, Case
from hypothesis import given
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from strategies import problems

import lnbp_onnx

Array = np.ndarray[Any, Any]

ATTRIBUTE_CASES = [case for case in CASES if case.t == "float" and math.prod(case.shape) < 300 and 0 not in case.shape]


def forward(x: Array, gamma: Array | None, beta: Array | None, axis: int, epsilon: float) -> Array:
    """Layer normalisation as ONNX defines it, gamma and beta of the normalised shape or broadcast to it."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    norm = x.shape[axis % x.ndim :]
    mean = x.mean(axis=axes, keepdims=True)
    variance = np.square(x - mean).mean(axis=axes, keepdims=True)
    y = (x - mean) / np.sqrt(variance + epsilon)
    for parameter, combine in ((gamma, np.multiply), (beta, np.add)):
        if parameter is not None:
            flat = parameter.ndim == 1 and parameter.size == math.prod(norm)
            y = combine(y, parameter.reshape(norm) if flat else parameter)
    return y


def numerical_gradient(function: Any, at: Array) -> Array:
    """Central differences of a scalar function."""
    gradient = np.zeros_like(at)
    step = np.longdouble(2.0**-16)
    for index in np.ndindex(at.shape):
        values = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            values.append(function(moved))
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("case", ATTRIBUTE_CASES, ids=lambda case: case.name)
def test_finite_differences(case: Case) -> None:
    """Statistics are functions of the input, given or not: given ones are made from the input here."""
    arrays = {name: array.astype(np.longdouble) for name, array in case.arrays().items()}
    x, dy = arrays["input_forward"], arrays["output_delta"]
    gamma, beta = arrays.get("gamma"), arrays.get("beta")
    epsilon = float(np.float32(case.epsilon or 1e-5))
    axes = tuple(range(case.axis % x.ndim, x.ndim))
    stats: dict[str, Any] = {}
    if case.stats:
        mean = x.mean(axis=axes, keepdims=True)
        stats = {"mean": mean, "variance": np.square(x - mean).mean(axis=axes, keepdims=True)}
    found = lnbp_onnx.layer_norm_backprop(
        **{name: array.astype(np.float64) for name, array in (arrays | stats).items()},
        begin_norm_axis=case.axis,
        use_affine=case.affine,
        epsilon=epsilon,
        use_stats=case.stats,
    )

    def loss(x: Array, gamma: Array | None, beta: Array | None) -> Any:
        return (dy * forward(x, gamma, beta, case.axis, epsilon)).sum()

    expected = [numerical_gradient(lambda moved: loss(moved, gamma, beta), x)]
    if gamma is not None:
        expected.append(numerical_gradient(lambda moved: loss(x, moved, beta), gamma))
    if beta is not None:
        expected.append(numerical_gradient(lambda moved: loss(x, gamma, moved), beta))
    for result, gradient in zip(found, expected, strict=False):
        assert result is not None
        np.testing.assert_allclose(result, gradient.astype(np.float64), rtol=1e-6, atol=1e-6)


@given(problems())
def test_properties(case: Case) -> None:
    results = lnbp_onnx.layer_norm_backprop(
        **case.arrays(),
        begin_norm_axis=case.axis,
        use_affine=case.affine,
        epsilon=case.epsilon,
        use_stats=case.stats,
    )
    case.check({name: value for name, value in zip(OUTPUTS, results, strict=True) if value is not None})


@pytest.mark.parametrize("stats", [True, False])
def test_nan_stays_where_the_arithmetic_puts_it(stats: bool) -> None:
    """A NaN in the input: in its row for input_delta; in its column of gamma_delta where statistics are given."""
    case = Case("nan", (6, 8), stats=stats, poison=(("input_forward", 2 * 8 + 3, math.nan),))
    dx, dgamma, dbeta = lnbp_onnx.layer_norm_backprop(**case.arrays(), use_stats=stats)
    assert dgamma is not None
    assert dbeta is not None
    assert np.array_equal(np.isnan(dx).any(axis=1), np.arange(6) == 2)
    assert np.array_equal(np.isnan(dgamma), np.arange(8) == 3 if stats else np.ones(8, bool))
    assert np.isfinite(dbeta).all()


def test_infinity_in_the_gradient() -> None:
    case = Case("inf", (6, 8), poison=(("output_delta", 4 * 8 + 1, math.inf),))
    dx, dgamma, dbeta = lnbp_onnx.layer_norm_backprop(**case.arrays())
    assert dgamma is not None
    assert dbeta is not None
    assert np.array_equal(np.isfinite(dx).all(axis=1), np.arange(6) != 4)
    assert np.array_equal(np.isinf(dgamma), np.arange(8) == 1)
    assert np.array_equal(np.isinf(dbeta), np.arange(8) == 1)


def test_integers_are_exact_beyond_what_float_holds() -> None:
    """With one column and mean 0, variance 1, dy - mean(dy) - ... is 0; with use_affine the sum of dy is exact."""
    big = 2**52 + 1
    dy = np.array([[big], [-1]], np.int64)
    x = np.zeros((2, 1), np.int64)
    ones = np.ones(2, np.int64)
    _, _, dbeta = lnbp_onnx.layer_norm_backprop(x, dy, np.ones(1, np.int64), mean=ones, variance=ones)
    assert dbeta is not None
    assert dbeta[0] == big - 1


def test_defaults() -> None:
    """Those of the specification: the last axis, affine, 1e-5, given statistics."""
    arrays = Case("defaults", (3, 4, 6), mean=1.0).arrays()
    found = lnbp_onnx.layer_norm_backprop(*arrays.values())
    spelled = lnbp_onnx.layer_norm_backprop(**arrays, begin_norm_axis=2, use_affine=True, epsilon=1e-5, use_stats=True)
    for result, other in zip(found, spelled, strict=True):
        np.testing.assert_array_equal(result, other)


def test_what_the_attributes_make_unused_is_ignored() -> None:
    case = Case("unused", (3, 6), affine=False, stats=False)
    wrong = np.full(5, np.nan, np.float32)
    dx, dgamma, dbeta = lnbp_onnx.layer_norm_backprop(
        **case.arrays(), gamma=wrong, beta=wrong, mean=wrong, variance=wrong, use_affine=False, use_stats=False
    )
    case.check({"input_delta": dx})
    assert dgamma is dbeta is None


def test_beta_of_another_shape_than_gamma() -> None:
    case = Case("beta", (6, 3, 4, 5), axis=1, gamma_shape=(60,), beta_shape=(4, 1))
    results = lnbp_onnx.layer_norm_backprop(**case.arrays(), begin_norm_axis=1)
    case.check({name: array for name, array in zip(OUTPUTS, results, strict=True) if array is not None})


def test_shapes_are_checked() -> None:
    arrays = Case("shapes", (3, 4)).arrays()
    arrays["output_delta"] = arrays["output_delta"].reshape(4, 3)
    with pytest.raises(
        lnbp_onnx.InvalidNodeError, match=r"^LayerNormBackprop: input 'output_delta' has shape \[4, 3\]"
    ):
        lnbp_onnx.layer_norm_backprop(**arrays)


def test_omitted_outputs_are_not_omitted_inputs() -> None:
    """ONNX's evaluator keeps an output without a name, and hands it to the next node that omits an input."""
    arrays = {name: value for name, value in Case("omitted", (3, 4)).arrays().items() if name != "beta"}
    roles: dict[str, Any] = {name: name for name in ("gamma", "mean", "variance")}
    nodes = [
        lnbp_onnx.make_node("input_forward", "output_delta", outputs=["first", "", "beta_delta"], **roles),
        lnbp_onnx.make_node("input_forward", "first", outputs=["second", "", ""], **roles),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in arrays.items()]
    outputs = [helper.make_tensor_value_info("second", TensorProto.FLOAT, [3, 4])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(lnbp_onnx.DOMAIN, lnbp_onnx.OP_VERSION)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=opsets)
    [found] = ReferenceEvaluator(model, new_ops=[lnbp_onnx.LayerNormBackprop]).run(None, arrays)
    first, _, _ = lnbp_onnx.layer_norm_backprop(**arrays)
    expected, _, _ = lnbp_onnx.layer_norm_backprop(**arrays | {"output_delta": first})
    np.testing.assert_array_equal(found, expected)
