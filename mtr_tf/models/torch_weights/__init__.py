# SPDX-License-Identifier: Apache-2.0
"""PyTorch's files of weights, read without running code, into our models."""
