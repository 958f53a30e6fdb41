# SPDX-License-Identifier: Apache-2.0
"""The order of packages: who may import whom, and where. All of it is read, not run."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Each imports only what is above it, and nothing on its own line.
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
VAGUE = {"found", "given", "known", "made", "own", "said", "seen", "told"}
LEVELS = {room: i for i, rooms in enumerate(ORDER) for room in rooms.split()}


@pytest.fixture(scope="module")
def structure():
    """The benchmark's script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("structure")


@pytest.fixture(scope="module")
def modules(structure):
    return structure.modules(ROOT)


@pytest.fixture(scope="module")
def imports(structure, modules):
    return [i for m in modules.values() for i in structure.imports(m, modules)]


def room(name: str) -> str:
    return "".join(name.split(".")[1:2])


def assert_none(imports) -> None:
    lines = sorted(f"{i.source}:{i.line} imports {i.target}" for i in imports)
    assert not lines, "\n".join(lines)


def test_every_package_and_module_of_the_top_level_has_its_place(modules):
    assert {room(name) for name in modules} - {""} == set(LEVELS)


def test_there_are_no_circles(structure):
    arrows = structure.arrows(ROOT)
    assert structure.circles(arrows) == []
    assert structure.circles(structure.rooms(arrows)) == []


def test_imports_point_down(imports, modules):
    def climbs(i) -> bool:
        source, target = room(i.source), room(i.target)
        if i.target not in modules or not source or not target or source == target:
            return False
        return LEVELS[target] >= LEVELS[source]

    assert_none(filter(climbs, imports))


def test_imports_inside_functions_are_in_commands_only(imports, structure):
    late_imports = [
        i for i in imports if i.inside and room(i.source) not in structure.COMMANDS
    ]
    assert_none(late_imports)


def test_only_one_module_knows_absls_flags(imports):
    users = {i.source for i in imports if i.target.startswith("absl.flags")}
    assert users == {"mtr_tf.cli.flags"}


def test_variables_say_what_they_hold(modules):
    """A list of records is `records`, not `found`; a mask is `valid`, not `known`."""

    def names(tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                yield node.arg, node.lineno
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id, node.lineno

    vague_names = [
        f"{name}:{line} {word}"
        for name, module in modules.items()
        for word, line in names(module.tree)
        if word in VAGUE
    ]
    assert not vague_names, "\n".join(vague_names)


def test_what_is_imported_is_required(imports):
    """Required by the package itself, not through a library that may drop it."""
    setup = (ROOT / "setup.py").read_text()
    requirements = re.findall(
        r'"([\w.-]+)[\[>]', setup.partition("install_requires")[2]
    )
    packages = {i.target.split(".")[0] for i in imports}
    packages -= {*sys.stdlib_module_names, "mtr_tf", "torch"}  # An extra.
    distributions = importlib.metadata.packages_distributions()
    names = {name.lower() for package in packages for name in distributions[package]}
    assert names <= set(requirements)


def test_the_script_sees_circles_and_imports(structure, tmp_path):
    folder = tmp_path / "mtr_tf" / "a"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("from mtr_tf.a import b\n")
    (folder / "b.py").write_text("def f():\n    from . import c\n")
    text = (
        "import mtr_tf.b\nfrom mtr_tf.a.b import f\n\nx = 'pgd' if f == 'pgd' else 0\n"
    )
    (folder / "c.py").write_text(text)
    (folder.parent / "b.py").write_text("from absl import flags\nKINDS = {'pgd': 1}\n")
    arrows = structure.arrows(tmp_path)
    assert arrows["mtr_tf.a"] == {"mtr_tf.a.b"}
    assert arrows["mtr_tf.a.b"] == {"mtr_tf.a.c"}
    assert arrows["mtr_tf.a.c"] == {"mtr_tf.b", "mtr_tf.a.b"}
    assert structure.circles(arrows) == [["mtr_tf.a.b", "mtr_tf.a.c"]]
    assert structure.rooms(arrows)["a"] == {"b"}
    assert [i.inside for i in structure.late_imports(tmp_path)] == ["f"]
    (folder.parent / "attacks.py").write_text("KINDS = {'pgd': 1, 'fgsm': 2}\n")
    assert structure.attack_branches(tmp_path) == ["mtr_tf/a/c.py:4"]
    assert structure.attack_tables(tmp_path) == ["mtr_tf/attacks.py: KINDS"]
