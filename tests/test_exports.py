# SPDX-License-Identifier: Apache-2.0
"""fuse on what PyTorch's exporter wrote, recorded; `tests/test_torch.py` exports anew."""

import pytest
from exported import assert_fused, is_runnable, optimised
from torch_exports import EXPORTS, recorded


@pytest.mark.parametrize("name", EXPORTS)
def test_as_exported(name: str) -> None:
    assert_fused(EXPORTS[name], *recorded(name))


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
@pytest.mark.parametrize("name", [name for name in EXPORTS if is_runnable(recorded(name)[0])])
def test_after_onnxruntime(name: str, level: str) -> None:
    model, expected = recorded(name)
    assert_fused(EXPORTS[name], optimised(model, level), expected)


@pytest.mark.parametrize("name", EXPORTS)
def test_after_onnxslim(name: str) -> None:
    onnxslim = pytest.importorskip("onnxslim")
    model, expected = recorded(name)
    assert_fused(EXPORTS[name], onnxslim.slim(model), expected)
