#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need and runs them all, the slow ones too. Arguments go to
# pytest: `bash launch/test.sh -m "not slow"` takes a minute or two.
. "$(dirname "$0")/environment.sh"
use_environment test
exec python -m pytest "$@"
