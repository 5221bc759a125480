# SPDX-License-Identifier: Apache-2.0
"""The reference against torch's autograd, and fuse on new exports; runs where torch is, which CI sees to."""

import math

import numpy as np
import pytest
from cases import SMALL_CASES, Case
from exported import assert_fused
from torch_exports import EXPORTS, export

import lnbp_onnx

torch = pytest.importorskip("torch")

CASES = [case for case in SMALL_CASES if case.t == "float" and 0 not in case.shape]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_torch_autograd(case: Case) -> None:
    arrays = {name: array.astype(np.float64) for name, array in case.arrays().items()}
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    norm = case.norm
    parameters = {}
    for name in ("gamma", "beta"):
        if name in tensors:
            tensor = tensors[name]
            flat = tensor.dim() == 1 and tensor.numel() == math.prod(norm)
            parameters[name] = tensor.reshape(norm) if flat else tensor.expand(norm)
    epsilon = float(np.float32(case.epsilon or 1e-5))
    y = torch.nn.functional.layer_norm(
        tensors["input_forward"], norm, parameters.get("gamma"), parameters.get("beta"), epsilon
    )
    y.backward(torch.tensor(arrays["output_delta"]))
    found = lnbp_onnx.layer_norm_backprop(
        arrays["input_forward"],
        arrays["output_delta"],
        arrays.get("gamma"),
        arrays.get("beta"),
        begin_norm_axis=case.axis,
        use_affine=case.affine,
        epsilon=epsilon,
        use_stats=False,
    )
    for name, result in zip(("input_forward", "gamma", "beta"), found, strict=True):
        if name in tensors and result is not None:
            np.testing.assert_allclose(result, tensors[name].grad.numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["affine", "two_axes_not_affine", "dynamic", "gamma_only", "gamma_constant", "half", "bfloat16", "rsqrt"],
)
def test_fuse_new_exports(name: str) -> None:
    """What is recorded in `tests/data/torch_exports` is what the exporter still writes, as far as fuse goes."""
    pytest.importorskip("onnxscript")
    onnxsim = pytest.importorskip("onnxsim")
    model, expected = export(EXPORTS[name])
    assert_fused(EXPORTS[name], model, expected)
    assert_fused(EXPORTS[name], onnxsim.simplify(model)[0], expected)
