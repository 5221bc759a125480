# SPDX-License-Identifier: Apache-2.0
"""Options of ONNX Runtime's sessions."""

from typing import Any

import onnxruntime


def session_options(level: str = "ORT_ENABLE_ALL", **values: Any) -> onnxruntime.SessionOptions:
    """Return options of an optimisation level with other values, and without warnings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    for name, value in values.items():
        setattr(options, name, value)
    return options
