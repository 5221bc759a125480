# SPDX-License-Identifier: Apache-2.0
"""A model is taken in any form wherever a model is taken."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto
from weighted_models import external, weighted_model, weights

import lnbp_onnx

FEEDS = {name: np.random.default_rng(seed).normal(size=(4, 64)).astype(np.float32) for seed, name in enumerate("xy")}
FEEDS["dy"] = FEEDS.pop("y")


def plain() -> ModelProto:
    return weighted_model(onnx.numpy_helper.from_array(weights(0), "gamma"))


def forms_of(model: ModelProto, path: Path) -> dict[str, ModelProto | ir.Model | str | Path | bytes]:
    onnx.save(model, path)
    serialised = model.SerializeToString()
    return {
        "proto": model,
        "ir": ir.from_proto(model),
        "bytes": serialised,
        "path": path,
        "str": str(path),
    }


@pytest.mark.parametrize("function", [lnbp_onnx.decompose, lnbp_onnx.embed, lnbp_onnx.fuse])
def test_functions_from_model_to_model(tmp_path: Path, function: Callable[..., ModelProto | ir.Model]) -> None:
    model = plain() if function is not lnbp_onnx.fuse else lnbp_onnx.decompose(plain())
    expected = function(model)
    assert isinstance(expected, ModelProto)
    assert expected != model
    for name, form in forms_of(model, tmp_path / "m.onnx").items():
        result = function(form)
        assert isinstance(result, ir.Model) == (name == "ir")
        proto = ir.to_proto(result) if isinstance(result, ir.Model) else result
        assert [node.op_type for node in proto.graph.node] == [node.op_type for node in expected.graph.node]
        assert name == "ir" or result == expected


def test_running(tmp_path: Path) -> None:
    model = plain()
    expected = lnbp_onnx.inference_session(model).run(None, FEEDS)
    for form in forms_of(model, tmp_path / "m.onnx").values():
        (result,) = lnbp_onnx.inference_session(form).run(None, FEEDS)
        np.testing.assert_array_equal(result, expected[0])
        assert lnbp_onnx.compare(form, model).ok
        assert lnbp_onnx.compare(model, form).ok


def test_a_path_s_data_is_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made of a file elsewhere runs where it is then."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"\0" * 64 + weights(0).tobytes())
    (folder / "m.onnx").write_bytes(weighted_model(external("gamma", [64], "w.bin", 64)).SerializeToString())
    monkeypatch.chdir(tmp_path)
    expected = lnbp_onnx.inference_session(plain()).run(None, FEEDS)
    for function in (lnbp_onnx.decompose, lnbp_onnx.embed):
        (result,) = lnbp_onnx.inference_session(function("elsewhere/m.onnx")).run(None, FEEDS)
        np.testing.assert_allclose(result, expected[0], rtol=1e-5, atol=1e-6)
    (folder / "w.bin").write_bytes(b"\0" * 64)
    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"tensor 'gamma' is at bytes 64 to 320 of 'w\.bin'"):
        lnbp_onnx.decompose(folder / "m.onnx")


@pytest.mark.parametrize("function", [lnbp_onnx.decompose, lnbp_onnx.embed, lnbp_onnx.fuse])
def test_what_is_no_model(tmp_path: Path, function: Callable[..., object]) -> None:
    for thing, message in (
        (None, "of type NoneType; it must be an onnx.ModelProto, an onnx_ir.Model, a path, or bytes"),
        (b"no model", "The 8 bytes are not an ONNX model"),
        (b"", r"The 0 bytes are not an ONNX model \(it holds no graph\)"),
        (tmp_path, "the file is a folder"),
        ("absent.onnx", "absent.onnx: expected an ONNX model, the file is not there"),
    ):
        with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
            function(thing)
