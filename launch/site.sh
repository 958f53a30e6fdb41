#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the site in build/site: the pages of docs/ by Sphinx, the API reference of the
# docstrings by pdoc in build/site/api. Ends with an error where a link leads nowhere.
. "$(dirname "$0")/environment.sh"
use_environment site
sphinx-build --quiet --fail-on-warning --keep-going docs build/site
exec python docs/reference.py --out build/site/api
