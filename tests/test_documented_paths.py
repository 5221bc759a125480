# SPDX-License-Identifier: Apache-2.0
"""What the documentation names is there: the files that it links to, and those that it names in backquotes."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "ops/README.md", ROOT / "tests/data/README.md"]
FOLDERS = [
    "",
    "lnbp_onnx",
    "examples",
    "ops",
    *(f"ops/src/{folder}" for folder in ("kernel", "ort", "simd")),
    "ops/src",
    "ops/tests",
    "ops/include",
    "tests",
]
OF_OTHERS = {"onnxruntime_c_api.h"}
PATH = re.compile(r"[\w./*-]*[\w*-](/|\.(py|md|h|cc|sh|onnx|npz|mjs|toml|yml))")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    assert [link for link in sorted(links) if not (page.parent / link).exists()] == []
    names = {name for name in re.findall(r"`([^`\n]+)`", text) if PATH.fullmatch(name)} - OF_OTHERS
    folders = [page.parent, *(ROOT / folder for folder in FOLDERS)]
    assert [name for name in sorted(names) if not any(any(folder.glob(name)) for folder in folders)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_holds_nothing_that_a_merge_left(page: Path) -> None:
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", page.read_text("utf-8"), re.MULTILINE)


def test_what_a_comment_of_the_cpp_code_names_exists() -> None:
    named = {
        (str(source.relative_to(ROOT)), name)
        for source in [*ROOT.glob("ops/**/*.h"), *ROOT.glob("ops/**/*.cc")]
        for comment in re.findall(r"//.*", source.read_text("utf-8"))
        for name in re.findall(r"\b[\w/]+\.(?:cc|h|md|py|txt)\b", comment)
    }
    assert named
    assert [
        (source, name)
        for source, name in sorted(named)
        if name not in OF_OTHERS and not (ROOT / name).exists() and not any(ROOT.glob(f"ops/**/{name}"))
    ] == []


def test_the_pages_that_errors_name_exist() -> None:
    named = {
        page
        for source in ROOT.glob("lnbp_onnx/**/*.py")
        for page in re.findall(r"docs/\w+\.md", source.read_text("utf-8"))
    }
    assert {"docs/kernels.md", "docs/matching.md", "docs/passes.md", "docs/pytorch.md", "docs/training.md"} <= named
    assert [page for page in named if not (ROOT / page).is_file()] == []


def test_recorded_graphs_are_listed() -> None:
    listed = re.findall(r"`([^`\n]+)`", (ROOT / "tests/data/README.md").read_text("utf-8"))
    data = ROOT / "tests/data"
    files = {path for path in data.rglob("*") if path.is_file()} - {data / "README.md"}
    assert files - {path for name in listed if PATH.fullmatch(name) for path in data.glob(name)} == set()


def test_every_module_has_its_place() -> None:
    pages = (ROOT / "docs/architecture.md").read_text("utf-8"), (ROOT / "docs/matching.md").read_text("utf-8")
    named = {name for page in pages for name in re.findall(r"`([\w/]+\.py)`", page)}
    modules = {path for path in (ROOT / "lnbp_onnx").rglob("*.py") if not path.name.startswith("__")}
    assert {str(path.relative_to(ROOT / "lnbp_onnx")) for path in modules} - named == set()
