# SPDX-License-Identifier: Apache-2.0
"""What CI runs beside the tests, each also by itself: ``nox -s NAME``; ``nox -l`` lists them."""

import configparser
import re
import shutil
import tarfile
import zipfile
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
    "fuzz",
    "runtimes(1.17)",
    "runtimes(newest)",
    "wheel",
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
    build = _build_native(session, sanitizers)
    session.run("ctest", "--test-dir", str(build), "--output-on-failure")
    if sanitizers == "none" and shutil.which("readelf"):
        _check_library(session, str(build / "liblnbp_onnx_ops.so"))


def _build_native(session: nox.Session, sanitizers: str) -> Path:
    """Build the C++ tests, once for all sessions with the same sanitizers."""
    build = session.cache_dir / f"native-{sanitizers.replace(';', '-')}"
    options = [] if sanitizers == "none" else [f"-DLNBP_SANITIZE={sanitizers}"]
    session.run("cmake", "-S", "ops", "-B", str(build), "-G", "Ninja", "-DLNBP_BUILD_TESTS=ON", *options)
    session.run("cmake", "--build", str(build))
    return build


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
def fuzz(session: nox.Session) -> None:
    """Each fuzzer for a minute with the same cases every time, or for as many seconds as asked with new ones."""
    seconds, seed = (session.posargs[0], []) if session.posargs else ("60", ["0"])
    session.install("cmake", "ninja", ".[dev]")
    build = _build_native(session, "address;undefined")
    for name in ("fuzz_kernel", "fuzz_node"):
        session.run(str(build / "tests" / name), seconds, *seed, external=True)
    session.run("python", "tests/fuzz_graphs.py", "--seconds", seconds, *(["--seed", *seed] if seed else []))


@nox.session
def wheel(session: nox.Session) -> None:
    """The source distribution, the wheel built from it, and the smoke tests where no compiler can be reached."""
    session.install("build")
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder / "dist"))
    (source,) = (folder / "dist").glob("*.tar.gz")
    (built,) = (folder / "dist").glob("*.whl")
    _check_contents(session, source, built)
    session.run("python", "-m", "venv", "--clear", str(folder / "venv"))
    commands = folder / "venv" / "bin"
    packages = ["-q", "--only-binary", ":all:", f"{built}[dev]"]
    session.run(str(commands / "pip"), "install", *packages, env={"PATH": str(commands)}, external=True)
    session.run(str(commands / "pytest"), "-q", "-n", "2", "tests/smoke.py", external=True)


def _check_contents(session: nox.Session, source: Path, built: Path) -> None:
    """Hold the wheel to the package and its library, the source distribution to what builds and tests it."""
    in_wheel = zipfile.ZipFile(built).namelist()
    needed = [r"lnbp_onnx/lib/[^/]*lnbp_onnx_ops\.\w+", r"lnbp_onnx/py\.typed", r".*\.dist-info/licenses/LICENSE"]
    stray = [name for name in in_wheel if not re.match(r"lnbp_onnx(/|-[^/]*\.dist-info/)", name)]
    missing = [each for each in needed if not any(re.fullmatch(each, name) for name in in_wheel)]
    if "-py3-none-" not in built.name or stray or missing:
        session.error(f"{built.name} holds {stray} and lacks {missing}")
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    needed = ["LICENSE", "README.md", "pyproject.toml", "lnbp_onnx/spec.py", "ops/src/kernel.cc", "tests/smoke.py"]
    stray = [name for name in in_source if re.search(r"(^|/)(\.nox|\.venv|build|__pycache__)(/|$)|\.so$", name)]
    missing = [name for name in needed if name not in in_source]
    if stray or missing:
        session.error(f"{source.name} holds {stray} and lacks {missing}")


# The tests that a module's mutants are run against.
MUTATED = {
    "body": ["tests/test_conformance.py", "tests/test_decompose.py"],
    "inference": ["tests/test_decompose.py"],
    "node": ["tests/test_node.py", "tests/test_bad_inputs.py", "tests/test_schema.py"],
    "reference": ["tests/test_reference.py"],
    "spec": ["tests/test_node.py", "tests/test_schema.py"],
}


@nox.session
def mutation(session: nox.Session) -> None:
    """Which changes of a module no test notices: ``nox -s mutation -- reference``; by default node."""
    module = session.posargs[0] if session.posargs else "node"
    session.install("mutmut>=3.8", ".[dev]")
    # mutmut works on a folder with the package in it, the library included.
    folder = Path(session.create_tmp()) / module
    shutil.rmtree(folder, ignore_errors=True)
    program = "import lnbp_onnx; print(lnbp_onnx.__path__[0])"
    installed = session.run("python", "-P", "-c", program, silent=True) or ""
    shutil.copytree(installed.strip(), folder / "lnbp_onnx")
    shutil.copytree("tests", folder / "tests")
    shutil.copy("pyproject.toml", folder)
    settings = {
        "source_paths": "lnbp_onnx",
        "only_mutate": f"lnbp_onnx/{module}.py",
        "also_copy": "lnbp_onnx/lib",
        "pytest_add_cli_args": "-n\n0\n-k\nnot kernel and not where_the_package_is and not generated",
        "pytest_add_cli_args_test_selection": "\n".join(MUTATED[module]),
    }
    config = configparser.ConfigParser()
    config["mutmut"] = settings
    with (folder / "setup.cfg").open("w") as file:
        config.write(file)
    session.chdir(folder)
    session.run("mutmut", "run")
    session.run("mutmut", "results")


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
