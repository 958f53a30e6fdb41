# SPDX-License-Identifier: Apache-2.0
"""Settings: how they are declared, and those of each command."""
