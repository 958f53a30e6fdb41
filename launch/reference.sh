#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the API reference of the docstrings in build/api, and checks its links.
. "$(dirname "$0")/environment.sh"
use_environment lint
exec python docs/reference.py "$@"
