# SPDX-License-Identifier: Apache-2.0
"""Measures how the package is built: modules, imports, files that a batch crosses.

    python benchmarks/structure.py
    python benchmarks/structure.py --root=OTHER_CHECKOUT --details

Everything but the crossings is read from the source, whatever the names of modules, so
that any two checkouts can be compared. For the crossings, two tiny models are trained
and one is attacked; a file counts if one of its functions is called while a batch is
put together or the step is traced.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

PACKAGE = "mtr_tf"
COMMANDS = ("train", "attack", "convert", "compare", "export", "reproduce", "__main__")
# The constants with the names of attacks; in dicts, the keys are the names.
_ATTACK_TABLES = ("ATTACKS", "KINDS", "RELEASED")
_MECHANISMS = ("_DAMAGED", "_PLACE_ONLY")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Module:
    """A file of the package.

    Attributes:
      name: As it is imported: `mtr_tf.data.batching`; of a package, without __init__.
      path: The file.
      tree: The syntax tree of the file.
    """

    name: str
    path: pathlib.Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """The package that it is in, or its name on the top level; "" for the root."""
        return self.name.partition(".")[2].partition(".")[0]


@dataclasses.dataclass(frozen=True)
class Import:
    """One name that a module imports.

    Attributes:
      source: The module that imports.
      target: What it imports; for a name in a module of the package, the module.
      line: The line of the import.
      inside: The function that the import is in; empty: none.
    """

    source: str
    target: str
    line: int
    inside: str


def modules(root: pathlib.Path) -> dict[str, Module]:
    """All modules of the package in a checkout, by their names."""
    by_name = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        by_name[name] = Module(name, path, ast.parse(path.read_text(), str(path)))
    return by_name


# Imports.


def imports(module: Module, names: Iterable[str]) -> list[Import]:
    """All imports of a module; `names` are the modules of the package."""
    records = []
    for node, inside in _with_functions(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            full_names = [f"{base}.{alias.name}" for alias in node.names]
            is_internal = base.split(".")[0] == PACKAGE
            targets = [
                base if is_internal and name not in names else name
                for name in full_names
            ]
        else:
            continue
        targets = dict.fromkeys(targets)
        records += [Import(module.name, t, node.lineno, inside) for t in targets]
    return records


def _with_functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Yields all nodes, each with the innermost function that it is in."""
    for node in ast.iter_child_nodes(tree):
        yield node, inside
        name = node.name if isinstance(node, _Function) else inside
        yield from _with_functions(node, name)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    length = len(package) - node.level + (module.path.name == "__init__.py")
    return ".".join([*package[:length], *filter(None, [node.module])])


def arrows(root: pathlib.Path) -> dict[str, set[str]]:
    """{module: modules of the package that it imports, also inside functions}."""
    by_name = modules(root)
    return {
        name: {i.target for i in imports(m, by_name) if i.target in by_name} - {name}
        for name, m in by_name.items()
    }


def rooms(module_arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows between packages and modules of the top level."""
    graph = collections.defaultdict(set)
    for source, targets in module_arrows.items():
        room = source.split(".")[1:2]
        heads = {tuple(target.split(".")[1:2]) for target in targets}
        graph["".join(room)] |= {"".join(head) for head in heads} - {"".join(room)}
    graph.pop("", None)  # The package itself, which gives its version.
    return {room: heads - {""} for room, heads in graph.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other, each sorted."""
    closure = {name: _reach(name, graph) for name in graph}
    groups = {
        tuple(sorted({name} | {o for o in closure[name] if name in closure.get(o, ())}))
        for name in graph
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def _reach(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    reachable, queue = set(), [start]
    while queue:
        new_nodes = graph.get(queue.pop(), set()) - reachable
        reachable |= new_nodes
        queue += new_nodes
    return reachable


def late_imports(root: pathlib.Path) -> list[Import]:
    """The imports inside functions."""
    by_name = modules(root)
    all_imports = [i for module in by_name.values() for i in imports(module, by_name)]
    return [i for i in all_imports if i.inside]


# Attacks by their names.


def attack_names(root: pathlib.Path) -> set[str]:
    """The names of attacks: the strings in tables of attacks, or the keys of dicts."""
    attacks = set()
    for module in modules(root).values():
        if module.room in ("attacks", "config", "attack_config"):
            for name, value in _constants(module.tree):
                if name in _ATTACK_TABLES:
                    attacks |= _strings(value)
    return attacks


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Yields (name, value) of the assignments at the top level of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value:
            targets = [node.target]
        else:
            continue
        yield from ((t.id, node.value) for t in targets if isinstance(t, ast.Name))


def _strings(value: ast.AST) -> set[str]:
    """The strings of a literal; of a dict, its keys."""
    if isinstance(value, ast.Dict):
        nodes = [key for key in value.keys if key]
    elif isinstance(value, ast.Tuple | ast.List | ast.Set):
        nodes = value.elts
    elif isinstance(value, ast.Call):
        nodes = [e for a in value.args for e in getattr(a, "elts", [])]
    else:
        nodes = [value]
    texts = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {text for text in texts if isinstance(text, str)}


def attack_branches(root: pathlib.Path) -> list[str]:
    """Places that compare something with the name of an attack.

    The name is a literal, or in a constant of the module.
    """
    names, places = attack_names(root), []
    for module in modules(root).values():
        groups = {
            name for name, value in _constants(module.tree) if names & _strings(value)
        }
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                side_names = {s.id for s in sides if isinstance(s, ast.Name)}
                texts = set().union(*map(_strings, sides))
                if names & texts or groups & side_names:
                    places.append(f"{module.path.relative_to(root)}:{node.lineno}")
    return places


def attack_tables(root: pathlib.Path) -> list[str]:
    """Constants that list two attacks or more by name."""
    names = attack_names(root)
    return [
        f"{module.path.relative_to(root)}: {name}"
        for module in modules(root).values()
        for name, value in _constants(module.tree)
        if len(names & _strings(value)) > 1
    ]


def mechanisms(root: pathlib.Path) -> list[str]:
    """Constants that list what counts as damaged, or as a mere place."""
    return [
        f"{module.path.relative_to(root)}: {name}"
        for module in modules(root).values()
        for name, _ in _constants(module.tree)
        if name.endswith(_MECHANISMS)
    ]


# Sizes, annotations and docstrings.


def lines(folder: pathlib.Path) -> int:
    """Lines of Python in a folder."""
    return sum(len(p.read_text().splitlines()) for p in folder.rglob("*.py"))


def public_functions(root: pathlib.Path) -> list[_Function]:
    """Functions and methods without an underscore, except those inside functions."""
    functions = []
    for module in modules(root).values():
        classes = [n for n in module.tree.body if isinstance(n, ast.ClassDef)]
        bodies = [module.tree, *(c for c in classes if not c.name.startswith("_"))]
        nodes = [node for body in bodies for node in body.body]
        functions += [n for n in nodes if isinstance(n, _Function) and n.name[0] != "_"]
    return functions


def _is_annotated(function: _Function) -> bool:
    """Whether all parameters but self, and the returned value, have a type."""
    args = function.args
    parameters = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    parameters = [
        a for i, a in enumerate(parameters) if i or a.arg not in ("self", "cls")
    ]
    return bool(function.returns) and all(a.annotation for a in parameters)


# Crossings.

_DATA = """
import numpy as np

def examples():
    return {"train": [one(i) for i in range(8)],
            "validation": [one(i) for i in range(8, 12)],
            "classes": ["a", "b"]}

def one(seed):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (16, 16, 3), np.uint8),
            "targets": {"seg": rng.integers(0, 2, (16, 16)),
                        "depth": rng.uniform(1, 3, (16, 16))}}
"""
_TRAIN = {
    "dataset": "structure_data:examples",
    "tasks": ("seg", "depth"),
    "model": "tiny",
    "width": 4,
    "epochs": 1,
    "batch_size": 4,
    "eval_eps": 0.0,
}
_ATTACK = {
    "attack": ("pgd",),
    "attack_tasks": ("seg+depth",),
    "eps": (4.0,),
    "steps": 2,
    "batch_size": 4,
    "checks": False,
}


def crossings(root: pathlib.Path) -> dict[str, list[str]]:
    """{kind of batch: files that it crosses}, traced in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "structure_data.py").write_text(_DATA)
        environment = {**os.environ, "PYTHONPATH": str(root.resolve())}
        command = [sys.executable, os.path.abspath(__file__), "--trace"]
        process = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True
        )
        if process.returncode:
            raise SystemExit(process.stderr)
        return json.loads(process.stdout.splitlines()[-1])


@dataclasses.dataclass
class _Trace:
    """Collects the modules whose functions are called while it is on."""

    met: dict[str, None] = dataclasses.field(default_factory=dict)
    depth: int = 0

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Watches all calls of this thread."""
        self.depth += 1
        sys.setprofile(self._look)
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                sys.setprofile(None)

    def _look(self, frame: Any, event: str, argument: Any) -> None:
        if event != "call" or frame.f_code.co_filename == "<string>":
            return  # Functions in "<string>" are made by dataclasses.
        # By the module, since AutoGraph copies functions into files of its own.
        name = frame.f_globals.get("__name__", "")
        if name.startswith(f"{PACKAGE}."):
            self.met.setdefault(name)

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its calls traced while it runs."""

        def traced(*arguments: Any, **settings: Any) -> Any:
            with self.on():
                return function(*arguments, **settings)

        return traced

    def take(self) -> list[str]:
        """The modules that were met since the last call."""
        module_names, self.met = list(self.met), {}
        return module_names


def _trace() -> None:
    """Prints the result of `crossings` for the imported package."""
    commands = {c: importlib.import_module(f"{PACKAGE}.{c}") for c in COMMANDS[:2]}
    import tensorflow as tf

    folder = os.path.dirname(commands["train"].__file__)
    for info in pkgutil.walk_packages([folder], f"{PACKAGE}."):
        with contextlib.suppress(ImportError):  # Some need PyTorch, or the like.
            importlib.import_module(info.name)
    trace, crossed_modules = _Trace(), {}
    for name in ("train_batches", "replica_step"):
        _replace(name, trace.wrap)
    train, attack = commands["train"], commands["attack"]
    kinds = {
        "plain training": {},
        "adversarial training": {"adversarial_tasks": "seg", "adversarial_steps": 2},
    }
    for kind, changes in kinds.items():
        config = train.TrainConfig(**_TRAIN | changes)
        train.main(config, train.RunPlace(workdir=kind.partition(" ")[0]))
        crossed_modules[kind] = trace.take()
    _replace("eval_batches", trace.wrap)
    run = next(
        c for c in type(tf.distribute.get_strategy()).__mro__ if "run" in vars(c)
    )
    run.run = trace.wrap(run.run)
    attack.main(attack.AttackConfig(ckpt="plain", dataset=_TRAIN["dataset"], **_ATTACK))
    crossed_modules["attacked evaluation"] = trace.take()
    print(json.dumps(crossed_modules))


def _replace(name: str, wrap: Callable[..., Any]) -> None:
    """Wraps a function of this name in all modules that know it."""
    package_modules = [
        m for n, m in list(sys.modules.items()) if n.startswith(f"{PACKAGE}.")
    ]
    (function,) = {
        vars(module)[name] for module in package_modules if name in vars(module)
    }
    replacement = wrap(function)
    for module in package_modules:
        if vars(module).get(name) is function:
            setattr(module, name, replacement)


# The table.


def measure(root: pathlib.Path, trace: bool = True) -> list[dict[str, Any]]:
    """The rows of the table: what, found, goal, and the details behind it."""
    module_arrows, inner_imports = arrows(root), late_imports(root)
    outside_commands = [
        i for i in inner_imports if i.source.split(".")[1] not in COMMANDS
    ]
    top_modules = [path.name for path in (root / PACKAGE).glob("*.py")]
    functions = public_functions(root)
    typed = [f for f in functions if _is_annotated(f)]
    documented = [f for f in functions if ast.get_docstring(f)]

    def row(what: str, details: Iterable[Any], goal: Any, value: Any = None) -> None:
        details = list(details)
        entry = {"what": what, "found": len(details) if value is None else value}
        rows.append(entry | {"goal": goal, "details": details})

    rows = []
    row("modules on the top level", sorted(top_modules), "at most 9")
    row("modules in all", module_arrows, "", len(module_arrows))
    row("circles of modules", map(" - ".join, circles(module_arrows)), 0)
    row("circles of packages", map(" - ".join, circles(rooms(module_arrows))), 0)
    package_imports = [i for i in inner_imports if i.target.startswith(f"{PACKAGE}.")]
    row(
        "imports of the package inside functions",
        map(_location, package_imports),
        "",
    )
    row("... of anything, outside the commands", map(_location, outside_commands), 0)
    if trace:
        goals = {"plain training": 6, "adversarial training": 9}
        for kind, module_names in crossings(root).items():
            crossed = [name for name in module_names if not _is_reader(name)]
            readers = [f"reader: {name}" for name in module_names if _is_reader(name)]
            row(f"files crossed, {kind}", crossed + readers, 9, len(crossed))
            rows[-1]["goal"] = goals.get(kind, 9)
    row("branches on an attack's name", attack_branches(root), "")
    row("tables of attacks' names", attack_tables(root), 1)
    row("_DAMAGED, _PLACE_ONLY", mechanisms(root), "")
    row("lines of the package", [], "22.7 k", lines(root / PACKAGE))
    row("lines of tests", [], "", lines(root / "tests"))
    row("public functions", [], "", len(functions))
    for what, subset in (("with all types", typed), ("with a docstring", documented)):
        row(f"... {what}", [], "", f"{len(subset) / len(functions):.0%}")
    return rows


def _is_reader(name: str) -> bool:
    """Whether the module holds the examples that `batching` asks for."""
    return bool(re.match(rf"{PACKAGE}\.data\.(custom|source)", name))


def _location(record: Import) -> str:
    return f"{record.source}:{record.line} {record.inside}: {record.target}"


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    checkout = pathlib.Path(__file__).resolve().parents[1]
    parser.add_argument(
        "--root", type=pathlib.Path, default=checkout, help="a checkout"
    )
    parser.add_argument("--details", action="store_true", help="say what is counted")
    parser.add_argument("--quick", action="store_true", help="without the crossings")
    parser.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.trace:
        _trace()
        return
    rows = measure(args.root.resolve(), trace=not args.quick)
    widths = [max(len(str(row[key])) for row in rows) for key in ("what", "found")]
    for row in rows:
        what, value = row["what"].ljust(widths[0]), str(row["found"]).rjust(widths[1])
        print(f"{what}  {value}  {row['goal']}".rstrip())
        if args.details:
            print("".join(f"    {detail}\n" for detail in row["details"]), end="")


if __name__ == "__main__":
    main()
