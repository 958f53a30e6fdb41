#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need and runs all tests, including slow ones, in two processes
# (a test mostly keeps one core busy). Arguments go to pytest: `bash launch/test.sh -m "not
# slow"` runs the quick ones. MTR_EXTRAS=cityscapes,torch also installs what the tests of
# Cityscapes' own evaluator and of PyTorch's weights need; otherwise they are skipped.
# Files run in the order of their names: xdist would leave those with few tests to the
# end, some of which take minutes, while the other process has nothing to do.
. "$(dirname "$0")/environment.sh"
use_environment "test${MTR_EXTRAS:+,$MTR_EXTRAS}"
exec python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
