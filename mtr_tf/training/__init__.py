# SPDX-License-Identifier: Apache-2.0
"""Training: one step, the loop, and what is shown and kept."""
