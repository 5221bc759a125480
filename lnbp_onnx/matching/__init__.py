# SPDX-License-Identifier: Apache-2.0
"""Recognising layer-norm gradients in a graph; `docs/matching.md` explains it with an example.

`rebuild` finds what `DecomposePass` wrote, `search` any other form; `substitute` puts the operator in their place.
"""
