# SPDX-License-Identifier: Apache-2.0
"""The command line: flags, a quiet start, and progress."""
