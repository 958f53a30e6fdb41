# SPDX-License-Identifier: Apache-2.0
"""What `mtr_tf` itself exports: the commands as Python calls, and more."""
