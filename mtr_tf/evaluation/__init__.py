# SPDX-License-Identifier: Apache-2.0
"""Evaluation: a plan of attacks over a data set, and what comes out for each task."""
