# SPDX-License-Identifier: Apache-2.0
"""Model files: read whole, with or without their data, and written whole or not at all."""
