# SPDX-License-Identifier: Apache-2.0
"""The custom-operator library that the package carries."""

import sys
from pathlib import Path

from lnbp_onnx.errors import KernelError

_FILE_NAMES = {"win32": "lnbp_onnx_ops.dll", "darwin": "liblnbp_onnx_ops.dylib"}
_FOLDER = Path(__file__).parents[1] / "lib"


def get_library_path() -> str:
    """Return the path of the native library, for ``SessionOptions.register_custom_ops_library``.

    Raises:
        KernelError: Where the package was installed without its library.
    """
    path = _FOLDER / _FILE_NAMES.get(sys.platform, "liblnbp_onnx_ops.so")
    if not path.is_file():
        raise KernelError(
            f"The native library is not at {path}; installing the package builds it and puts it there "
            "(run 'pip install .' in the source folder, or use kernel='python', which does not need it)."
        )
    return str(path)
