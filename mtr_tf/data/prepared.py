# SPDX-License-Identifier: Apache-2.0
"""Data sets that are prepared once with TFDS, then read example by example.

`prepare` writes when it is its turn (`mtr_tf.data.turns`); TFDS writes into a temporary
folder and renames it at the end, so that a killed process leaves nothing that looks
complete. What is expensive about an example can be kept in parts (`mtr_tf.data.parts`),
so that several processes share the work, and the next one continues where a killed one
stopped.

`Column` reads one feature of a prepared split as if it were an array, from sharded
array_record files, without holding it in memory.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib
import io
import os
import pathlib
import re
import resource
import shutil
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import shuffle

from mtr_tf import files
from mtr_tf.cli import stopping
from mtr_tf.data import parts
from mtr_tf.data import turns
from mtr_tf.errors import InputError

FILE_FORMAT = "array_record"  # What `Column` can read; give it to the builder.
# Records the sizes of the files in a prepared folder, and a digest of `_INFO`, which,
# unlike the others, has no checksums.
_CONTENTS = "contents.json"
_INFO = "dataset_info.json"
_IN_MEMORY = 2**26  # Bytes of examples in memory while a large data set is prepared.
_LARGEST_BATCH = 64  # Examples that are kept, at most, for each reading thread.


class Work(NamedTuple):
    """How the parts of a split are made; see `mtr_tf.data.parts`.

    Attributes:
      folder: where they are.
      jobs: (key, job) of each.
      function: "package.module:function".
    """

    folder: pathlib.Path
    jobs: Sequence[tuple[str, Any]]
    function: str


@runtime_checkable
class Parted(Protocol):
    """A builder that keeps parts while it prepares.

    Attributes:
      name: the name of the data set.
      parts: the folder that has all of them.
      work: how they are made, by split.
    """

    name: str
    parts: pathlib.Path
    work: Mapping[str, Work]


class Info(tfds.core.DatasetInfo):
    """TFDS's facts about one of our data sets, which is in no bucket of Google's."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: looking there would leave a temporary folder each time."""


def info(
    builder: tfds.core.DatasetBuilder,
    description: str,
    features: Mapping[str, Any],
    **options: Any,
) -> Info:
    """Describes the data of a builder; their keys give the order of the examples."""
    return Info(
        builder=builder,
        description=description,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
        **options,
    )


def root_folder(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Where prepared data sets are: `data_dir`, else $TFDS_DATA_DIR, else TFDS's own.

    The last is ~/tensorflow_datasets.
    """
    variable = os.environ.get("TFDS_DATA_DIR", "")
    files.check_local("the variable TFDS_DATA_DIR", variable)
    folder = data_dir or variable or tfds.core.constants.DATA_DIR
    return pathlib.Path(folder).expanduser()


def fingerprint(facts: Iterable[object]) -> str:
    """Eight hexadecimal digits that stand for a listing, for the name of a config."""
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(repr(fact).encode() + b"\n")
    return digest.hexdigest()[:8]


def parts_folder(
    builder: tfds.core.DatasetBuilder, facts: Iterable[object]
) -> pathlib.Path:
    """Where a builder keeps its parts while it prepares.

    It does not depend on the config's name, so that parts outlast a change in the
    listing of files, as when a broken file is replaced. `prepare` removes the folder
    `parts` of a builder in the end.

    Args:
      builder: the builder of the parts.
      facts: what all parts depend on; their keys must stand for anything else.
    """
    name = f".parts-{builder.version}-{fingerprint(facts)}"
    return pathlib.Path(builder.data_dir).parents[1] / name


def key(index: int, count: int) -> int:
    """The key under which example `index` of `count` goes to TFDS.

    With `disable_shuffling` keys give the order. TFDS divides the 128 bits of a key
    evenly into a thousand buckets, and sorts by reading one bucket after the other into
    memory. Keys of 0, 1, 2, ... would all be in the first bucket, so that all examples
    would be in memory at once.
    """
    return index * (2**128 // count)


def prepare(
    make: Callable[[pathlib.Path], tfds.core.DatasetBuilder],
    root: pathlib.Path,
    what: str,
    place: str = "--data_dir",
) -> tfds.core.DatasetBuilder:
    """Prepares a data set unless it is there.

    Of several processes, on machines that see the same folder, one prepares it; the
    others make parts for it, if it is made of parts, and wait.

    Args:
      make: returns the builder, whose `data_dir` must be its argument, `root`.
      root: where prepared data sets are.
      what: the data set's name in messages.
      place: how the user chooses `root`, for messages: a flag or a variable.

    Returns:
      The builder of the prepared data set.

    Raises:
      InputError: the folder cannot be written, the disk is full, the existing data
        are damaged, or the builder raises it.
    """
    builder, is_prepared = opened(make, root)
    if is_prepared:
        return builder
    name = f"{builder.name}-{builder.builder_config.name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            stopping.saying(lambda: _progress_text(builder, what)),
            _share_parts(builder, root),
            turns.turn(root / f".{name}.lock", what, lambda: _help(builder)),
        ):
            builder, is_prepared = opened(make, root)
            if not is_prepared:
                _prepare_data(builder)
    except parts.WorkerError as error:
        raise InputError(
            f"{what} could not be prepared: {error}. The same command starts again."
        ) from error
    except (OSError, RuntimeError) as error:  # TFDS wraps errors of writing.
        builder, is_prepared = opened(make, root)
        if not is_prepared:  # Nor has a process that took this one for dead.
            reason = getattr(error, "strerror", None)
            reason = reason or str(error).strip().splitlines()[-1]
            raise InputError(
                f"{what} could not be written to {str(root)!r}: {reason}. Choose "
                f"another folder with {place}, or free some space there."
            ) from error
    return builder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings, such as those of TFDS about folders that do not exist."""
    logger, verbosity = logging.get_absl_logger(), logging.get_verbosity()
    level = logger.level  # May be unset, which verbosity cannot express.
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logger.setLevel(level)


def opened(
    make: Callable[[pathlib.Path], tfds.core.DatasetBuilder], root: pathlib.Path
) -> tuple[tfds.core.DatasetBuilder, bool]:
    """The builder, and whether its data are prepared; raises if they are damaged."""
    with quiet():
        empty_root = root / ".none"  # Below `root` the builder would read its data.
        subfolder = pathlib.Path(make(empty_root).data_dir).relative_to(empty_root)
        with damage_explained(root / subfolder):
            if (root / subfolder).exists():
                _check_contents(root / subfolder)
            builder = make(root)
            return builder, builder.is_prepared()


@contextlib.contextmanager
def damage_explained(folder: str | os.PathLike) -> Iterator[None]:
    """Reports any error as damage to the prepared data in a folder.

    TFDS and the libraries that it reads with raise nearly every kind on a damaged file.
    """
    try:
        yield
    except (InputError, MemoryError, PermissionError):
        raise
    except Exception as error:
        text = str(error).strip() or repr(error)
        if os.strerror(errno.EMFILE) in text:
            raise
        # Without TensorFlow's words about the operation that met the damage.
        reason = re.sub(r"^{{.*?}} | \[Op:.*", "", text.splitlines()[0])[:200]
        raise InputError(
            f"the prepared data in {folder} are damaged ({reason}); delete that "
            "folder, then repeat the command to make them again."
        ) from error


def _contents(folder: pathlib.Path) -> dict[str, Any]:
    """What `_CONTENTS` records of a folder: the sizes of files, a digest of `_INFO`."""
    sizes = {
        file.name: file.stat().st_size
        for file in _entries(folder)
        if file.is_file() and file.name != _CONTENTS
    }
    return {"sizes": sizes, "info": files.digest(files.read_json(folder / _INFO))}


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """The entries of a folder, without what file servers and desktops put there."""
    return [file for file in files.listed(folder) if not files.is_systems(file.name)]


def _check_contents(folder: pathlib.Path) -> None:
    """Raises `ValueError` if a folder is not as it was written.

    Folders of versions before 0.3 have no `_CONTENTS`; damage there shows in reading.
    """
    for file in _entries(folder):
        if not file.is_file():  # TFDS would wait for a pipe.
            raise ValueError(f"{file.name} is not a file")
    if not (folder / _INFO).exists():
        raise ValueError(f"{_INFO} is missing")
    if not (folder / _CONTENTS).exists():
        return
    expected, actual = files.read_json(folder / _CONTENTS), _contents(folder)
    for name, size in expected["sizes"].items():
        if files.is_systems(name):  # Early versions recorded these, too.
            continue
        if actual["sizes"].get(name) != size:
            raise ValueError(f"{name} is missing or has the wrong size")
    if actual["info"] != expected["info"]:
        raise ValueError(f"{_INFO} was changed")


def _help(builder: tfds.core.DatasetBuilder) -> None:
    """Makes parts for the process that prepares, until none is missing."""

    def is_over() -> bool:
        return os.path.exists(builder.data_dir)

    if not isinstance(builder, Parted):
        return
    for work in builder.work.values():
        try:
            if not is_over():
                parts.help_with(work.folder, work.jobs, work.function, is_over)
        except (InputError, parts.WorkerError):
            if not is_over():  # Else the folder vanished during writing.
                raise


@contextlib.contextmanager
def _share_parts(
    builder: tfds.core.DatasetBuilder, root: pathlib.Path
) -> Iterator[None]:
    """Locks a builder's parts, shared with other processes; the last removes them.

    Configs that share views share their parts. Parts stay if the data were not
    prepared, or if other processes still use them.
    """
    if not isinstance(builder, Parted):
        yield
        return
    name = f".{builder.name}{builder.parts.name.removeprefix('.parts')}.lock"
    with (root / name).open("w") as file:
        files.flock(file, wait=True, shared=True)
        yield
        with contextlib.suppress(BlockingIOError):
            files.flock(file)
            shutil.rmtree(builder.parts, ignore_errors=True)


def _prepare_data(builder: tfds.core.DatasetBuilder) -> None:
    """Prepares the data, under the lock, without TFDS's progress bars and message."""
    folder = pathlib.Path(builder.data_dir).parent
    for leftover in folder.glob("*incomplete*"):
        shutil.rmtree(leftover, ignore_errors=True)
    bars = tfds.core.utils.tqdm_utils
    active = bars._active
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()), _limit_memory(builder):
            builder.download_and_prepare()
    finally:
        bars.display_progress_bar(active)
    data_folder = pathlib.Path(builder.data_dir)
    files.write_json(data_folder / _CONTENTS, _contents(data_folder))


@contextlib.contextmanager
def _limit_memory(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Limits the memory, usually a gigabyte, that TFDS fills before it writes.

    TFDS then opens a thousand files. Data sets without parts are small, and need no
    limit.
    """
    usual_size = shuffle.MAX_MEM_BUFFER_SIZE
    if isinstance(builder, Parted) and _may_open(shuffle.BUCKETS_NUMBER):
        shuffle.MAX_MEM_BUFFER_SIZE = min(usual_size, _IN_MEMORY)
    try:
        yield
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = usual_size


def _progress_text(builder: tfds.core.DatasetBuilder, what: str) -> str:
    """Says how much of a data set exists after a signal has stopped its preparation."""
    if not isinstance(builder, Parted):
        return f"{what} has not been made yet; the same command starts again."
    count = sum(1 for _ in builder.parts.glob("**/*.npz"))
    return (
        f"{what} is not complete yet; {count} of its examples are prepared and kept, "
        "and the same command continues with the others."
    )


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of FILE_FORMAT that can also give a tf.data.Dataset (`tfds.load`).

    TFDS itself makes none of such files. `tfds.load` takes the config as an object;
    `tfds.data_source` reads prepared data by the config's name.
    """

    def __init__(self, *, file_format: str | None = None, **options: Any):
        """Takes the arguments that TFDS passes."""
        super().__init__(file_format=file_format or FILE_FORMAT, **options)

    def _as_dataset(
        self,
        split: str,
        decoders: Any = None,
        read_config: Any = None,
        shuffle_files: bool = False,
    ) -> Any:
        """The examples of a split in order; files are not shuffled."""
        del read_config, shuffle_files
        tf = importlib.import_module("tensorflow")  # Builders register without it.
        features = self.info.features
        if isinstance(decoders, tfds.decode.PartialDecoding):
            features, decoders = decoders.extract_features(features), decoders.decoders
        source = self.as_data_source(
            split, deserialize_method=tfds.core.decode.DeserializeMethod.RAW_BYTES
        )

        def decode(row: Any) -> Any:
            record = tf.numpy_function(lambda i: source[int(i)], [row], tf.string)
            record = tf.ensure_shape(record, ())
            return features.deserialize_example(record, decoders=decoders)

        dataset = tf.data.Dataset.range(len(source)).map(decode)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(source)))


def _may_open(count: int) -> bool:
    """Raises the limit of open files by `count`; whether `count` may be open at all.

    The limit is a thousand on most systems unless a process raises it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return True
    limit = soft + count if hard == resource.RLIM_INFINITY else hard
    with contextlib.suppress(ValueError, OSError):  # Some systems have another limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft + count, limit), hard))
    return count <= limit


class _Records:
    """The examples of a split as stored; each thread keeps the batch it has read last.

    So the columns of a batch, which are read one after the other, do not each read and
    decompress its examples.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.folder = str(builder.data_dir)
        count = len(builder.info.splits[split].filenames)
        if not _may_open(count):
            raise InputError(
                f"The prepared data in {self.folder} are {count} files, all of which "
                "are open while they are read, but the system allows fewer; raise "
                "that limit (ulimit -Hn)."
            )
        with damage_explained(self.folder):
            self._source = builder.as_data_source(
                split=split,
                deserialize_method=tfds.core.decode.DeserializeMethod.RAW_BYTES,
            )
        self._local = threading.local()

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The examples of some rows, one after the other."""
        if len(rows) > _LARGEST_BATCH:
            return (self._source[row] for row in rows)
        last_batch = getattr(self._local, "batch", {})
        batch = {row: last_batch.get(row) or self._source[row] for row in set(rows)}
        self._local.batch = batch
        return (batch[row] for row in rows)


@functools.lru_cache(maxsize=8)
def _records(builder: tfds.core.DatasetBuilder, split: str) -> _Records:
    """What the columns of a split share."""
    with quiet():
        return _Records(builder, split)


class Column:
    """One feature of a prepared split, read when it is asked for.

    Attributes:
      shape: (examples, *shape of the feature).
      dtype: the NumPy type of its arrays.

    `len(column)` is the number of examples; `column[rows]` is a new array
    [len(rows), ...] for int64 rows, a slice or a mask. Little is kept (see `_Records`).
    Threads may read at the same time.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, name: str):
        """Opens a feature of a builder that was made with FILE_FORMAT."""
        self._records = _records(builder, split)
        with quiet():
            decoding = tfds.decode.PartialDecoding({name: True})
            self._features = decoding.extract_features(builder.info.features)
            self._features.get_serialized_info()  # Made once, and cached.
        self._name = name
        feature = builder.info.features[name]
        self.shape = (len(self._records), *feature.shape)
        self.dtype = np.dtype(feature.np_dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        rows = np.arange(len(self))[rows]
        values = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        with damage_explained(self._records.folder):
            for place, record in enumerate(self._records.read(rows.tolist())):
                example = self._features.deserialize_example_np(record)
                values[place] = example[self._name]
        return values


class Remembered:
    """A column that keeps, for each thread, the rows that it has read last.

    A batch's target and mask, both derived from it, are read one after the other.
    """

    def __init__(self, column: Column):
        self._column = column
        self._last = threading.local()
        self.shape, self.dtype = column.shape, column.dtype

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """Reads rows; the result is shared, and must not be written to."""
        rows = np.arange(len(self))[rows]
        key = rows.tobytes()
        if getattr(self._last, "key", None) != key:
            self._last.values = self._column[rows]
            self._last.key = key
        return self._last.values


class Derived:
    """A column that is computed from another one, row by row, when it is read."""

    def __init__(
        self,
        column: Column | Remembered,
        function: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...],
        dtype: type[np.generic],
    ):
        """`function` maps n rows of `column` to an array [n, *shape] of `dtype`."""
        self._column = column
        self._function = function
        self.shape = (len(column), *shape)
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        return self._function(self._column[rows])
