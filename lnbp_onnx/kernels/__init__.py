# SPDX-License-Identifier: Apache-2.0
"""The ways in which ONNX Runtime can run the operator as one node."""
