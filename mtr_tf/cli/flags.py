# SPDX-License-Identifier: Apache-2.0
"""Flags made from the settings records, and how the commands start and end."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging as standard_logging
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import tqdm
from absl import app
from absl import flags
from absl import logging

import mtr_tf
from mtr_tf import files
from mtr_tf.cli import stopping
from mtr_tf.config.settings import Settings
from mtr_tf.config.settings import not_a_number
from mtr_tf.config.settings import shortened
from mtr_tf.config.settings import unknown_choice
from mtr_tf.errors import InputError
from mtr_tf.errors import input_error_within
from mtr_tf.errors import is_out_of_memory
from mtr_tf.errors import nearest

_HELP = ("-h", "-help", "--help", "-?", "--helpshort")
_PACKAGE = os.path.join(os.path.dirname(mtr_tf.__file__), "")


def define(record: type[Settings], values: flags.FlagValues) -> None:
    """Defines one flag per field of the record, with the field's default and help."""
    for field in dataclasses.fields(record):
        name, default, metadata = field.name, field.default, field.metadata
        help = metadata["help"]
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
            flags.DEFINE_list(name, default, help, flag_values=values)
        elif choices := metadata["choices"]:
            flags.DEFINE_enum(name, default, choices, help, flag_values=values)
        elif words := metadata["words"]:
            parser, serializer = _NumberOrWord(words), flags.ArgumentSerializer()
            flags.DEFINE(parser, name, default, help, values, serializer)
        else:
            _DEFINE[type(default)](name, default, help, flag_values=values)


# What defines a flag, by the type of its default.
_DEFINE: dict[type, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    type(None): flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


class _NumberOrWord(flags.ArgumentParser):
    """Takes a whole number, or one of some words."""

    def __init__(self, words: Sequence[str]):
        self._words = words

    def parse(self, argument: str | int) -> str | int:
        return argument if argument in self._words else int(argument)


def parse(
    argv: Sequence[str], records: Sequence[type[Settings]]
) -> tuple[Settings, ...]:
    """The records of a command line.

    Raises:
      InputError: A flag is unknown, or its value is of another kind or out of range.
    """
    values = defined(records)
    try:
        arguments = values(list(argv))
    except (flags.Error, ValueError) as error:  # ValueError: --noNAME=VALUE.
        raise InputError(_explanation(error, records)) from error
    flags.FLAGS.mark_as_parsed()  # absl's own flags, which are among these.
    if len(arguments) > 1:
        raise InputError(
            "every argument must be a flag, --name=value; got "
            f"{shortened(' '.join(arguments[1:]))}. --help lists the flags."
        )
    return tuple(read(record, values) for record in records)


def overridden(argv: Sequence[str], records: Sequence[type[Settings]]) -> Iterator[str]:
    """Yields a sentence for each typed flag that a later flagfile changes.

    `argv` and `records` are those that `parse` took. The last value of a flag counts.
    """

    def parse_flags(arguments: Sequence[str]) -> flags.FlagValues:
        values = flags.FlagValues()
        for record in records:
            define(record, values)
        values(list(arguments), known_only=True)
        return values

    typed_arguments, iterator = [], iter(argv)
    for argument in iterator:
        if argument in ("--flagfile", "-flagfile"):
            next(iterator, None)
        elif not argument.startswith(("--flagfile=", "-flagfile=")):
            typed_arguments.append(argument)
    typed_values, final_values = parse_flags(typed_arguments), parse_flags(argv)
    for name in typed_values:
        if (
            typed_values[name].present
            and typed_values[name].value != final_values[name].value
        ):
            yield (
                f"{typed_values[name].serialize()} is overridden by a flagfile, which "
                f"has {final_values[name].serialize()}; give it after --flagfile"
            )


def defined(records: Sequence[type[Settings]]) -> flags.FlagValues:
    """The flags of some records, and those of absl."""
    values = flags.FlagValues()
    values.append_flag_values(flags.FLAGS)
    for record in records:
        define(record, values)
    return values


def read(record: type[Settings], values: flags.FlagValues) -> Settings:
    """The record of parsed flags; raises `InputError` if a value is out of range."""
    types = typing.get_type_hints(record)
    settings = {}
    for field in dataclasses.fields(record):
        value = values[field.name].value
        if isinstance(field.default, tuple):
            item_type = typing.get_args(types[field.name])[0]
            value = tuple(_convert(field.name, text, item_type) for text in value)
        settings[field.name] = value
    return record(**settings)


def _convert(name: str, text: str, item_type: type) -> str | int | float:
    text = text.strip()
    try:
        return item_type(text)
    except ValueError as error:
        kind = {int: "whole numbers", float: "numbers"}[item_type]
        raise InputError(
            f"--{name} must be a comma-separated list of {kind}, but contains "
            f"{shortened(text)}."
        ) from error


def _explanation(error: Exception, records: Sequence[type[Settings]]) -> str:
    """Our own sentence for absl's error about a command line."""
    fields = {f.name: f for record in records for f in dataclasses.fields(record)}
    if isinstance(error, flags.UnrecognizedFlagError):
        guess = nearest(error.flagname.strip("-"), fields)
        hint = f"Did you mean --{guess}?" if guess else "--help lists the flags."
        return f"there is no flag --{error.flagname}. {hint}"
    bad_value = re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL)
    if bad_value and bad_value[1] in fields:
        name, value = bad_value.groups()
        choices = fields[name].metadata["choices"]
        if choices:
            return unknown_choice(name, value, choices)
        return not_a_number(fields[name], value)
    missing_value = re.match(r"Missing value for flag -*(\w+)", str(error))
    if missing_value:
        return f"--{missing_value[1]} needs a value: --{missing_value[1]}=VALUE."
    if isinstance(error, flags.CantOpenFlagFileError):
        file = getattr(error.__context__, "filename", "")  # Also one in a flagfile.
        return (
            f"--flagfile={file} must name a flagfile that can be read, but it cannot "
            f"be opened from {os.getcwd()}; check the path."
        )
    return f"the flags cannot be read: {' '.join(str(error).split())}."


def help_text(name: str, doc: str, records: Sequence[type[Settings]]) -> str:
    """What `--help` prints: the module's docstring and each flag with its default."""
    lines = [doc.strip(), "", f"Usage: python -m {name} [--flag=value ...]", ""]
    for record in records:
        for field in dataclasses.fields(record):
            default = field.default
            if isinstance(default, tuple):
                default = ",".join(map(str, default))
            elif isinstance(default, bool):
                default = str(default).lower()
            elif default is None:
                default = "not given"
            lines.append(f"  --{field.name}={default}")
            help = field.metadata["help"]
            if field.metadata["choices"]:
                help += f" One of: {', '.join(field.metadata['choices'])}."
            lines += textwrap.wrap(help, 80, initial_indent=" " * 6,
                                   subsequent_indent=" " * 6)  # fmt: skip
    lines += [
        "",
        "The value shown is the default. --flagfile=FILE reads flags from a file.",
        "The last value of a flag counts, so what differs from a file comes after it.",
        "--helpfull also shows the flags of the libraries.",
    ]
    return "\n".join(lines)


def _help_or_version(
    arguments: Sequence[str], name: str, doc: str, records: Sequence[type[Settings]]
) -> str:
    """The help or the version that a command line asks for; empty if neither."""
    if any(argument in _HELP for argument in arguments):
        return help_text(name, doc, records)
    if arguments == ["--version"]:
        return mtr_tf.__version__
    return defined(records).get_help() if "--helpfull" in arguments else ""


def run(
    name: str,
    doc: str,
    records: Sequence[type[Settings]],
    main: Callable[..., None],
    on_interrupt: str,
) -> None:
    """Parses flags, calls `main(*settings)`, and turns a user's mistake into one line.

    Args:
      name: how `python -m` calls the binary.
      doc: its docstring, for `--help`.
      records: the settings it takes; `main` gets one instance of each.
      main: the work.
      on_interrupt: a sentence on what is kept if a signal stops `main`, unless code in
        `main` says it by `stopping.saying`.
    """
    if text := _help_or_version(sys.argv[1:], name, doc, records):
        with contextlib.suppress(BrokenPipeError):  # As in `... --help | head`.
            os.write(1, f"{text}\n".encode())
        sys.exit(0)
    settings: list[Settings] = []

    @contextlib.contextmanager
    def report_errors() -> Iterator[None]:
        try:
            yield
        except InputError as error:
            sys.exit(_say(f"error: {error}", 1))
        except KeyboardInterrupt as stop:
            sys.exit(_say_stopped(stop, on_interrupt))
        except Exception as error:
            if stopping.asked():  # An error after a signal counts as a stop.
                sys.exit(_say_stopped(None, on_interrupt))
            message = input_error_within(error) or out_of_memory(error, settings)
            if isinstance(error, OSError):
                message = message or files.what_failed(error)
            if message is None:
                raise
            sys.exit(_say(f"error: {message}", 1))

    @report_errors()
    def parse_settings(argv: list[str]) -> list[str]:
        settings[:] = parse(argv, records)
        return argv

    @report_errors()
    def run_main(argv: list[str]) -> None:
        _set_up_logging()
        for sentence in overridden(argv, records):
            logging.warning("%s", sentence)
        if isinstance(sys.stdout, io.TextIOWrapper):  # Names need be no UTF-8.
            sys.stdout.reconfigure(errors="backslashreplace")
        main(*settings)

    with stopping.handled():
        app.run(run_main, flags_parser=parse_settings)


def out_of_memory(error: Exception, settings: Sequence[Settings]) -> str | None:
    """What to do if a device has too little memory; None for any other error."""
    if not is_out_of_memory(error):
        return None
    records = [record for record in settings if hasattr(record, "batch_size")]
    if not records:
        return (
            "the device has too little memory. Free memory that other processes are "
            "using, or give this command a larger device."
        )
    (values,) = (record.to_dict() for record in records)
    size = values["batch_size"]
    what, advice = f"--batch_size={size}", "Use smaller images or a smaller --model"
    if size == "auto":
        advice = f"Try a number, such as --batch_size=4; u{advice[1:]}"
    else:
        image_count = min(size, values.get("num_examples") or size)
        if image_count < size:
            what = f"{image_count} images at a time"
        replicas = _replicas(values)
        if half := image_count // 2 // replicas * replicas:
            advice = f"Try --batch_size={half}"
    return (
        f"the device has too little memory for {what}. {advice}, or free memory that "
        "other processes are using."
    )


def _replicas(values: Mapping[str, Any]) -> int:
    """The number of replicas in this process; see `runs.strategy.create`."""
    if values["strategy"] == "one_device":
        return 1
    tf = sys.modules.get("tensorflow")  # Loaded, if memory ran out.
    gpus = len(tf.config.list_physical_devices("GPU")) if tf else 0
    return values["replicas"] or max(gpus, 1)


class _PlainHandler(standard_logging.Handler):
    """Prints our log lines, and others' warnings, without breaking a progress bar."""

    def filter(self, record: standard_logging.LogRecord) -> bool:
        is_ours = record.pathname.startswith(_PACKAGE)  # A clone may have .venv inside.
        return super().filter(record) and (
            is_ours or record.levelno > standard_logging.INFO
        )

    def emit(self, record: standard_logging.LogRecord) -> None:
        tqdm.tqdm.write(self.format(record), file=sys.stderr)


def _set_up_logging() -> None:
    handler = _PlainHandler()
    handler.setFormatter(standard_logging.Formatter("%(asctime)s %(message)s", "%X"))
    logger = logging.get_absl_logger()
    logger.handlers[:] = [handler]
    logger.propagate = False
    logging.set_verbosity(max(logging.get_verbosity(), logging.INFO))


def _say_stopped(stop: KeyboardInterrupt | None, sentence: str) -> int:
    return _say(f"\n{stopping.told(stop, sentence)}", stopping.exit_code())


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr, flush=True)
    return code
