# SPDX-License-Identifier: Apache-2.0
"""Holds wheels to what their tags say, and writes the library of each into an archive of its own.

    python ops/tools/check_wheels.py FOLDER

FOLDER holds the wheels; the archives, for programs in other languages than Python, are written beside them. It needs
the package lief, which reads the libraries of every system.
"""

import argparse
import re
import sys
import zipfile
from pathlib import Path

import lief

ROOT = Path(__file__).parents[2]
# macOS has an underscore before each.
EXPORTS = {line.removeprefix("_") for line in (ROOT / "ops/src/ort/exports.txt").read_text().split()}
FORMATS = {"linux": lief.ELF.Binary, "macosx": lief.MachO.Binary, "win": lief.PE.Binary}
MACHINES = {"x86_64": ("X86_64", "AMD64"), "amd64": ("X86_64", "AMD64"), "aarch64": ("AARCH64",), "arm64": ("ARM64",)}
# Of the system, on every machine. The parts of glibc beside libc are files of their own before 2.34.
# zig's linker cannot hide operator new and delete of the C++ runtime on macOS; the others are the linker's own.
TOLERATED = {"macosx": r"_Z(n|d)[aw]?\w+|__dso_handle|_mh_dylib_header"}
LIBRARIES = {
    "linux": r"lib(c|m|dl|pthread)\.so\.\d|ld-linux-(x86-64|aarch64)\.so\.\d",
    "macosx": r"/usr/lib/libSystem\.B\.dylib|@rpath/liblnbp_onnx_ops\.\w+",
    "win": r"(?i)kernel32\.dll|ntdll\.dll|api-ms-win-crt-[\w-]+\.dll|ucrtbase\.dll|msvcrt\.dll",
}


def main() -> int:
    """Check each wheel of a folder; 1 where one is not what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    # Its remarks on what a stripped library does not have are none of ours.
    lief.logging.disable()
    faults = [f"{wheel.name}: {fault}" for wheel in sorted(folder.glob("*.whl")) for fault in check(wheel)]
    print(*faults, sep="\n", file=sys.stderr)
    return bool(faults)


def check(wheel: Path) -> list[str]:
    """Return what is wrong with a wheel, and write its archive."""
    # Of several names of one platform, as manylinux2014 and manylinux_2_17, the last is the plain one.
    version, tag = wheel.name.split("-")[1], wheel.stem.split("-")[-1].split(".")[-1]
    system = next(each for each in FORMATS if each in tag)
    machine = next(each for each in MACHINES if tag.endswith(each))
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("lnbp_onnx/lib/") and not name.endswith("/")]
        files = {name.rpartition("/")[2]: archive.read(name) for name in names}
    expected = {"linux": "liblnbp_onnx_ops.so", "macosx": "liblnbp_onnx_ops.dylib", "win": "lnbp_onnx_ops.dll"}[system]
    if set(files) != {expected}:
        return [f"lnbp_onnx/lib holds {sorted(files)}; it must hold {expected}"]
    library = lief.parse(files[expected])
    if not isinstance(library, FORMATS[system]):
        return [f"{expected} is of type {type(library).__name__}"]
    faults = []
    if isinstance(library, lief.MachO.Binary):
        found = library.header.cpu_type.name
        exported = {symbol.name.removeprefix("_") for symbol in library.exported_symbols}
    else:
        header = library.header
        found = (header.machine_type if isinstance(library, lief.ELF.Binary) else header.machine).name
        exported = {function.name for function in library.exported_functions}
    needed = {each if isinstance(each, str) else each.name for each in library.libraries}
    if found not in MACHINES[machine]:
        faults.append(f"{expected} is for {found}")
    exported = {each for each in exported if each in EXPORTS or not re.fullmatch(TOLERATED.get(system, ""), each)}
    if exported != EXPORTS:
        faults.append(f"{expected} exports {sorted(exported)}; it must export {sorted(EXPORTS)}")
    if others := sorted(each for each in needed if not re.fullmatch(LIBRARIES[system], each)):
        faults.append(f"{expected} needs {others}")
    name = f"lnbp_onnx_ops-{version}-{tag}"
    with zipfile.ZipFile(wheel.parent / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/{expected}", files[expected])
        for source in ("LICENSE", "ops/README.md", "ops/include/lnbp_onnx/custom_ops.h"):
            archive.write(ROOT / source, f"{name}/{Path(source).name}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
