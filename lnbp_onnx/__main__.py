# SPDX-License-Identifier: Apache-2.0
"""``python -m lnbp_onnx`` is ``lnbp-onnx``."""

from lnbp_onnx.cli import main

main()
