# SPDX-License-Identifier: Apache-2.0
"""Evaluation: a plan of attacks over a data set, and the results for each task."""
