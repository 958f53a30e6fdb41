# SPDX-License-Identifier: Apache-2.0
"""The order of packages: who may import whom, and where. All of it is read, not run."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import importlib.metadata
import pathlib
import re
import sys
from collections.abc import Iterable
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "mtr_tf"
# Each imports what is above it, and no others of its own line.
ORDER = (
    "errors",
    "files",
    "tasks",
    "models",
    "attacks",
    "config",
    "cli",
    "executors",
    "data",
    "runs",
    "evaluation",
    "measures",
    "show",
    "training",
    "study",
    "attack_job",
    "train attack convert compare export reproduce __main__",
    "api",
)
LEVELS = {room: i for i, rooms in enumerate(ORDER) for room in rooms.split()}
COMMANDS = ORDER[-2].split()


@dataclasses.dataclass(frozen=True)
class Import:
    """One name that a module imports.

    Attributes:
      source: The module that imports.
      target: What it imports; of a name in a module of the package, the module.
      line: Where.
      inside: The function that it is in; empty: none.
    """

    source: str
    target: str
    line: int
    inside: str


def modules_of(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The modules of the package in a checkout, as they are imported; their files."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(modules: dict[str, pathlib.Path]) -> Iterator[Import]:
    """What modules import, wherever in them."""
    for module, path in modules.items():
        for node, inside in with_functions(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, (
                    f"{path}:{node.lineno} must name all of {PACKAGE}"
                )
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                ours = node.module.split(".")[0] == PACKAGE
                targets = [
                    node.module if ours and name not in modules else name
                    for name in names
                ]
            else:
                continue
            for target in dict.fromkeys(targets):
                yield Import(module, target, node.lineno, inside)


def with_functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[ast.AST, str]]:
    """All nodes, each with the innermost function that it is in."""
    for node in ast.iter_child_nodes(tree):
        yield node, inside
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from with_functions(node, node.name if is_function else inside)


def arrows(modules: Iterable[str], imports: Iterable[Import]) -> dict[str, set[str]]:
    """{module: other modules of the package that it imports}."""
    between = {module: set() for module in modules}
    for one in imports:
        if one.target in between and one.target != one.source:
            between[one.source].add(one.target)
    return between


def room(name: str) -> str:
    """The package that a module is in, or its own name on the top level."""
    return "".join(name.split(".")[1:2])


def assert_none(found: Iterable[Import]) -> None:
    lines = sorted(f"{i.source}:{i.line} imports {i.target}" for i in found)
    assert not lines, "\n".join(lines)


@pytest.fixture(scope="module")
def modules():
    return modules_of(ROOT)


@pytest.fixture(scope="module")
def imports(modules):
    return list(imports_of(modules))


def test_every_package_and_module_of_the_top_level_has_its_place(modules):
    assert {room(name) for name in modules} - {""} == set(LEVELS)


def test_there_are_no_circles(modules, imports):
    graphlib.TopologicalSorter(arrows(modules, imports)).prepare()


def test_imports_point_down(imports, modules):
    def climbs(i) -> bool:
        source, target = room(i.source), room(i.target)
        if i.target not in modules or not source or not target or source == target:
            return False
        return LEVELS[target] >= LEVELS[source]

    assert_none(filter(climbs, imports))


def test_imports_inside_functions_are_in_commands_only(imports):
    assert_none(i for i in imports if i.inside and room(i.source) not in COMMANDS)


def test_only_commands_and_cli_know_flags(imports):
    flags = [i for i in imports if i.target.startswith("absl.flags")]
    assert flags
    assert_none(i for i in flags if room(i.source) not in (*COMMANDS, "cli"))


def test_what_is_imported_is_required(imports):
    """Of ourselves, not by way of a library that may cease to need it."""
    setup = (ROOT / "setup.py").read_text()
    required = re.findall(r'"([\w.-]+)[\[>]', setup.partition("install_requires")[2])
    others = {i.target.split(".")[0] for i in imports}
    others -= {*sys.stdlib_module_names, "mtr_tf", "torch"}  # An extra.
    known = importlib.metadata.packages_distributions()
    given = {name.lower() for other in others for name in known[other]}
    assert given <= set(required)


def test_circles_and_late_imports_are_seen(tmp_path):
    folder = tmp_path / "mtr_tf" / "a"
    folder.mkdir(parents=True)
    for path, text in (
        ("__init__.py", "from mtr_tf.a import b\n"),
        ("b.py", "def f():\n    from mtr_tf.a import c\n"),
        ("c.py", "import mtr_tf.b\nfrom mtr_tf.a.b import f\n"),
        ("../__init__.py", ""),
        ("../b.py", "from absl import flags\n"),
    ):
        (folder / path).write_text(text)
    modules = modules_of(tmp_path)
    imports = list(imports_of(modules))
    found = arrows(modules, imports)
    assert found["mtr_tf.a"] == {"mtr_tf.a.b"}
    assert found["mtr_tf.a.b"] == {"mtr_tf.a.c"}
    assert found["mtr_tf.a.c"] == {"mtr_tf.b", "mtr_tf.a.b"}
    assert [i.inside for i in imports if i.inside] == ["f"]
    assert [i.target for i in imports if i.source == "mtr_tf.b"] == ["absl.flags"]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(found).prepare()
