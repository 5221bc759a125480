# SPDX-License-Identifier: Apache-2.0
"""Recognising layer-norm gradients in a graph.

`rebuild` finds what `DecomposePass` wrote, `search` any other form, `ort_training` the gradient operators of ONNX
Runtime training; `substitute` puts the operator in their place. `search` chooses operands (`leaves`), follows them
through the graph (`evaluate`, `rules`) as polynomials (`algebra`, `tensors`, `frame`) and compares with the operator's
`definition`; `near_misses` says what stopped it.
"""
