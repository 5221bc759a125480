# SPDX-License-Identifier: Apache-2.0
"""Recognising layer-norm gradients in a graph."""
