# SPDX-License-Identifier: Apache-2.0
"""The custom-operator library that the package carries.

It is beside the package's modules where these are imported from what was installed. Of an editable install
scikit-build-core knows where it is; for modules of the source folder it is in the installed distribution.
"""

import importlib.metadata
import importlib.util
import sys
import tomllib
from pathlib import Path

from lnbp_onnx.errors import KernelError

_DISTRIBUTION = "lnbp-onnx"
_FOLDER = Path(__file__).parents[1]
_FILE_NAME = {"win32": "lnbp_onnx_ops.dll", "darwin": "liblnbp_onnx_ops.dylib"}.get(sys.platform, "liblnbp_onnx_ops.so")
_ADVICE = (
    "(run 'pip install .' in the source folder, or use kernel='python', which does not need it; docs/kernels.md has "
    "the ways)."
)


def _find_editable() -> Path | None:
    """Return where an editable install has the library. Asked, it builds it anew where it was told to do so."""
    try:
        spec = importlib.util.find_spec(f"{_FOLDER.name}.lib.{Path(_FILE_NAME).stem}")
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


_editable = _find_editable()


def get_library_path() -> str:
    """Return the path of the native library, for ``SessionOptions.register_custom_ops_library``.

    Raises:
        KernelError: Where the library is neither beside the package nor in an installed distribution of its version.

    Example:
        >>> import onnxruntime, lnbp_onnx
        >>> options = onnxruntime.SessionOptions()
        >>> options.register_custom_ops_library(lnbp_onnx.get_library_path())
    """
    places = [path for path in (_editable, _FOLDER / "lib" / _FILE_NAME) if path is not None]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        try:
            found = _installed(importlib.metadata.distribution(_DISTRIBUTION))
        except importlib.metadata.PackageNotFoundError:
            found = places[-1]
    if not found.is_file():
        raise KernelError(f"The native library is not at {found}; installing the package builds it {_ADVICE}")
    return str(found)


def _installed(distribution: importlib.metadata.Distribution) -> Path:
    path = Path(str(distribution.locate_file(f"{_FOLDER.name}/lib/{_FILE_NAME}")))
    version = _source_version()
    if version not in {None, distribution.version}:
        raise KernelError(
            f"The native library at {path} is of {_DISTRIBUTION} {distribution.version}, and the package is imported "
            f"from the source folder {_FOLDER.parent} of version {version}; they must be the same {_ADVICE}"
        )
    return path


def _source_version() -> str | None:
    """Return the version of the source folder that the package is imported from; None where it is from elsewhere."""
    file = _FOLDER.parent / "pyproject.toml"
    project = tomllib.loads(file.read_text("utf-8")).get("project", {}) if file.is_file() else {}
    return project.get("version") if project.get("name") == _DISTRIBUTION else None
