# SPDX-License-Identifier: Apache-2.0
"""Reading a study's TOML: every mistake in it is one sentence that names its place."""

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
    """What a TOML file holds."""
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
      where: Its place, as `rooms.toml, [variants."s+A"]`.
      content: What it holds.
    """

    where: str
    content: Mapping[str, Any]

    def fail(self, sentence: str) -> typing.NoReturn:
        """Raises `InputError` with the place before a sentence."""
        raise InputError(f"{self.where}: {sentence}")

    def check_keys(self, known: Sequence[str]) -> None:
        """Refuses keys that are not known."""
        for key in self.content:
            if key not in known:
                hint = (
                    did_you_mean(key, known, "; did")
                    or f"; there are {', '.join(known)}."
                )
                self.fail(f"there is no key {key!r}{hint}")

    def one_of(self, what: str, given: Any, known: Sequence[Any]) -> Any:
        """Returns what is given; refuses what is not known."""
        if given not in known:
            texts = list(map(in_words, known))
            hint = did_you_mean(in_words(given), texts, "; did")
            shown = repr(given) if isinstance(given, str) else in_words(given)
            self.fail(
                f"there is no {what} {shown}; there are "
                f"{', '.join(texts) or 'none'}{hint or '.'}"
            )
        return given

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        """What a key holds, of a type; a key without a default must be there."""
        if key not in self.content:
            if default is None:
                self.fail(f"{key} must be given, as {_KINDS[kind]}.")
            return default
        given = self.content[key]
        if not _is(given, kind):
            self.fail(f"{key} must be {_KINDS[kind]}, got {shortened(given)}.")
        return given

    def values(self, key: str, kind: type, default: Any = None) -> tuple[Any, ...]:
        """The items of the list under a key, all of a type."""
        found = self.value(key, list, default)
        for item in found:
            if not _is(item, kind):
                self.fail(
                    f"each item of {key} must be {_KINDS[kind]}, got "
                    f"{shortened(item)} in it."
                )
        return tuple(found)

    def tables(self, key: str) -> dict[str, Table]:
        """The named tables under a key, as [variants."s"] and [variants."d"]."""
        found = {}
        for name, inner in self.value(key, dict, {}).items():
            if not isinstance(inner, dict):
                self.fail(
                    f'{key} must hold named tables, such as [{key}."{name}"]; got '
                    f"{name} = {inner!r}."
                )
            found[name] = Table(f'{self.where}, [{key}."{name}"]', inner)
        return found

    def table(self, key: str) -> Table:
        """The table under a key; an empty one where it is not there."""
        return Table(f"{self.where}, [{key}]", self.value(key, dict, {}))

    def settings(
        self,
        record: type[Settings],
        refused: Mapping[str, str],
        spelled: Mapping[str, Callable[[Sequence[str]], Sequence[str]]],
        beside: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The fields of a record that the table gives, in the record's own types.

        Args:
          record: `TrainConfig` or `AttackConfig`.
          refused: {field: why it may not be given}.
          spelled: {field: gives its names their one spelling}.
          beside: keys of the table that are no fields.
        """
        fields = {field.name: field for field in dataclasses.fields(record)}
        hints = typing.get_type_hints(record)
        for key in self.content:
            if key in refused:
                self.fail(f"{key} must not be given: {refused[key]}.")
        allowed = [name for name in fields if name not in refused]
        self.check_keys([*beside, *allowed])
        found = {}
        for key in self.content:
            if key in beside:
                continue
            given = self.content[key]
            if not (fields[key].metadata["words"] and isinstance(given, str)):
                given = self._setting(key, hints[key])
            with self.explained(f"{key}: "):
                check_range(fields[key], given)
                spell = spelled.get(key)
                found[key] = tuple(spell(given)) if spell and given else given
        return found

    @contextlib.contextmanager
    def explained(self, before: str = "") -> Iterator[None]:
        """A context in which an `InputError` gets the table's place before it."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.where}: {before}{error}") from error

    def _setting(self, key: str, hint: Any) -> Any:
        if typing.get_origin(hint) is tuple:
            of = typing.get_args(hint)[0]
            return tuple(of(item) for item in self.values(key, of))
        if typing.get_origin(hint) in (types.UnionType, typing.Union):
            hint = typing.get_args(hint)[0]  # None is to say nothing; words are known.
        return hint(self.value(key, hint))


def in_words(value: Any) -> str:
    """A value as a sentence has it."""
    if isinstance(value, list):
        return "+".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is(given: Any, kind: type) -> bool:
    if kind is float:
        most = sys.float_info.max  # Whole numbers may be larger; NaN is not.
        return type(given) in (int, float) and abs(given) <= most
    return type(given) is kind
