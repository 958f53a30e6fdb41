# SPDX-License-Identifier: Apache-2.0
"""Reads a study's TOML; every mistake in it gives a sentence that names its place."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tomllib
import types
import typing
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mtr_tf import files
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import check_range
from mtr_tf.config.settings import shortened
from mtr_tf.errors import InputError
from mtr_tf.errors import did_you_mean

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: 'a text in quotes, "..."',
    list: "a list, [...]",
    dict: "a table",
}


def read(path: Any) -> dict[str, Any]:
    """The content of a TOML file."""
    try:
        return tomllib.loads(files.read_text(path))
    except OSError as error:
        raise InputError(
            f"the study file {path} cannot be read ({error.strerror or error}); give "
            "the path of a .toml file, or the name of a study that comes with mtr_tf."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a file. Its methods raise `InputError` that begins with `where`.

    Attributes:
      where: Its place, such as `rooms.toml, [variants."s+A"]`.
      content: Its keys and values.
    """

    where: str
    content: Mapping[str, Any]

    def fail(self, sentence: str) -> typing.NoReturn:
        """Raises `InputError` with a sentence after the place."""
        raise InputError(f"{self.where}: {sentence}")

    def check_keys(self, keys: Sequence[str]) -> None:
        """Refuses keys of the table that are not among `keys`."""
        for key in self.content:
            if key not in keys:
                hint = (
                    did_you_mean(key, keys, "; did")
                    or f"; there are {', '.join(keys)}."
                )
                self.fail(f"there is no key {key!r}{hint}")

    def one_of(self, label: str, value: Any, choices: Sequence[Any]) -> Any:
        """Returns a value; refuses one that is not among the choices."""
        if value not in choices:
            texts = list(map(in_words, choices))
            hint = did_you_mean(in_words(value), texts, "; did")
            value_text = repr(value) if isinstance(value, str) else in_words(value)
            self.fail(
                f"there is no {label} {value_text}; there are "
                f"{', '.join(texts) or 'none'}{hint or '.'}"
            )
        return value

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key, checked for its type; required without a default."""
        if key not in self.content:
            if default is None:
                self.fail(f"{key} must be given, as {_KINDS[kind]}.")
            return default
        value = self.content[key]
        if not _is_kind(value, kind):
            self.fail(f"{key} must be {_KINDS[kind]}, got {shortened(value)}.")
        return value

    def values(self, key: str, kind: type, default: Any = None) -> tuple[Any, ...]:
        """The items of the list under a key, all checked for their type."""
        items = self.value(key, list, default)
        for item in items:
            if not _is_kind(item, kind):
                self.fail(
                    f"each item of {key} must be {_KINDS[kind]}, got "
                    f"{shortened(item)} in it."
                )
        return tuple(items)

    def tables(self, key: str) -> dict[str, Table]:
        """The named tables under a key, such as [variants."s"] and [variants."d"]."""
        tables = {}
        for name, inner in self.value(key, dict, {}).items():
            if not isinstance(inner, dict):
                self.fail(
                    f'{key} must hold named tables, such as [{key}."{name}"]; got '
                    f"{name} = {inner!r}."
                )
            tables[name] = Table(f'{self.where}, [{key}."{name}"]', inner)
        return tables

    def table(self, key: str) -> Table:
        """The table under a key; an empty one if the key is missing."""
        return Table(f"{self.where}, [{key}]", self.value(key, dict, {}))

    def settings(
        self,
        record: type[Settings],
        refusals: Mapping[str, str],
        spellings: Mapping[str, Callable[[Sequence[str]], Sequence[str]]],
        extra_keys: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The fields of a record that the table gives, in the record's own types.

        Args:
          record: `TrainConfig` or `AttackConfig`.
          refusals: {field: why it may not be given}.
          spellings: {field: function that gives names their one spelling}.
          extra_keys: Keys of the table that are not fields.
        """
        fields = {field.name: field for field in dataclasses.fields(record)}
        hints = typing.get_type_hints(record)
        for key in self.content:
            if key in refusals:
                self.fail(f"{key} must not be given: {refusals[key]}.")
        names = [name for name in fields if name not in refusals]
        self.check_keys([*extra_keys, *names])
        settings = {}
        for key in self.content:
            if key in extra_keys:
                continue
            value = self.content[key]
            if not (fields[key].metadata["words"] and isinstance(value, str)):
                value = self._setting(key, hints[key])
            with self.explained(f"{key}: "):
                check_range(fields[key], value)
                spell = spellings.get(key)
                settings[key] = tuple(spell(value)) if spell and value else value
        return settings

    @contextlib.contextmanager
    def explained(self, prefix: str = "") -> Iterator[None]:
        """A context that puts the table's place before messages of `InputError`."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.where}: {prefix}{error}") from error

    def _setting(self, key: str, hint: Any) -> Any:
        if typing.get_origin(hint) is tuple:
            item_type = typing.get_args(hint)[0]
            return tuple(item_type(item) for item in self.values(key, item_type))
        if typing.get_origin(hint) in (types.UnionType, typing.Union):
            hint = typing.get_args(hint)[0]  # None: leave the key out.
        return hint(self.value(key, hint))


def in_words(value: Any) -> str:
    """A value as words in a sentence."""
    if isinstance(value, list):
        return "+".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_kind(value: Any, kind: type) -> bool:
    if kind is float:
        largest = sys.float_info.max  # Refuses NaN, and whole numbers beyond floats.
        return type(value) in (int, float) and abs(value) <= largest
    return type(value) is kind
