# SPDX-License-Identifier: Apache-2.0
"""Model files: read without their external data, written whole or not at all.

The data files of a model stay where they are as long as the model does. A model written to another folder gets its
data streamed into one file beside it, under its own name. The path ``-`` is standard input or output; the external data
of a model from there, or from a pipe, is relative to the current folder.
"""

import contextlib
import errno
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from onnx import ModelProto, TensorProto
from onnx.serialization import registry

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.files.external_data import (
    ExternalData,
    Progress,
    chunks_of,
    external_data,
    external_tensors,
    laid_out,
    missing_data,
    refer,
    take_in,
)
from lnbp_onnx.files.file_kinds import described
from lnbp_onnx.files.new_files import LARGEST_PROTO, Replacement, kind_of, replacing, temporary_file
from lnbp_onnx.graphs import onnx_calls
from lnbp_onnx.graphs.faults import messages_in, text_fault_of
from lnbp_onnx.graphs.protos import initializers

__all__ = [
    "DEFAULT_SIZE_THRESHOLD",
    "STANDARD_STREAM",
    "Progress",
    "byte_size",
    "can_be_read_again",
    "check_model",
    "data_warnings",
    "has_external_data",
    "is_protobuf",
    "load_model",
    "runnable",
    "save_model",
]

DEFAULT_SIZE_THRESHOLD = 1024
"""The size in bytes from which a tensor is external data by default."""

STANDARD_STREAM = Path("-")
"""The path that is standard input where a model is read, and standard output where one is written."""

_DISPENSABLE = {"doc_string", "metadata_props", "name", "denotation"}
_FOLDER_FAULTS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR}


def load_model(path: Path) -> ModelProto:
    """Read a model without its external data.

    Args:
        path: A file, in a format that its name tells; a pipe; or ``-`` for standard input.

    Raises:
        InvalidModelError: Where the file is missing or is no ONNX model, or names external data outside its folder.
    """
    shown = _shown(path)
    try:
        model = parsed(_content(path), f"{shown}: is not an ONNX model", path)
        _external_data(model, path)
    except InvalidModelError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidModelError(f"{shown}: expected an ONNX model, the file is not there (check the path).") from error
    except OSError as error:
        raise InvalidModelError(f"{shown}: cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # a name with NUL, or one that the file system cannot write
        raise InvalidModelError(f"{shown!r} is not the name of a file: {error}.") from error
    except MemoryError as error:
        raise InvalidModelError(f"{shown}: cannot be read: there is too little memory for it.") from error
    return model


def can_be_read_again(path: Path) -> bool:
    """Return whether a path is that of a file: what comes through a pipe or standard input can be read once."""
    # Path.is_file() fails at a name that is too long.
    return path != STANDARD_STREAM and os.path.isfile(path)


def is_protobuf(path: Path) -> bool:
    """Return whether the name of a file tells that it is in the format that runtimes read."""
    return _format(path) == "protobuf"


def data_warnings(model: ModelProto, source: Path) -> list[str]:
    """Return a sentence for each data file of a model that is missing or shorter than the model says.

    Args:
        model: A model that was read from `source`.
        source: Where it was read from.
    """
    return missing_data([data for _, data in _external_data(model, source)], _shown_folder(source))


def load_data(model: ModelProto, source: Path) -> None:
    """Put the external data of a model that was read from `source` into it.

    Raises:
        InvalidModelError: Where it is missing, or not what the model says.
    """
    found = _external_data(model, source)
    faults = missing_data([data for _, data in found], _shown_folder(source))
    if faults:
        raise InvalidModelError(f"{_shown(source)}: {' '.join(faults)}")
    for tensor, data in found:
        take_in(tensor, data)


def save_model(
    model: ModelProto,
    target: Path,
    source: Path,
    *,
    size_threshold: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model that was read from `source`; it takes its place together with its data, or not at all.

    External data in `source`'s folder is left where it is when `target` is in the same folder, and streamed to one
    file named after `target` when it is in another. That file is new: no file is written over. The data file of the
    `target` that is replaced is removed when no other model in its folder, or in one above, refers to it, and kept when
    it holds the same bytes. `model` is changed where its tensors become external.

    Args:
        model: The model; its external tensors are those of `source`.
        target: Where to write it; ``-`` for standard output, where external data must stay where it is.
        source: Where it was read from.
        size_threshold: Initializers of at least this many bytes become external data. None leaves them in the model,
            unless it is too large for one file (2 GB).
        progress: Told of the external data written.

    Raises:
        InvalidModelError: Where a file cannot be read or written.
        BrokenPipeError: Where no one reads standard output any more.
    """
    shown = target
    try:
        if target == STANDARD_STREAM:
            _write_to_standard_output(model, source, size_threshold)
            return
        try:
            target = Path(os.path.realpath(target))
        except ValueError as error:  # NUL, or what the file system cannot write
            raise InvalidModelError(f"{str(shown)!r} is not the name of a file: {error}.") from error
        with replacing(target) as replacement:
            found = _external_data(model, source)
            moved = _externalise(model, found, target, source, size_threshold, progress, replacement)
            external = [*(tensor for tensor, _ in found), *moved]
            if external and target.parent != _folder(shown):
                raise InvalidModelError(
                    f"{shown} is a link to {target}: external data cannot be beside both (give the name of a file, or "
                    "remove the link)."
                )
            written = external_data(external, [target.parent], _shown(target))
            referred = {data.path for data in (*(data for _, data in found), *written)}
            replacement.write_model(_serialised(model, target), referred)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in _FOLDER_FAULTS and shown != STANDARD_STREAM:
            raise InvalidModelError(
                f"{shown.parent} cannot be written to: {error.strerror} (give OUT elsewhere)."
            ) from error
        name = "Standard output" if shown == STANDARD_STREAM else shown
        raise InvalidModelError(f"{name}: cannot be written: {error.strerror or error}.") from error
    except MemoryError as error:
        raise InvalidModelError(f"{shown}: cannot be written: there is too little memory for it.") from error


@contextlib.contextmanager
def runnable(model: ModelProto, source: Path) -> Iterator[ModelProto | Path]:
    """Give what a runtime can load of a model that was read from `source`: itself, or a file beside its data.

    Raises:
        InvalidModelError: Where the file cannot be written.
    """
    if not has_external_data(model):
        yield model
        return
    with contextlib.ExitStack() as stack:
        folder = _folder(source)
        try:
            name = "model" if source == STANDARD_STREAM else source.name
            content = _serialised(model, Path("model.onnx"))
            path = stack.enter_context(temporary_file(folder, name, ".onnx", content))
        except OSError as error:
            raise InvalidModelError(
                f"{folder} cannot be written to: {error.strerror or error} (to run a model with external data, "
                "a file must be made beside the data)."
            ) from error
        yield path


def check_model(model: ModelProto) -> None:
    """Check a model with onnx's checker and strict inference, where it is not too large for these.

    Raises:
        InvalidModelError: Where they refuse it.
    """
    if byte_size(model) > LARGEST_PROTO:
        return
    onnx_calls.check_model(model)


def byte_size(message: ModelProto | TensorProto) -> int:
    """Return the size in bytes of a message, or one that is too large where protobuf can neither write nor measure."""
    try:
        size: int = message.ByteSize()
    except Exception:  # protobuf's EncodeError is not in all of its versions
        return LARGEST_PROTO + 1
    return size


def has_external_data(model: ModelProto) -> bool:
    """Return whether any tensor of the model is in a file of its own."""
    return bool(external_tensors(model))


def _shown(path: Path) -> str:
    return "Standard input" if path == STANDARD_STREAM else str(path)


def _folder(source: Path) -> Path:
    """Return the folder that a model's external data is relative to, links in its path resolved.

    Of a model that is a link, that is the folder of the link, as for onnx and ONNX Runtime.
    """
    if source == STANDARD_STREAM or (source.exists() and not source.is_file()):
        return Path.cwd().resolve()
    return Path(os.path.realpath(source.parent))


def _shown_folder(source: Path) -> str:
    return "the current folder" if _folder(source) == _folder(STANDARD_STREAM) else "the model's folder"


def _folders(source: Path) -> list[Path]:
    """Return that folder, and the one that a model which is a link is in: in caches, its data are links there too."""
    return [_folder(source), Path(os.path.realpath(source)).parent]


def _content(path: Path) -> bytes:
    shown = _shown(path)
    if path == STANDARD_STREAM:
        if sys.stdin is None:
            raise InvalidModelError("Standard input is closed; give the path of a model.")
        return _read_stream(sys.stdin.buffer, shown)
    status = path.stat()
    kind = kind_of(status)
    if kind == "a pipe":
        with path.open("rb") as file:
            return _read_stream(file, shown)
    if kind is not None:
        raise InvalidModelError(f"{shown}: expected an ONNX model, the file is {kind} (check the path).")
    if status.st_size > LARGEST_PROTO:
        raise _too_large(shown)
    return path.read_bytes()


def _read_stream(stream: IO[bytes], shown: str) -> bytes:
    chunks, size = [], 0
    for chunk in iter(partial(stream.read, 2**20), b""):
        if chunk is None:  # a pipe that does not block, and is empty
            select.select([stream], [], [])
            continue
        chunks.append(chunk)
        size += len(chunk)
        if size > LARGEST_PROTO:
            raise _too_large(shown)
    return b"".join(chunks)


def _too_large(shown: str) -> InvalidModelError:
    return InvalidModelError(
        f"{shown}: has more than {LARGEST_PROTO:,} bytes, which no ONNX file has; larger models have external data "
        "(give the .onnx file, not its data file)."
    )


def parsed(content: bytes, complaint: str, path: Path = Path("model.onnx")) -> ModelProto:
    """Return the model in a file's content.

    Args:
        content: The content.
        complaint: What the error begins with.
        path: The file, whose name tells the format.

    Raises:
        InvalidModelError: Where there is none.
        MemoryError: Where there is too little memory for it.
    """
    reason = "it holds no graph"
    try:
        with _without_warnings():
            model: ModelProto = _serializer(path).deserialize_proto(content, ModelProto())
    except MemoryError:
        raise
    except Exception as error:  # each format has its own parser with its own exceptions
        reason = str(error)
        if "alloc failed" in reason:  # protobuf has no exception of its own for this
            raise MemoryError(reason) from error
    else:
        if model.HasField("graph"):
            text_fault = text_fault_of(model)
            if text_fault is None:
                return model
            raise InvalidModelError(f"{complaint} ({text_fault}).")
    kind = described(content)
    raise InvalidModelError(f"{complaint} ({reason})." + ("" if kind is None else f" It is {kind}."))


def _format(path: Path) -> str:
    return registry.get_format_from_file_extension(path.suffix) or "protobuf"


def _serializer(path: Path) -> Any:
    return registry.get(_format(path))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep back that onnx calls one of its formats experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _serialised(model: ModelProto, target: Path) -> bytes:
    """Return a model in the format that the name of a file tells.

    Raises:
        InvalidModelError: Where it is too large for one file, or the format cannot hold it.
    """
    if byte_size(model) > LARGEST_PROTO:
        raise InvalidModelError(
            "The model has more than 2 GB beside its initializers, which no ONNX file can have (make its Constant "
            "nodes initializers)."
        )
    try:
        with _without_warnings():
            content: bytes = _serializer(target).serialize_proto(model)
            if not is_protobuf(target):
                lost = _fields_in(model) - _fields_in(_serializer(target).deserialize_proto(content, ModelProto()))
                if lost:
                    raise ValueError(f"it leaves out {', '.join(sorted(lost))}")
    except MemoryError:
        raise
    except Exception as error:  # each format has its own exceptions
        raise InvalidModelError(
            f"The format that {target.suffix or '.onnx'} stands for cannot hold this model ({error}); give a name that "
            "ends in .onnx or .textproto."
        ) from error
    return content


def _fields_in(model: ModelProto) -> set[str]:
    """Return which fields a model uses, but for those that only document it, or that others can stand for."""
    return {
        f"{message.DESCRIPTOR.name}.{field.name}"
        for message in messages_in(model)
        for field, value in message.ListFields()
        if value and field.name not in _DISPENSABLE and not field.name.endswith("_data")
    }


def _write_to_standard_output(model: ModelProto, source: Path, size_threshold: int | None) -> None:
    if sys.stdout is None or sys.stdout.isatty():
        state = "closed" if sys.stdout is None else "a terminal"
        raise InvalidModelError(f"Standard output is {state}; give the name of a file, or a pipe.")
    if has_external_data(model) and _folder(source) != _folder(STANDARD_STREAM):
        raise InvalidModelError(
            f"The model has external data in {_folder(source)}, which a model on standard output would seek in the "
            "current folder (give the name of a file, or run this in that folder)."
        )
    if size_threshold is not None or byte_size(model) > LARGEST_PROTO:
        raise InvalidModelError("Standard output holds no external data (give the name of a file).")
    sys.stdout.flush()
    # Without a buffer, whose rest Python would try to write once more at its end.
    stream = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    view = memoryview(_serialised(model, Path("model.onnx")))
    while view:
        written = stream.write(view)
        if written is None:  # a pipe that does not block, and is full
            select.select([], [stream], [])
        else:
            view = view[written:]


def _externalise(
    model: ModelProto,
    found: Sequence[tuple[TensorProto, ExternalData]],
    target: Path,
    source: Path,
    size_threshold: int | None,
    progress: Progress | None,
    replacement: Replacement,
) -> list[TensorProto]:
    """Write the data file that a model needs beside `target`, and make its tensors refer to it.

    Returns:
        Those that were in the model before.
    """
    if size_threshold is None and byte_size(model) > LARGEST_PROTO:
        size_threshold = DEFAULT_SIZE_THRESHOLD
    moved: list[tuple[TensorProto, TensorProto | ExternalData]] = []
    stays = _folder(source) == target.parent
    for tensor, data in found:
        if not (stays and data.path.is_relative_to(target.parent)):
            moved.append((tensor, data))
    faults = missing_data((data for _, data in moved if isinstance(data, ExternalData)), _shown_folder(source))
    if faults:
        raise InvalidModelError(faults[0])
    if size_threshold is not None:
        # Not the tensors of attributes: a runtime needs those to infer shapes, and does not look for them in files.
        moved += [
            (tensor, tensor)
            for tensor in initializers(model.graph)
            if tensor.data_location != TensorProto.EXTERNAL
            and tensor.data_type != TensorProto.STRING
            and byte_size(tensor) >= size_threshold
        ]
    if not moved:
        return []
    # Tensors that are the same bytes of the same file stay shared.
    contents = {_identity(content): content for _, content in moved}
    parts = dict(zip(contents, laid_out(contents.values()), strict=True))
    location = replacement.write_data(partial(chunks_of, list(parts.values()), progress))
    for tensor, content in moved:
        refer(tensor, location, parts[_identity(content)])
    return [tensor for tensor, content in moved if content is tensor]


def _external_data(model: ModelProto, source: Path) -> list[tuple[TensorProto, ExternalData]]:
    """Return the tensors of a model whose bytes are in files of their own, each with where they are."""
    tensors = external_tensors(model)
    return list(zip(tensors, external_data(tensors, _folders(source), _shown(source)), strict=True))


def _identity(content: TensorProto | ExternalData) -> object:
    if isinstance(content, ExternalData):
        return content.path, content.offset, content.length
    return id(content)
