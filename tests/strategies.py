# SPDX-License-Identifier: Apache-2.0
"""Random cases for property tests."""

import math

from cases import Case
from hypothesis import strategies as st


@st.composite
def problems(draw: st.DrawFn) -> Case:
    """Draw a case of any rank and axis, with axes of length 0 and 1, every parameter shape and large means."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=5)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    norm = shape[axis % len(shape) :]
    kept = draw(st.lists(st.booleans(), min_size=len(norm), max_size=len(norm)))
    broadcast = tuple(n if keep else 1 for n, keep in zip(norm, kept, strict=True))
    skipped = draw(st.integers(0, len(norm)))
    gamma_shape = draw(st.sampled_from([norm, broadcast, (math.prod(norm),), broadcast[skipped:]]))
    layouts = st.sampled_from(["lead", "kept", "flat"])
    return Case(
        f"property-{draw(st.integers(0, 2**32))}",
        shape,
        axis=axis,
        t=draw(st.sampled_from(["float", "double", "float16", "bfloat16"])),
        p=draw(st.sampled_from(["", "float"])),
        u="float",
        affine=draw(st.booleans()),
        stats=draw(st.booleans()),
        epsilon=draw(st.sampled_from([1e-5, 0.1])),
        gamma_shape=gamma_shape,
        beta=draw(st.booleans()),
        mean_layout=draw(layouts),
        variance_layout=draw(layouts),
        mean=draw(st.sampled_from([0.0, 100.0])),
    )
