# SPDX-License-Identifier: Apache-2.0
"""What a file is that is no ONNX model, and what to do about it."""

import re

_TORCH = "a PyTorch file; export the module to ONNX, with torch.onnx.export or lnbp_onnx.interop.torch"
_COMPRESSED = "unpack it first"

# Where the bytes are, the bytes, what begins with them and what to do.
_SIGNATURES = [
    (0, b"\x1f\x8b", f"gzip-compressed; {_COMPRESSED}: gunzip"),
    (0, b"BZh", f"bzip2-compressed; {_COMPRESSED}: bunzip2"),
    (0, b"\xfd7zXZ\0", f"xz-compressed; {_COMPRESSED}: unxz"),
    (0, b"\x28\xb5\x2f\xfd", f"zstd-compressed; {_COMPRESSED}: unzstd"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_COMPRESSED}"),
    (257, b"ustar", f"a tar archive; {_COMPRESSED}: tar xf"),
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the model itself; run git lfs pull"),
    (0, b"\x93NUMPY", "a NumPy array; give the model, not its data"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes; convert it to ONNX with tf2onnx"),
    (0, b"GGUF", "a GGUF file, which holds weights and no graph; export the model to ONNX from where it came"),
    (4, b"ORTM", "a model in ONNX Runtime's own ORT format; give the .onnx file that it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model; convert it to ONNX with tf2onnx"),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", _TORCH),
]

_PYTHON = re.compile(r"^(#!.*python|import \w|from [\w.]+ import |def \w+\(|class \w+[(:])", re.MULTILINE)

# The fields of a ModelProto and their wire types: 0 a number, 2 anything with a length.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}


def described(content: bytes) -> str | None:
    """Return what the content of a file is that is no ONNX model, and what to do, or None where that is not known.

    It completes a sentence that begins with "It is".
    """
    if not content:
        return "empty; write or download it again"
    for position, signature, kind in _SIGNATURES:
        if content.startswith(signature, position):
            return kind
    if content.startswith(b"PK\x03\x04"):
        return _TORCH if b"data.pkl" in content[:4096] else f"a zip archive; {_COMPRESSED}: unzip"
    if content[:1] == b"\x80" and content[1:2] in b"\2\3\4\5" and content.endswith(b"."):
        return f"a pickle; if it is {_TORCH}"
    if content[8:10] == b'{"' and 2 <= int.from_bytes(content[:8], "little") <= len(content) - 8:
        return "a safetensors file, which holds weights and no graph; export the model to ONNX from where it came"
    return _described_text(content) or _cut_off(content)


def _described_text(content: bytes) -> str | None:
    beginning = content[:4096]
    try:
        text = beginning.decode()
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3:
            return None
        text = beginning[: error.start].decode()
    start = text.lstrip("\ufeff \t\r\n").lower()
    if not start or any(character < " " and character not in "\t\r\n\f" for character in text):
        return None
    if start.startswith(("<!doctype html", "<html", "<?xml", "<head")):
        return "a web page; download the file itself (of a page that shows it, the raw file)"
    if start.startswith("{") and '"graph"' in text:
        return "text, perhaps a model as JSON; then give it a name that ends in .json"
    if start.startswith(("ir_version:", "producer_name:", "graph {", "opset_import {")):
        return "a model in protobuf's text format; give it a name that ends in .textproto"
    if _PYTHON.search(text):
        return "a Python file; run it to make the model, and give the .onnx file that it writes"
    return "text; give the .onnx file"


def _cut_off(content: bytes) -> str | None:
    """Return what is known of a model that ends before its last field does."""
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        field, wire_type = tag >> 3, tag & 7
        if _MODEL_FIELDS.get(field) != wire_type:
            return None
        value, position = _varint(content, position)
        if wire_type == 2:
            position += value
    if position == len(content):
        return None
    return f"the beginning of a model: at least {position:,} bytes, of which {len(content):,} are here; copy it again"


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Return the number at a position and the position after it; past the end of the content where it is cut off."""
    value = 0
    for index, byte in enumerate(content[position : position + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    return value, len(content) + 1
