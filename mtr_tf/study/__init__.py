# SPDX-License-Identifier: Apache-2.0
"""Studies: many models trained and attacked, and a verdict on every claim."""
