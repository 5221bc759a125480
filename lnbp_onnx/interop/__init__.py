# SPDX-License-Identifier: Apache-2.0
"""What other frameworks' models become; each module needs its framework, which `lnbp_onnx` itself does not."""
