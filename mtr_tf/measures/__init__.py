# SPDX-License-Identifier: Apache-2.0
"""Measures: what gradients, rather than attacks, say about a model."""
