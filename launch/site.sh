#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the site in build/site: the pages of docs/ with Sphinx, and the API reference from
# the docstrings with pdoc, in build/site/api. Ends with an error if a link leads nowhere.
. "$(dirname "$0")/environment.sh"
use_environment site
sphinx-build --quiet --fail-on-warning --keep-going docs build/site
exec python docs/reference.py --out build/site/api
