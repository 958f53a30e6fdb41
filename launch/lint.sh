#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks style and format with ruff, and types with pyrefly.
. "$(dirname "$0")/environment.sh"
use_environment lint
ruff check .
ruff format --check .
pyrefly check
