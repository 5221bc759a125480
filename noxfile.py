# SPDX-License-Identifier: Apache-2.0
"""What CI runs beside the tests, each also by itself: ``nox -s NAME``; ``nox -l`` lists them."""

import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = [
    "lint",
    "types",
    "generated",
    "native",
    "abi",
    "paths",
    "torch",
    "examples",
    "runtimes(1.17)",
    "runtimes(newest)",
]
nox.options.error_on_external_run = True

CPP_FILES = sorted(
    str(path)
    for pattern in ("*.h", "*.cc")
    for folder in ("ops", "examples", "benchmarks")
    for path in Path(folder).rglob(pattern)
)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and the direction of the imports."""
    session.install("ruff", "clang-format==20.1.8", "import-linter", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("clang-format", "--dry-run", "--Werror", "--style=Google", *CPP_FILES)


@nox.session
def types(session: nox.Session) -> None:
    """The types, strictly."""
    session.install("mypy", ".[dev]")
    session.run("mypy")


@nox.session
def generated(session: nox.Session) -> None:
    """The files made from the definition are current."""
    session.install(".")
    session.run("python", "-m", "lnbp_onnx.generate", "--check")


@nox.session
@nox.parametrize("sanitizers", ["none", "address;undefined", "thread"], ids=["plain", "address", "thread"])
def native(session: nox.Session, sanitizers: str) -> None:
    """The C++ tests, also under the sanitizers, and what the library exports."""
    session.install("cmake", "ninja")
    build = session.create_tmp()
    options = [] if sanitizers == "none" else [f"-DLNBP_SANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    session.run("cmake", "-S", "ops", "-B", build, "-G", "Ninja", "-DLNBP_BUILD_TESTS=ON", *options)
    session.run("cmake", "--build", build)
    session.run("ctest", "--test-dir", build, "--output-on-failure")
    if sanitizers == "none" and shutil.which("readelf"):
        _check_library(session, str(Path(build) / "liblnbp_onnx_ops.so"))


def _check_library(session: nox.Session, library: str) -> None:
    """Hold the library to its two functions, and to the C library alone."""
    symbols = session.run("nm", "-D", "--defined-only", library, external=True, silent=True) or ""
    exported = {line.split()[-1].split("@")[0] for line in symbols.splitlines() if " T " in line}
    if exported != {"RegisterCustomOps", "LnbpGetCustomOps"}:
        session.error(f"The library exports {sorted(exported)}")
    header = session.run("readelf", "-d", library, external=True, silent=True) or ""
    needed = {line.split("[")[1].split(".so")[0] for line in header.splitlines() if "(NEEDED)" in line}
    if not needed <= {"libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}:
        session.error(f"The library needs {sorted(needed)}")


@nox.session(venv_backend="none")
def abi(session: nox.Session) -> None:
    """The declarations of ONNX Runtime's interface against its own header, where Debian's package can be had."""
    session.run("sh", "ops/tools/check_abi.sh", external=True)


@nox.session
def paths(session: nox.Session) -> None:
    """The conformance of the native kernel on each path that the machine may have."""
    session.install(".[dev]")
    for isa in ("portable", "avx2", "avx512", "avx512bf16"):
        session.run("pytest", "-q", "-n", "2", "tests/test_conformance.py", "-k", "native", env={"LNBP_ISA": isa})


@nox.session
def torch(session: nox.Session) -> None:
    """The tests that need torch."""
    session.install("torch==2.13.0", "onnxsim", ".[dev,torch]")
    session.run("pytest", "-q", "tests/test_torch.py", "tests/test_interop_torch.py")


@nox.session
def examples(session: nox.Session) -> None:
    """The examples with all that they can use: torch, OpenVINO, MPI, matplotlib, ONNX Runtime Web in node."""
    session.install("torch==2.13.0", ".[dev,examples,torch]")
    folder = Path(session.create_tmp()).resolve()
    if shutil.which("node") and shutil.which("npm"):
        options = ["--no-save", "--no-package-lock", "--no-audit", "--no-fund"]
        session.run("npm", "install", *options, "--prefix", str(folder), "onnxruntime-web", external=True)
    else:
        session.warn("node and npm are not installed: the test of onnxruntime-web is skipped")
    tests = ["tests/test_examples.py", "tests/test_gpt_examples.py"]
    session.run("pytest", "-q", *tests, env={"NODE_PATH": str(folder / "node_modules")})


@nox.session
def bench(session: nox.Session) -> None:
    """A short pass of the benchmarks, with every peer and the plots."""
    session.install("torch==2.13.0", ".[bench,dev]")
    session.run("pytest", "-q", "tests/test_benchmarks.py")
    results = str(Path(session.create_tmp()).resolve() / "results.json")
    session.run("python", "benchmarks/run.py", "--shapes", "128x768", "--rounds", "3", "--json", results)
    session.run("python", "benchmarks/plot.py", results, "--folder", session.create_tmp())


RUNTIMES = {
    "1.17": ["onnxruntime==1.17.3", "numpy<2"],
    "1.20": ["onnxruntime==1.20.1"],
    "1.24": ["onnxruntime==1.24.4"],
}


@nox.session
@nox.parametrize("runtime", [*RUNTIMES, "newest"], ids=[*RUNTIMES, "newest"])
def runtimes(session: nox.Session, runtime: str) -> None:
    """The wheel on older runtimes and on the newest; the oldest one with the oldest onnx."""
    packages = RUNTIMES.get(runtime, ["onnxruntime"])
    if runtime == min(RUNTIMES):
        packages = [*packages, "onnx==1.20.1"]
    session.install(".[dev]", *packages)
    session.run("pytest", "-q", "-n", "2", "tests/smoke.py")
