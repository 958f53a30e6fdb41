#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks style and format with ruff, types with pyrefly, and scripts with shellcheck.
. "$(dirname "$0")/environment.sh"
use_environment lint
ruff check .
ruff format --check .
pyrefly check
shellcheck --external-sources --source-path=SCRIPTDIR launch/*.sh launch/slurm.sbatch .ci/*
