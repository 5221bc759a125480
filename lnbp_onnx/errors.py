# SPDX-License-Identifier: Apache-2.0
"""The exceptions that this package raises on purpose."""


class LnbpError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidNodeError(LnbpError, ValueError):
    """A LayerNormBackprop node, or a call with its operands, that the specification refuses."""


class InvalidModelError(LnbpError, ValueError):
    """A file or a graph that cannot be used."""


class KernelError(LnbpError, RuntimeError):
    """A kernel that is not available, or that failed."""
