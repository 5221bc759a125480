# SPDX-License-Identifier: Apache-2.0
"""A small character GPT and what trains it: what the examples around it share."""
