# SPDX-License-Identifier: Apache-2.0
"""The C++ sources beside this file, compiled once and loaded."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SOURCES = Path(__file__).parent
_CACHE = _SOURCES.parent / "build" / "benchmarks"


class MissingError(Exception):
    """a contender that is not available here, and why."""


@functools.cache
def triad() -> ctypes.CDLL:
    """Return the library of triad.cc."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise MissingError(f"it is written for x86-64, and this is {platform.machine()}")
    library = _load("triad.cc", ["-march=native"])
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.BenchTriad.argtypes = [pointer, pointer, pointer, long, integer, integer, long]
    library.BenchTriad.restype = None
    return library


@functools.cache
def onednn() -> ctypes.CDLL:
    """Return the library of onednn.cc; oneDNN itself comes from the environment's packages."""
    root = Path(sysconfig.get_path("data"))
    if not (root / "include/oneapi/dnnl/dnnl.hpp").is_file():
        raise MissingError("onednn-devel-cpu-gomp is not installed")
    library = _load("onednn.cc", [f"-I{root / 'include'}", f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ldnnl"])
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    create = library.BenchGradientCreate
    create.argtypes = [long, long, ctypes.c_char_p, ctypes.c_float, ctypes.c_int, pointer]
    create.restype = pointer
    library.BenchGradientRun.argtypes = [pointer, long]
    library.BenchGradientRun.restype = None
    library.BenchGradientDescription.argtypes = [pointer]
    library.BenchGradientDestroy.argtypes = [pointer]
    library.BenchGradientDestroy.restype = None
    for text in (library.BenchGradientDescription, library.BenchGradientError):
        text.restype = ctypes.c_char_p
    return library


def _load(source: str, options: Sequence[str]) -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or sys.platform != "linux":
        raise MissingError("it needs a C++ compiler on Linux")
    # -march=native ties a library to the processor.
    command = [compiler, "-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-Wall", "-Wextra"]
    key = [*command, *options, _processor_features(), (_SOURCES / source).read_text()]
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]
    path = _CACHE / f"{Path(source).stem}-{digest}.so"
    if not path.is_file():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
            built = Path(folder) / path.name
            result = subprocess.run(
                [*command, str(_SOURCES / source), "-o", str(built), *options],
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode:
                raise MissingError(f"{source} does not compile: {result.stderr.strip()}")
            built.replace(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingError(str(error)) from error


def _processor_features() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
