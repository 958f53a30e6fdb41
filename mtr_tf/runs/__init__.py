# SPDX-License-Identifier: Apache-2.0
"""Run directories: what is in one, and the models and data that they describe."""
