# SPDX-License-Identifier: Apache-2.0
"""Training: one step, the loop, summaries and checkpoints."""
