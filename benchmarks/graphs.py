# SPDX-License-Identifier: Apache-2.0
"""The ONNX models that are timed."""

import onnx
from onnx import TensorProto, helper, parser
from problem import EPSILON, Problem, Task

import lnbp_onnx

OPSET = 20

_INPUTS = ("input_forward", "output_delta", "gamma", "mean", "variance")
_OUTPUTS = ("input_delta", "gamma_delta", "beta_delta")

# As the operator's page writes it.
_NAIVE = f"""
    epsilon = Constant <value_float = {EPSILON!r}> ()
    epsilon_p = CastLike (epsilon, variance)
    shifted = Add (variance, epsilon_p)
    std = Sqrt (shifted)
    rstd = Reciprocal (std)
    d = Sub (x, mean)
    xhat = Mul (d, rstd)
    g = Mul (dy, gamma)
    mean_g = ReduceMean <keepdims = 1> (g, along_row)
    g_xhat = Mul (g, xhat)
    mean_g_xhat = ReduceMean <keepdims = 1> (g_xhat, along_row)
    projection = Mul (xhat, mean_g_xhat)
    g_less_mean = Sub (g, mean_g)
    centred = Sub (g_less_mean, projection)
    dx = Mul (rstd, centred)
    dy_xhat = Mul (dy, xhat)
    gamma_delta = ReduceSum <keepdims = 0> (dy_xhat, along_column)
    beta_delta = ReduceSum <keepdims = 0> (dy, along_column)
"""

# What torch.onnx.export(dynamo=True) of torch 2.13 makes of native_layer_norm_backward.
_EXPORTED = """
    d = Sub (x, mean)
    xhat = Mul (d, rstd)
    g = Mul (dy, gamma)
    g_by_n = Mul (g, n)
    sum_g = ReduceSum <keepdims = 1> (g, along_row)
    g_xhat = Mul (g, xhat)
    sum_g_xhat = ReduceSum <keepdims = 1> (g_xhat, along_row)
    projection = Mul (xhat, sum_g_xhat)
    less_sum = Sub (g_by_n, sum_g)
    centred = Sub (less_sum, projection)
    rstd_over_n = Div (rstd, n)
    dx = Mul (rstd_over_n, centred)
    dy_xhat = Mul (dy, xhat)
    gamma_delta = ReduceSum <keepdims = 0> (dy_xhat, along_column)
    beta_delta = ReduceSum <keepdims = 0> (dy, along_column)
"""


def operator(problem: Problem) -> onnx.ModelProto:
    """One LayerNormBackprop node."""
    x, dy, gamma, mean, variance = _INPUTS
    names: tuple[str, ...] = _INPUTS
    if problem.case == "computed":
        names, mean, variance = (x, dy, gamma), "", ""
    node = lnbp_onnx.make_node(
        x, dy, gamma=gamma, mean=mean, variance=variance, outputs=_OUTPUTS, epsilon=EPSILON, use_stats=bool(mean)
    )
    inputs = [_info(problem, name, array.shape) for name, array in problem.inputs.items() if name in names]
    outputs = [_info(problem, name, array.shape) for name, array in problem.new_outputs().items()]
    graph = helper.make_graph([node], "operator", inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(lnbp_onnx.DOMAIN, lnbp_onnx.OP_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def decomposed(problem: Problem) -> onnx.ModelProto:
    """The operator as the package rewrites it."""
    return lnbp_onnx.decompose(operator(problem))


def naive(problem: Problem) -> onnx.ModelProto:
    """The formula, one node for each of its operations."""
    return _gradient_model(problem, "variance", _NAIVE)


def exported(problem: Problem) -> onnx.ModelProto:
    """The graph of PyTorch's exporter."""
    return _gradient_model(problem, "rstd", _EXPORTED)


def product(problem: Problem) -> onnx.ModelProto:
    """One Mul of the two matrices."""
    m, n, t = problem.rows, problem.columns, problem.element_type
    return _parsed(
        f"product ({t}[{m},{n}] input_forward, {t}[{m},{n}] output_delta) => ({t}[{m},{n}] product)",
        "product = Mul (input_forward, output_delta)",
    )


def product_and_copies(problem: Problem) -> onnx.ModelProto:
    """One Mul and two Identity: the least that a session with the operator's outputs can cost."""
    m, n, t, p = problem.rows, problem.columns, problem.element_type, problem.parameter_type
    return _parsed(
        f"product_and_copies ({t}[{m},{n}] input_forward, {t}[{m},{n}] output_delta, {p}[{n}] gamma, {p}[{n}] beta)"
        f" => ({t}[{m},{n}] product, {p}[{n}] gamma_copy, {p}[{n}] beta_copy)",
        "product = Mul (input_forward, output_delta) gamma_copy = Identity (gamma) beta_copy = Identity (beta)",
    )


TASKS: dict[str, Task] = {"product": "product", "product_and_copies": "product and copies"}
"""What a model computes, by the name of its graph; all others compute the gradient."""


def _gradient_model(problem: Problem, spread: str, body: str) -> onnx.ModelProto:
    m, n, t, p = problem.rows, problem.columns, problem.element_type, problem.parameter_type
    # Half types are computed in float, with a Cast at each end, as the exporter does it.
    if t == p:
        before, after = "x = Identity (input_forward) dy = Identity (output_delta)", "input_delta = Identity (dx)"
    else:
        compute, stored = TensorProto.FLOAT, TensorProto.DataType.Value(t.upper())
        before = f"x = Cast <to = {compute}> (input_forward) dy = Cast <to = {compute}> (output_delta)"
        after = f"input_delta = Cast <to = {stored}> (dx)"
    return _parsed(
        f"gradient ({t}[{m},{n}] input_forward, {t}[{m},{n}] output_delta, {p}[{n}] gamma, {p}[{m},1] mean,"
        f" {p}[{m},1] {spread}) => ({t}[{m},{n}] input_delta, {p}[{n}] gamma_delta, {p}[{n}] beta_delta)"
        f" <int64[1] along_row = {{1}}, int64[1] along_column = {{0}}, {p} n = {{{n}}}>",
        before + body + after,
    )


def _parsed(signature: str, body: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 9, opset_import: ["" : {OPSET}]> {signature} {{ {body} }}')


def _info(problem: Problem, name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    is_matrix = name in ("input_forward", "output_delta", "input_delta")
    name_of_type = problem.element_type if is_matrix else problem.parameter_type
    return helper.make_tensor_value_info(name, TensorProto.DataType.Value(name_of_type.upper()), shape)
