# SPDX-License-Identifier: Apache-2.0
"""What is imported from `mtr_tf` itself: the commands, and more, as Python calls."""
