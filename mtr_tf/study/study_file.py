# SPDX-License-Identifier: Apache-2.0
"""The file of a study: reads it into the records of `design`.

A study file is TOML:

    about = "One paragraph: what is asked, on what."
    seeds = [0, 1, 2, 3]
    [train]                     # settings of mtr_tf.train, for all variants
    [attack]                    # settings of mtr_tf.attack, for all attacks
    [variants."s+A"]            # settings of mtr_tf.train for one kind of model
    tasks = ["seg", "autoencoder"]
    note = "shown in the report"
    init_from = "s"             # begins with this variant's model of the same seed
    [attacks."pgd50"]           # settings of mtr_tf.attack for one attack
    variants = ["s+A"]          # which models it is run on; left out: on all
    source = "s"                # made on this variant's run of the same seed
    [[claims]]                  # see `claims`

Settings have the names of their flags. The study itself sets what differs between runs
(seeds, folders), so `seed`, `ckpt`, `source_ckpt`, `name` and `workdir` are refused.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf import data
from mtr_tf.config.attack import NO_ATTACK
from mtr_tf.config.attack import AttackConfig
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.runs import directory
from mtr_tf.study.design import AttackSpec
from mtr_tf.study.design import Study
from mtr_tf.study.design import Variant
from mtr_tf.study.design import slug
from mtr_tf.study.toml_table import Table
from mtr_tf.study.toml_table import read
from mtr_tf.tasks import groups
from mtr_tf.tasks.groups import task_weights
from mtr_tf.tasks.names import canonical
from mtr_tf.tasks.names import resolve

# Maps any names of tasks to their full names.
Resolve = Callable[[Sequence[str]], tuple[str, ...]]

_KEYS = ("about", "seeds", "train", "attack", "variants", "attacks", "claims")
_TRAIN_REFUSED = {
    "seed": "it is set by the study's seeds",
    "workdir": "the runner gives each run a folder of its own",
}
_ATTACK_REFUSED = {
    "seed": "it is set by the study's seeds",
    "ckpt": "it is set by the attack's variants",
    "source_ckpt": 'say source = "VARIANT" instead',
    "name": "the runner gives each attack a folder of its own",
    "out": "the runner gives each attack a folder of its own",
}


def shipped() -> dict[str, Any]:
    """The files of the studies that come with the package, by name."""
    folder = importlib.resources.files("mtr_tf.study") / "files"
    paths = {path.name: path for path in folder.iterdir()}
    return {
        name.removesuffix(".toml"): paths[name]
        for name in sorted(paths)
        if name.endswith(".toml")
    }


def find(name_or_path: str) -> Any:
    """The file of a study, given the name of a shipped study or the path of a file."""
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        return pathlib.Path(name_or_path)
    studies = shipped()
    if name_or_path not in studies:
        raise InputError(
            f"--study must be one of {', '.join(studies)}, or the path of a .toml "
            f"file; got {name_or_path!r}.{did_you_mean(name_or_path, studies)}"
        )
    return studies[name_or_path]


def load(
    name_or_path: str,
    *,
    seeds: Sequence[int] | None = None,
    train: Mapping[str, Any] | None = None,
) -> Study:
    """Reads a study that comes with the package, by name, or a .toml file, by path.

    Args:
      name_or_path: A name such as `rooms`, or a path such as `my/study.toml`.
      seeds: Seeds that replace those of the file.
      train: Fields of `TrainConfig` that replace those of the file's [train]. If they
        name another data set, options that it does not have are left out.

    Raises:
      InputError: There is no such study or file, or something in it cannot be used;
        the message names file, table and key.
    """
    path = find(name_or_path)
    content = read(path)
    if seeds is not None:
        content["seeds"] = list(seeds)
    new_dataset = None
    if train and isinstance(content.setdefault("train", {}), dict):
        if content["train"].get("dataset", TrainConfig.dataset) != train.get("dataset"):
            new_dataset = train.get("dataset")
        content["train"] |= train
    file = Table(path.name, content)
    file.check_keys(_KEYS)
    resolver = _resolver(file)
    variants = _variants(file, resolver)
    study = Study(
        name=path.name.removesuffix(".toml"),
        about=" ".join(file.value("about", str).split()),
        seeds=_seeds(file),
        train=_train_fields(file.table("train"), resolver),
        attack=_attack_fields(file.table("attack"), resolver),
        variants=variants,
        attacks=_attacks(file, [variant.name for variant in variants], resolver),
        claims=file.values("claims", dict, []),  # `claim_file` checks them.
        file=name_or_path,
    )
    if new_dataset:
        study = _without_options(study, new_dataset)
    _check(study, file)
    return study


def _without_options(study: Study, dataset: str) -> Study:
    """The study on a new data set, without the options that this data set lacks."""
    options = [
        name for name, (_, datasets) in data.OPTIONS.items() if dataset not in datasets
    ]

    def supported(fields: dict[str, Any], default: str | None = None) -> dict[str, Any]:
        if (fields.get("dataset", default) or dataset) != dataset:  # On other data.
            return fields
        return {name: value for name, value in fields.items() if name not in options}

    return dataclasses.replace(
        study,
        train=supported(study.train),
        attack=supported(study.attack),
        variants=tuple(
            dataclasses.replace(v, train=supported(v.train)) for v in study.variants
        ),
        attacks=tuple(
            dataclasses.replace(
                spec, attack=supported(spec.attack, study.attack.get("dataset"))
            )
            for spec in study.attacks
        ),
    )


def _resolver(file: Table) -> Resolve:
    """The function that gives tasks their full names: see `Study.names`."""
    tables = [file.table("train"), file.table("attack")]
    tables += [*file.tables("variants").values(), *file.tables("attacks").values()]
    datasets = [str(table.content.get("dataset", "")) for table in tables]
    return canonical if any(map(data.may_bring_tasks, datasets)) else resolve


def _train_fields(
    table: Table, resolver: Resolve, extra_keys: Sequence[str] = ()
) -> dict[str, Any]:
    spellings = {"tasks": resolver, "main_tasks": resolver}
    return table.settings(TrainConfig, _TRAIN_REFUSED, spellings, extra_keys)


def _attack_fields(
    table: Table, resolver: Resolve, extra_keys: Sequence[str] = ()
) -> dict[str, Any]:
    def group(text: str) -> str:
        if text.lower() in ("each", "all"):
            return text.lower()
        return "+".join(resolver(text.split("+")))

    spellings = {
        "tasks": resolver,
        "attack_tasks": lambda texts: [group(text) for text in texts],
    }
    return table.settings(AttackConfig, _ATTACK_REFUSED, spellings, extra_keys)


def _seeds(file: Table) -> tuple[int, ...]:
    seeds = file.values("seeds", int)
    valid = all(0 <= seed < 2**32 for seed in seeds)
    if not seeds or len(set(seeds)) < len(seeds) or not valid:
        file.fail(
            "seeds must be one or more different whole numbers from 0 to 2^32 - 1, got "
            f"{list(seeds)}."
        )
    return seeds


def _variants(file: Table, resolver: Resolve) -> tuple[Variant, ...]:
    tables = file.tables("variants")
    if not tables:
        file.fail(
            'there must be at least one variant, such as [variants."s"] with tasks '
            '= ["seg"].'
        )
    _check_slugs(file, "variants", tables)
    extra_keys = ("note", "init_from")
    variants = tuple(
        Variant(
            name,
            _train_fields(table, resolver, extra_keys),
            *(table.value(key, str, "") for key in extra_keys),
        )
        for name, table in tables.items()
    )
    _check_starts(variants, tables)
    return variants


def _check_starts(variants: Sequence[Variant], tables: Mapping[str, Table]) -> None:
    """Refuses variants that begin with an unknown variant, or with themselves."""
    starts = {v.name: v.init_from for v in variants}
    for variant in variants:
        name, table, path = variant.name, tables[variant.name], [variant.name]
        if not variant.init_from:
            continue
        table.one_of("variant", variant.init_from, list(starts))
        if variant.init_from == name:
            table.fail(f"init_from must name another variant, got {name!r} itself.")
        if "init" in variant.train:
            table.fail("init_from and init say the same; leave out one of the two.")
        while (start := starts.get(path[-1])) and start not in path:
            path.append(start)
        if start == name:
            table.fail(
                "init_from must not lead round in a circle, but here "
                f"{' begins with '.join(map(repr, (*path, name)))}; leave out one."
            )


def _attacks(
    file: Table, variants: Sequence[str], resolver: Resolve
) -> tuple[AttackSpec, ...]:
    tables = file.tables("attacks")
    _check_slugs(file, "attacks", tables)
    specs = []
    for name, table in tables.items():
        fields = _attack_fields(table, resolver, ("variants", "source"))
        names = table.values("variants", str, list(variants))
        source = table.value("source", str, "")
        for variant in (*names, source) if source else names:
            table.one_of("variant", variant, variants)
        if not names:
            table.fail(
                "variants must name one or more variants; leave it out to take all."
            )
        specs.append(AttackSpec(name, fields, tuple(dict.fromkeys(names)), source))
    return tuple(specs)


def _check_slugs(file: Table, key: str, names: Iterable[str]) -> None:
    """Refuses names that would get the same folder."""
    by_slug: dict[str, str] = {}
    for name in names:
        first_name = by_slug.setdefault(slug(name), name)
        if first_name != name or not re.search(r"\w", name):
            file.fail(
                f"names of {key} must differ in letters, digits or any of ._+-; got "
                f"{first_name!r} and {name!r}."
            )


def _check(study: Study, file: Table) -> None:
    """Makes all records once, to find settings that do not go together."""
    seed = study.seeds[0]
    tables = file.tables("variants")
    for variant in study.variants:
        with tables[variant.name].explained():
            config = directory.canonical(study.train_config(variant.name, seed))
            task_weights(config.tasks, config.main_tasks, config.aux_weight)
            if variant.init_from:
                start_config = study.train_config(variant.init_from, seed)
                _check_same_net(
                    config, directory.canonical(start_config), variant.init_from
                )
    tables = file.tables("attacks")
    for spec in study.attacks:
        for name in spec.variants:
            with tables[spec.name].explained():
                fields = study.attack_fields(spec.name, name, seed)
                config = AttackConfig(ckpt="run", **fields)
            for run in filter(None, (name, spec.source)):
                with tables[spec.name].explained(f"on the variant {run!r}: "):
                    tasks = study.names(study.train_config(run, seed).tasks)
                    _check_tasks(config, tasks)


def _check_same_net(config: TrainConfig, start: TrainConfig, name: str) -> None:
    """Refuses to begin with the weights of a net of another architecture."""
    for key in ("model", "width"):
        value, start_value = getattr(config, key), getattr(start, key)
        if value != start_value:
            raise InputError(
                f"init_from needs a variant with the same {key}, but {name!r} has "
                f"{start_value!r} and this one {value!r}; change one of them."
            )
    if start.shared_stages not in (-1, config.shared_stages):
        raise InputError(
            "init_from needs a variant whose tasks share all stages of the encoder, or "
            f"as many as here, but those of {name!r} share {start.shared_stages} and "
            f"these {config.shared_stages}; change one of them."
        )


def _check_tasks(config: AttackConfig, tasks: Sequence[str]) -> None:
    """Refuses an attack on tasks that a variant does not have."""
    groups.check_has(config.tasks, tasks, "--tasks")
    attack_tasks = [task for task in tasks if task in (config.tasks or tasks)]
    if config.attack != NO_ATTACK:
        groups.parse_groups(config.attack_tasks, attack_tasks)
