# SPDX-License-Identifier: Apache-2.0
"""What a study is: its models, seeds, attacks and claims."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf import data
from mtr_tf.config.train import TrainConfig
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean
from mtr_tf.runs import store
from mtr_tf.tasks import canonical
from mtr_tf.tasks import resolve


@dataclasses.dataclass(frozen=True)
class Variant:
    """One kind of model, trained once per seed.

    Attributes:
      name: As in "s+A".
      train: Its fields of `TrainConfig`, in addition to those of the study.
      note: Text for the report.
      init_from: Name of the variant whose trained model of the same seed it begins
        with; empty to begin as its `init` says.
    """

    name: str
    train: dict[str, Any]
    note: str = ""
    init_from: str = ""

    def is_on(self, dataset: str) -> bool:
        """Whether it is trained on the study's `dataset`, as it names no other one."""
        return self.train.get("dataset", dataset) == dataset


@dataclasses.dataclass(frozen=True)
class AttackSpec:
    """One call of `mtr_tf.attack`, run on each of some variants, once per seed.

    Attributes:
      name: As in "pgd50".
      attack: Its fields of `AttackConfig`, in addition to those of the study.
      variants: Names of the variants that it is run on.
      source: Name of the variant whose run of the same seed the adversarial images are
        made on (transfer); empty to make them on the attacked run itself.
    """

    name: str
    attack: dict[str, Any]
    variants: tuple[str, ...]
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """A whole study.

    Attributes:
      name: Name of the file, without .toml.
      about: What the study asks, and on which data.
      seeds: Seeds; each variant is trained and attacked with each of them.
      train: Fields of `TrainConfig` for all variants that do not set them themselves.
      attack: Fields of `AttackConfig` for all attacks, likewise.
      variants: The variants, in the order of the file.
      attacks: The attacks, in the order of the file.
      claims: The claims as they stand in the file; `claim_file` reads them.
      file: The name or path that the study was read by.
    """

    name: str
    about: str
    seeds: tuple[int, ...]
    train: dict[str, Any]
    attack: dict[str, Any]
    variants: tuple[Variant, ...]
    attacks: tuple[AttackSpec, ...]
    claims: tuple[dict[str, Any], ...]
    file: str = ""

    @property
    def has_own_data(self) -> bool:
        """Whether a data set is a user's own (module:function), and may bring tasks."""
        fields = [self.train, self.attack, *(v.train for v in self.variants)]
        fields += [spec.attack for spec in self.attacks]
        return any(data.may_bring_tasks(f.get("dataset", "")) for f in fields)

    def names(self, tasks: str | Sequence[str]) -> tuple[str, ...]:
        """The full names of tasks; unknown names stay if data are the user's own.

        Raises:
          InputError: An unknown task, the same one twice, or none at all.
        """
        return canonical(tasks) if self.has_own_data else resolve(tasks)

    def variant(self, name: str) -> Variant:
        """The variant with a name; raises `InputError` for an unknown one."""
        return _by_name("variant", name, self.variants)

    @property
    def in_training_order(self) -> tuple[Variant, ...]:
        """The variants in file order, but each after the one that it begins with."""
        by_name: dict[str, Variant] = {}

        def add(variant: Variant) -> None:
            if variant.init_from and variant.name not in by_name:
                add(self.variant(variant.init_from))
            by_name.setdefault(variant.name, variant)

        for variant in self.variants:
            add(variant)
        return tuple(by_name.values())

    def spec(self, name: str) -> AttackSpec:
        """The attack with a name; raises `InputError` for an unknown one."""
        return _by_name("attack", name, self.attacks)

    def train_config(self, variant: str, seed: int) -> TrainConfig:
        """The settings of the run of a variant, given by name, with a seed.

        Settings of the study that the variant does not use are left out. The runner
        sets `init` for a variant with `init_from`.
        """
        variant_fields = self.variant(variant).train
        fields: dict[str, Any] = {**self.train, **variant_fields, "seed": seed}
        if self.variant(variant).init_from:
            fields["init"] = ""
        for name in TrainConfig(**fields).unused:
            if name not in variant_fields:
                del fields[name]
        return TrainConfig(**fields)

    def attack_fields(self, spec: str, variant: str, seed: int) -> dict[str, Any]:
        """The fields of `AttackConfig` of an attack on the run of a variant and seed.

        All but `ckpt`, `source_ckpt` and `name`, which the runner sets. Data are read
        from where the study has them now, not from where they were in training.
        """
        fields = {**self.attack, **self.spec(spec).attack, "seed": seed}
        data_dir = self.train_config(variant, seed).data_dir
        if data_dir and not fields.get("dataset"):
            fields.setdefault("data_dir", data_dir)
        return fields

    def to_dict(self) -> dict[str, Any]:
        """The study in the types of JSON, with lists for tuples."""
        return store.as_json(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Study:
        """The study of a dict that `to_dict` made; other keys are ignored.

        Raises:
          InputError: A part is missing, or of another version.
        """
        try:
            parts = {
                "seeds": tuple(values["seeds"]),
                "train": _settings(values["train"]),
                "attack": _settings(values["attack"]),
                "claims": tuple(values["claims"]),
                "variants": tuple(
                    Variant(**_with_settings(fields, "train"))
                    for fields in values["variants"]
                ),
                "attacks": tuple(
                    AttackSpec(**_with_settings(fields, "attack"))
                    for fields in values["attacks"]
                ),
            }
            texts = {key: values[key] for key in ("name", "about", "file")}
            return cls(**texts, **parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"this study is not from this version of mtr_tf ({error!r}); repeat "
                "mtr_tf.reproduce in this --workdir to write study.json again."
            ) from error


def slug(name: str) -> str:
    """The name of a variant or attack as part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "_", name)


def _by_name(kind: str, name: str, items: Sequence[Any]) -> Any:
    for item in items:
        if item.name == name:
            return item
    names = [item.name for item in items]
    raise InputError(
        f"there is no {kind} {name!r} in this study; there are "
        f"{', '.join(names) or 'none'}{did_you_mean(name, names, '; did') or '.'}"
    )


def _with_settings(fields: Mapping[str, Any], inner: str) -> dict[str, Any]:
    """Fields as `_settings` gives them, also within the field `inner`."""
    return _settings(fields) | {inner: _settings(fields[inner])}


def _settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as the records have them, with tuples for lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
