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
        f"The pages are in {_shared_folder('docs')}, the flagfiles in "
        f"{_shared_folder('flags')}.",
    ]
    return "\n".join(lines)


def _shared_folder(folder: str) -> pathlib.Path:
    """The path of `docs` or `flags`: in the repository, or where it is installed."""
    repository = pathlib.Path(__file__).parents[1]
    if (repository / "setup.py").exists():
        return repository / folder
    return pathlib.Path(sysconfig.get_path("data"), "share", "mtr_tf", folder)


def run() -> None:
    """The console entry point `mtr_tf`."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(mtr_tf.__version__)
    elif not arguments or arguments[0].lstrip("-") in ("h", "help", "?"):
        print(listing())
    elif arguments[0] in COMMANDS:
        sys.exit(f"error: write python -m mtr_tf.{arguments[0]}, with a dot.")
    else:
        hint = errors.did_you_mean(arguments[0], COMMANDS)
        sys.exit(
            "error: mtr_tf takes only --version, or nothing; got "
            f"{arguments[0]!r}.{hint} `python -m mtr_tf` lists the commands."
        )


if __name__ == "__main__":
    run()
