# SPDX-License-Identifier: Apache-2.0
"""The plumbing: reading, inferring, editing and writing the nodes of a graph."""
