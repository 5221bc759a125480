# SPDX-License-Identifier: Apache-2.0
"""A file that is no model is named, with what to do."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from weighted_models import weighted_model

import lnbp_onnx
from lnbp_onnx.files.model_io import load_model

MODEL = weighted_model(onnx.numpy_helper.from_array(np.ones(64, np.float32), "gamma"))
CONTENT = MODEL.SerializeToString()


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"content")
    return buffer.getvalue()


def tape() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("m.onnx"))
    return buffer.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
PYTHON = b"# exports\nimport torch\n\ntorch.onnx.export(module, x, 'm.onnx')\n"
TEXT = onnx.serialization.registry.get("textproto").serialize_proto(MODEL)
JSON = onnx.serialization.registry.get("json").serialize_proto(MODEL)

KINDS: dict[str, tuple[Callable[[], bytes] | bytes, str]] = {
    "empty": (b"", "empty; write or download it again"),
    "gzip": (gzip.compress(CONTENT), "gzip-compressed; unpack it first: gunzip"),
    "bzip2": (bz2.compress(CONTENT), "bzip2-compressed; unpack it first"),
    "xz": (lzma.compress(CONTENT), "xz-compressed; unpack it first"),
    "zip": (archive("m.onnx"), "a zip archive; unpack it first: unzip"),
    "tar": (tape, "a tar archive; unpack it first: tar xf"),
    "torch": (archive("archive/data.pkl", "archive/version"), "a PyTorch file; export the module to ONNX"),
    "old torch": (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"...", "a PyTorch file; export the module to ONNX"),
    "pickle": (pickle.dumps({"w": [1.0]}), "a pickle"),
    "safetensors": (safetensors, "a safetensors file, which holds weights and no graph"),
    "array": (array, "a NumPy array"),
    "cut off": (CONTENT[: len(CONTENT) // 2], "the beginning of a model: at least "),
    "Git LFS": (LFS, "a Git LFS pointer, not the model itself; run git lfs pull"),
    "page": (b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>", "a web page; download the file itself"),
    "Python": (PYTHON, "a Python file; run it to make the model"),
    "text like a field": (b"Before the model", "text; give the .onnx file"),
    "text": ("nothing é of interest".encode(), "text; give the .onnx file"),
    "textproto": (TEXT, "a model in protobuf's text format; give it a name that ends in .textproto"),
    "JSON": (JSON, "text, perhaps a model as JSON; then give it a name that ends in .json"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_model(tmp_path: Path, kind: str) -> None:
    content, expected = KINDS[kind]
    path = tmp_path / "m.onnx"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(lnbp_onnx.InvalidModelError) as error:
        load_model(path)
    assert str(error.value).startswith(f"{path}: is not an ONNX model (")
    assert f" It is {expected}" in str(error.value)


def test_every_beginning_of_a_model(tmp_path: Path) -> None:
    """Where it ends between two fields it may be a model; else it is one without a graph, or cut off."""
    path = tmp_path / "m.onnx"
    found = set()
    for length in range(1, len(CONTENT)):
        path.write_bytes(CONTENT[:length])
        try:
            load_model(path)
        except lnbp_onnx.InvalidModelError as error:
            found.add("cut off" if "It is the beginning of a model" in str(error) else str(error))
    assert found == {"cut off", f"{path}: is not an ONNX model (it holds no graph)."}


def test_other_bytes_are_given_no_name(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff\xfe\xfd not a model")
    with pytest.raises(lnbp_onnx.InvalidModelError, match="is not an ONNX model") as error:
        load_model(path)
    assert "It is" not in str(error.value)
