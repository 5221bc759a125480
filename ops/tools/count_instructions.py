# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions per element in the two hot loops of the kernel, and prints them as a Markdown table.

    python ops/tools/count_instructions.py [--compiler g++] [--arm-compiler aarch64-linux-gnu-g++]

It compiles the loops alone, for as many rows at once as the instruction set has registers for, and counts what the
disassembly has from the beginning of the loop to its branch back. Speed depends on more than that number, but that
number needs no processor of the kind. The compilers' own objdump must be there.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

SIMD = Path(__file__).parents[1] / "src" / "simd"
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", "-fno-math-errno", "-I", str(SIMD)]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
SETS = {
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bf16"],
    "neon": [],
    "neonbf16": ["-march=armv8.2-a+bf16"],
}
TYPES = ["float", "double", "Float16", "Bfloat16"]
# Each with the names of the functions that have it: the second is called, not inlined.
LOOPS = {"sums": r"sums", "input_delta": r"input_delta|\w*ApplyTo\w*"}

# The size of `step` tells how many elements a loop takes at a time.
SOURCE = """
#include "{isa}.h"
#include "simd_steps.h"
using namespace lnbp;
using Steps = SimdSteps<{type}, {isa}::Isa>;
using C = ComputeType<{type}>;
constexpr std::size_t kRows = Steps::kRowsAtOnce;
constexpr std::size_t kVector = {isa}::Isa::Elements<{type}>::Vector::kSize;
constexpr std::size_t kLine = 64 / sizeof({type});
extern "C" {{
char step[kRows * (kVector < kLine ? kLine : kVector)];
void sums(Tile<C> tile, RowValues<C> values, RowSums<kRows>& sums) {{
  tile.rows_ahead = 0;
  values.has_residual = false;
  Steps::SumProducts<kRows>(tile, 0, values, sums);
}}
void input_delta(Tile<C> tile, const RowValues<C>& values, typename Steps::Stage& stage) {{
  tile.rows_ahead = 0;
  tile.past_cache = false;
  Steps::Apply<kRows>(tile, 0, values, stage);
}}
}}
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="g++", help="g++ or clang++ for x86-64")
    parser.add_argument("--arm-compiler", default="aarch64-linux-gnu-g++", help="g++ for 64-bit ARM")
    arguments = parser.parse_args()
    counts = {}
    for isa, flags in SETS.items():
        compiler = arguments.arm_compiler if isa.startswith("neon") else arguments.compiler
        for type_ in ["Bfloat16"] if isa.endswith("bf16") else TYPES:
            for loop, count in _count(isa, type_, [compiler, *FLAGS, *flags]).items():
                counts[isa, type_, loop] = f"{count:.1f}"
    print("| type | loop | " + " | ".join(SETS) + " |")
    print("|---|---|" + "---|" * len(SETS))
    for type_ in TYPES:
        for loop in LOOPS:
            cells = [counts.get((isa, type_, loop), "") for isa in SETS]
            print(f"| {type_.lower()} | {loop} | " + " | ".join(cells) + " |")


def _count(isa: str, type_: str, command: list[str]) -> dict[str, float]:
    """Return the instructions per element of each loop."""
    prefix = command[0].removesuffix("g++") if command[0].endswith("-g++") else ""
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "loops.cc", Path(folder) / "loops.o"
        source.write_text(SOURCE.format(isa=isa, type=type_))
        subprocess.run([*command, "-c", source, "-o", built], check=True)
        symbols = subprocess.run([f"{prefix}nm", "-S", built], check=True, capture_output=True, text=True).stdout
        assembly = subprocess.run(
            [f"{prefix}objdump", "-d", "--no-show-raw-insn", built], check=True, capture_output=True, text=True
        ).stdout
    (step,) = re.findall(r" (\w+) \w step$", symbols, re.MULTILINE)
    functions = re.findall(r"<(\w+)>:\n((?:.+\n)+)", assembly)
    counts = {}
    for loop, names in LOOPS.items():
        lengths = [_hot_loop(body) for name, body in functions if re.fullmatch(names, name)]
        counts[loop] = max(lengths) / int(step, 16)
    return counts


def _hot_loop(function: str) -> int:
    """Return the number of instructions of the loop with the most multiplications; 0 where there is no loop."""
    lines = re.findall(r"^ *(\w+):\s+(\S+)(.*)$", function, re.MULTILINE)
    places = {address: i for i, (address, _, _) in enumerate(lines)}
    loops = []
    for i, (_, name, operands) in enumerate(lines):
        # An unconditional branch back belongs to code that was moved out of the way.
        target = re.search(r"\b(\w+) <", operands)
        if re.fullmatch(r"(?!jmp)j\w+|b\.\w+|cbn?z|tbn?z", name) and target and places.get(target[1], i) < i:
            loops.append((places[target[1]], i))
    # The loops over what is left of a row have fewer.
    best = (0, 0)
    for first, last in loops:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            body = lines[first : last + 1]
            # Code moved there makes loops of the ends of rows, too, which AVX2 reads with masks.
            if any("maskmov" in name for _, name, _ in body):
                continue
            best = max(best, (sum(bool(re.search("mul|fma|fml", name)) for _, name, _ in body), len(body)))
    return best[1]


if __name__ == "__main__":
    main()
