# SPDX-License-Identifier: Apache-2.0
"""Running models: the kernels, sessions of ONNX Runtime, and the comparison of two models."""
