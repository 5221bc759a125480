# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site, of the pages where a reader of the repository finds them: ``nox -s docs``."""

import importlib.metadata

from sphinx.application import Sphinx

project = "lnbp-onnx"
release = importlib.metadata.version("lnbp-onnx")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "lnbp-onnx"

# The source folder is the repository's, so that links hold here and there.
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "ops/README.md"]
myst_heading_anchors = 4
# The operator's page is onnx's own form, which begins with a heading of the second level.
suppress_warnings = ["myst.header"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["onnxscript", "torch"]
napoleon_use_rtype = False

_CONTENTS = """
```{toctree}
:hidden:
:caption: Guides

docs/command-line.md
docs/pytorch.md
docs/training.md
docs/passes.md
docs/kernels.md
ops/README.md
docs/examples.md
docs/troubleshooting.md
```

```{toctree}
:hidden:
:caption: Reference

docs/LayerNormBackprop.md
docs/derivation.md
docs/api.md
```

```{toctree}
:hidden:
:caption: Inside

docs/architecture.md
docs/matching.md
docs/decisions/README.md
docs/decisions/specification.md
docs/decisions/polynomials.md
docs/decisions/simd.md
docs/decisions/abi-header.md
docs/performance.md
docs/tuning.md
CONTRIBUTING.md
RELEASING.md
SECURITY.md
CHANGELOG.md
```
"""


def setup(app: Sphinx) -> None:
    """Give the first page the contents of the site, which its readers elsewhere have as a list of files."""

    def add_contents(_app: Sphinx, name: str, source: list[str]) -> None:
        if name == root_doc:
            source[0] += _CONTENTS

    app.connect("source-read", add_contents)
