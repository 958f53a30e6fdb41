# SPDX-License-Identifier: Apache-2.0
"""Lists the commands, one per line.

python -m mtr_tf
python -m mtr_tf --version
"""

from __future__ import annotations

import ast
import pathlib
import sys
import sysconfig

import mtr_tf
from mtr_tf import errors

COMMANDS = ("train", "attack", "compare", "reproduce", "convert", "export")


def listing() -> str:
    """All commands, each with the first line of its description."""
    lines = [f"mtr_tf {mtr_tf.__version__}: python -m mtr_tf.NAME, and --help", ""]
    for name in COMMANDS:
        file = pathlib.Path(__file__).with_name(f"{name}.py")
        about = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        lines.append(f"  {name:10} {about.splitlines()[0]}")
    lines += [
        "",
        f"The pages are in {_shared('docs')}, the flagfiles in {_shared('flags')}.",
    ]
    return "\n".join(lines)


def _shared(folder: str) -> pathlib.Path:
    """Where what messages call by that name is: in the repository, or installed."""
    repository = pathlib.Path(__file__).parents[1]
    if (repository / "setup.py").exists():
        return repository / folder
    return pathlib.Path(sysconfig.get_path("data"), "share", "mtr_tf", folder)


def run() -> None:
    """The console entry point `mtr_tf`."""
    given = sys.argv[1:]
    if given == ["--version"]:
        print(mtr_tf.__version__)
    elif not given or given[0].lstrip("-") in ("h", "help", "?"):
        print(listing())
    elif given[0] in COMMANDS:
        sys.exit(f"error: write python -m mtr_tf.{given[0]}, with a dot.")
    else:
        hint = errors.did_you_mean(given[0], COMMANDS)
        sys.exit(
            f"error: mtr_tf takes only --version, or nothing; got {given[0]!r}.{hint} "
            "`python -m mtr_tf` lists the commands."
        )


if __name__ == "__main__":
    run()
