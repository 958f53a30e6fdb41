# SPDX-License-Identifier: Apache-2.0
"""Measures: what gradients say of a model, instead of attacks."""
