# SPDX-License-Identifier: Apache-2.0
"""Property tests draw the same examples at every run; the time of one of them says nothing."""

from hypothesis import settings

settings.register_profile("lnbp", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("lnbp")
