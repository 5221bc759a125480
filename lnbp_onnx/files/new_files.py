# SPDX-License-Identifier: Apache-2.0
"""New files beside old ones: made under names that nothing has, and in place whole or not at all.

Whatever ends the writing, an error or a signal, the old files are as they were or the new ones are there; only a
process that is killed outright leaves a file behind.
"""

import contextlib
import os
import re
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from onnx.serialization import registry

from lnbp_onnx.errors import InvalidModelError

_LONGEST_NAME = 255
_LONGEST_DATA_SUFFIX = len(".99999.data")
# What no format of text escapes; every name of a data file has some.
_UNESCAPED = re.compile(r"[\w .+-]+", re.ASCII)

LARGEST_PROTO = 2**31 - 1
"""The most bytes that a file of protobuf can have, and so a model without its external data."""

CHUNK = 2**24
"""How many bytes are read or written at once."""

# SIGINT first: while it is held back, nothing interrupts what is done about the others.
_ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _EndedBySignal(BaseException):
    """A signal arrived that ends the process, as soon as its files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Replacement:
    """The new files of one target, a model and at most one data file, and the old ones that they replace."""

    def __init__(self, target: Path, between_steps: Callable[[], None]) -> None:
        self._target = target
        self._between_steps = between_steps
        self._replaced = _replaceable(target)
        self._model = _temporary_path(target.parent, target.name, ".tmp")
        self._data: Path | None = None
        self._kept: Path | None = None
        self._in_place = False
        self._outdated: list[Path] = []

    def write_data(self, chunks: Callable[[], Generator[bytes | memoryview, None, None]]) -> str:
        """Write a data file under a name after the target's that nothing has, and return the name.

        Where the target's present data file holds the same bytes, it stays and its name is returned.
        """
        for old in self._data_files_of_target():
            with contextlib.closing(chunks()) as expected:
                if old.stat().st_nlink == 1 and self._holds(old, expected):
                    self._kept = old
                    return old.name
        for path in _data_paths(self._target):
            try:
                file = self._create(path)
            except FileExistsError:
                continue
            self._data = path
            with contextlib.closing(chunks()) as content:
                self._fill(file, content)
            return path.name
        raise AssertionError("there is always another name")

    def write_model(self, content: bytes, data: Container[Path]) -> None:
        """Write the new model, for now under a temporary name; `data` are files that stay, since it refers to them."""
        view = memoryview(content)
        self._fill(self._create(self._model), (view[start : start + CHUNK] for start in range(0, len(view), CHUNK)))
        self._outdated = [path for path in self._data_files_of_target() if path not in data]

    def put_in_place(self) -> None:
        """Give the new model its name, by which its data file is the target's too."""
        if self._kept is not None and not self._kept.exists():
            raise InvalidModelError(
                f"{self._target}: another program replaced it at the same time, and its data file with it (try again)."
            )
        os.replace(self._model, self._target)
        self._in_place = True

    def discard(self) -> None:
        """Remove the new files, unless they are in place."""
        if not self._in_place:
            for path in (self._model, self._data):
                if path is not None:
                    with contextlib.suppress(OSError):
                        path.unlink()

    def remove_outdated_data(self) -> None:
        """Remove the data files that only the old model referred to; in doubt, they stay."""
        with contextlib.suppress(OSError, MemoryError):  # what was asked for is done
            _sync_folder(self._target.parent)
            for path in self._outdated:
                # Another program may have replaced the model once more, by one that refers to the old data.
                if not self._is_used(path) and not self._mentions(self._target, path.name):
                    path.unlink()

    def _create(self, path: Path) -> BinaryIO:
        """Open a new file with the owner and permissions of what it replaces, or the default ones."""
        mode = 0o666 if self._replaced is None else 0o600
        file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        if self._replaced is not None:
            try:
                _adopt(file.fileno(), self._replaced)
            except BaseException:
                file.close()
                path.unlink()
                raise
        return file

    def _fill(self, file: BinaryIO, chunks: Iterable[bytes | memoryview]) -> None:
        with file:
            for chunk in chunks:
                self._between_steps()
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def _holds(self, path: Path, chunks: Iterable[bytes | memoryview]) -> bool:
        """Return whether a file holds these bytes and no others."""
        with path.open("rb") as file:
            for chunk in chunks:
                self._between_steps()
                if file.read(len(chunk)) != chunk:
                    return False
            return not file.read(1)

    def _data_files_of_target(self) -> list[Path]:
        """Return the files that are named as data files of the target are, and that the target refers to."""
        if self._replaced is None:
            return []
        pattern = re.compile(rf"{re.escape(_data_stem(self._target))}(\.\d+)?\.data")
        try:
            with os.scandir(self._target.parent) as entries:
                named = [Path(entry) for entry in entries if pattern.fullmatch(entry.name) and _is_plain(entry)]
            return sorted(path for path in named if self._mentions(self._target, path.name))
        except PermissionError:  # one may be allowed to write what one cannot read
            return []

    def _is_used(self, data: Path) -> bool:
        """Return whether another file of the folder, or a model in a folder above, may refer to a data file."""
        with os.scandir(data.parent) as entries:
            for entry in entries:
                if entry.is_symlink() and os.path.realpath(entry) == str(data):
                    return True
                # Data files may be large, and refer to nothing.
                if entry.name in (data.name, self._target.name) or entry.name.endswith(".data"):
                    continue
                if self._may_mention(entry, data.name):
                    return True
        for folder in data.parent.parents:
            with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
                for entry in entries:
                    if registry.get_format_from_file_extension(Path(entry).suffix) and self._may_mention(
                        entry, data.name
                    ):
                        return True
        return False

    def _may_mention(self, entry: os.DirEntry[str], name: str) -> bool:
        if not entry.is_file() or entry.stat().st_size > LARGEST_PROTO:
            return False
        if not entry.name.endswith(".onnx"):
            name = max(_UNESCAPED.findall(name), key=len)
        return self._mentions(Path(entry), name)

    def _mentions(self, path: Path, name: str) -> bool:
        """Return whether the bytes of a name are anywhere in a file, as those of a location are in a model."""
        sought, tail = os.fsencode(name), b""
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                self._between_steps()
                if sought in tail + chunk:
                    return True
                tail = chunk[-len(sought) :]
        return False


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Replacement]:
    """Give what makes the new files of `target`, a path without links; they are in place when the block ends well.

    Signals that end the process are held back until the files are in place or removed.

    Raises:
        InvalidModelError: Where `target` is no file, or read-only.
        OSError: Where a file cannot be written.
    """
    with _signals_held() as between_steps:
        replacement = Replacement(target, between_steps)
        try:
            yield replacement
            replacement.put_in_place()
        except BaseException:
            replacement.discard()
            raise
        replacement.remove_outdated_data()


@contextlib.contextmanager
def temporary_file(folder: Path, name: str, suffix: str, content: bytes) -> Iterator[Path]:
    """Give a file that only its owner can read, and that is there until the block is left.

    Raises:
        OSError: Where it cannot be written.
    """
    path = _temporary_path(folder, name, suffix)
    with _signals_raised():
        try:
            with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(content)
            yield path
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def kind_of(status: os.stat_result) -> str | None:
    """Return what something is that is no file, with its article, or None for a file."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return None if stat.S_ISREG(status.st_mode) else kinds.get(stat.S_IFMT(status.st_mode), "no file")


def _replaceable(target: Path) -> os.stat_result | None:
    """Return the state of the file that is to be replaced, or None where there is none.

    Root can write everything: for it as for others, a file without permission to write is not to be written.
    """
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    kind = kind_of(status)
    if kind is not None:
        raise InvalidModelError(f"{target} is {kind}; give the name of a file as OUT.")
    if not status.st_mode & 0o222 or not os.access(target, os.W_OK):
        is_of_file_system = os.statvfs(target).f_flag & os.ST_RDONLY
        way_out = "" if is_of_file_system else "make it writable (chmod u+w), or "
        place = " as its file system is" if is_of_file_system else ""
        raise InvalidModelError(f"{target} is read-only{place}; {way_out}give OUT elsewhere.")
    return status


def _adopt(descriptor: int, replaced: os.stat_result) -> None:
    """Give a new file the owner and the permissions of another, and no one more permissions than that one gave."""
    mode = stat.S_IMODE(replaced.st_mode) & 0o777
    made = os.fstat(descriptor)
    if made.st_uid != replaced.st_uid:
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, replaced.st_uid, -1)
    if made.st_gid != replaced.st_gid:
        try:
            os.fchown(descriptor, -1, replaced.st_gid)
        except PermissionError:
            mode &= ~0o070
    os.fchmod(descriptor, mode)


def _temporary_path(folder: Path, name: str, suffix: str) -> Path:
    ending = f".{secrets.token_hex(8)}{suffix}"
    return folder / f".{_cut(name, _LONGEST_NAME - len(ending) - 1)}{ending}"


def _data_paths(target: Path) -> Iterator[Path]:
    stem, count = _data_stem(target), 1
    yield target.with_name(f"{stem}.data")
    while True:
        count += 1
        yield target.with_name(f"{stem}.{count}.data")


def _data_stem(target: Path) -> str:
    return _cut(target.name, _LONGEST_NAME - _LONGEST_DATA_SUFFIX)


def _cut(name: str, length: int) -> str:
    """Return the beginning of a name, of at most so many bytes in UTF-8; what is not UTF-8 becomes underscores."""
    return os.fsencode(name)[:length].decode(errors="replace").replace("\ufffd", "_")


def _is_plain(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _signals_held() -> Iterator[Callable[[], None]]:
    """Hold back the signals that end the process; the function given lets those through that have arrived.

    Elsewhere than in the main thread signals have no handlers, and no exception comes from them.
    """
    previous: dict[int, Any] = {}
    pending: list[int] = []
    ended_by: int | None = None

    def let_through() -> None:
        while pending:
            number = pending.pop(0)
            if callable(previous[number]):
                previous[number](number, None)
            else:
                raise _EndedBySignal(number)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING_SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler) or handler == signal.SIG_DFL:
                    previous[number] = handler
                    signal.signal(number, lambda number, _: pending.append(number))
        yield let_through
    except _EndedBySignal as ended:
        ended_by = ended.number
    finally:
        for number, handler in reversed(previous.items()):
            signal.signal(number, handler)
        for number in pending:
            signal.raise_signal(number)
    if ended_by is not None:
        _end(ended_by)


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Let a signal that would end the process raise an exception first; SIGINT does so of itself."""

    def end(number: int, _: object) -> None:
        raise _EndedBySignal(number)

    changed: list[int] = []
    ended_by: int | None = None
    try:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING_SIGNALS:
                if signal.getsignal(number) == signal.SIG_DFL:
                    changed.append(number)
                    signal.signal(number, end)
        yield
    except _EndedBySignal as ended:
        ended_by = ended.number
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
    if ended_by is not None:
        _end(ended_by)


def _end(number: int) -> NoReturn:
    signal.raise_signal(number)
    raise SystemExit(128 + number)  # the first process of a container outlives signals that it does not handle
