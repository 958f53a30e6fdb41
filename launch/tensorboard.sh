#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Shows all runs in a folder:
#   bash launch/tensorboard.sh [FOLDER [FLAGS...]]     FOLDER is runs by default
# Answers this machine alone; from elsewhere, by ssh -L 6006:localhost:6006 HOST.
set -euo pipefail
exec tensorboard --logdir="${1:-runs}" "${@:2}"
