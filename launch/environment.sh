# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The other scripts source this: it makes a virtual environment with mtr_tf, once.
#   MTR_VENV    where it is (default: .venv in the repository)
#   MTR_PYTHON  which Python makes it (default: the first of python3, python3.13, 3.12 and 3.11
#               that is 3.11 to 3.13)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local candidate
  for candidate in ${MTR_PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.11, 3.12 or 3.13 is needed (TensorFlow has no other builds), but none" \
    "was found; install one, or name it in MTR_PYTHON." >&2
  return 1
}

# use_environment [EXTRA]: makes and enters the environment, with mtr_tf[EXTRA].
use_environment() {
  local venv="${MTR_VENV:-.venv}" extra="${1:-}" stamp python
  stamp="$venv/.mtr_tf-$extra-$(cksum <setup.py | tr ' ' -)"
  if [ ! -e "$stamp" ]; then
    python="$(find_python)"
    echo "Setting up $venv (TensorFlow is a download of about 600 MB)..."
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
    touch "$stamp"
  fi
  # shellcheck disable=SC1091
  . "$venv/bin/activate"
}
