"""An append-only file of JSON lines that survives the death of its process.

A line counts once its newline is in the file. A line is handed to the operating system when it is appended, without
fsync: what was appended outlives a killed process, not a power cut.
"""

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from daemon.errors import ConfigError

_log = logging.getLogger(__name__)

_FILE: Final = "spool.jsonl"
_LOCK: Final = "spool.lock"
_MODE: Final = 0o600
"""Transcripts are in it: nobody else reads them."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line lies in the file, in bytes; the newline is part of `length`."""

    offset: int
    length: int


def check_directory(directory: Path) -> None:
    """Whether a journal could lie in `directory`, without leaving anything there.

    Raises:
        ConfigError: if the directory, or the first of its parents that exists, cannot be written.
    """
    try:
        try_directory(directory)
        for name in (_FILE, _LOCK):
            if (directory / name).exists():
                os.close(os.open(directory / name, os.O_RDWR))
    except OSError as error:
        raise _not_writable(directory, error) from error


def try_directory(directory: Path) -> None:
    """Writes a file that nobody sees to the directory, or to the first of its parents that exists.

    Raises:
        OSError: if that cannot be done.
    """
    existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    with tempfile.TemporaryFile(dir=existing):
        pass


def _not_writable(directory: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write the spool directory {directory}: {error.strerror}: set streams.spool_dir to another"
    )


class Journal:
    """The file of one directory, held by one process at a time.

    Attributes:
        lines: how many lines the file holds, whether they still matter or not.

    Raises:
        ConfigError: if the directory cannot be written, or another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / _FILE
        self.lines = 0
        self._size = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, _MODE)
        except OSError as error:
            raise _not_writable(directory, error) from error
        try:
            # A lock file of its own: the lock of a file that `rewrite` replaces would go with the old file.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, _MODE)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ConfigError(f"another process uses the spool directory {directory}: give each its own") from error
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(f"cannot open {self.path}: {error.strerror}") from error

    def load(self) -> Iterator[tuple[Place, Record]]:
        """The lines that an earlier process left; run it to its end before the first append.

        A last line without its newline was never completed and does not count; any other line that is no JSON object is
        reported and skipped.
        """
        unreadable = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                place = Place(self._size, len(line))
                self._size += len(line)
                self.lines += 1
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    yield place, record
                else:
                    unreadable += 1
        if unreadable:
            _log.error("%s: %d lines are no JSON objects and were skipped", self.path, unreadable)

    def append(self, record: Record) -> Place:
        """Adds a line.

        Raises:
            OSError: if the disk does not take it; the file then holds the same lines as before.
        """
        # ASCII, because a client's text may hold half of a surrogate pair, which UTF-8 cannot write.
        line = json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"
        self._write(self._file, line, self._size)
        place = Place(self._size, len(line))
        self._size += len(line)
        self.lines += 1
        return place

    def read(self, place: Place) -> Record:
        """The line at `place`.

        Raises:
            OSError: if the disk does not give it.
            ValueError: if it is damaged.
        """
        record: Record = json.loads(self._raw(place))
        return record

    def clear(self) -> None:
        """Removes every line."""
        os.ftruncate(self._file, 0)
        self._size = self.lines = 0

    def rewrite(self, places: Iterable[Place]) -> list[Place]:
        """Keeps only the lines at `places`, in that order, and gives their new places.

        Raises:
            OSError: if the disk does not take the copy; the file is then as it was.
        """
        moved: list[Place] = []
        size = 0
        copy = self.path.with_suffix(".new")
        file = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_TRUNC, _MODE)
        try:
            for place in places:
                self._write(file, self._raw(place), size)
                moved.append(Place(size, place.length))
                size += place.length
            copy.replace(self.path)
        except OSError:
            os.close(file)
            copy.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file, self._size, self.lines = file, size, len(moved)
        return moved

    def close(self) -> None:
        """Frees the file and the directory; the lines stay."""
        os.close(self._file)
        os.close(self._lock)
        self._file = self._lock = -1  # the numbers may soon be another file's

    def _raw(self, place: Place) -> bytes:
        return os.pread(self._file, place.length, place.offset)

    @staticmethod
    def _write(file: int, line: bytes, offset: int) -> None:
        written = os.pwrite(file, line, offset)
        if written < len(line):
            # The part stays, and harms nothing: it lies behind the last newline, where the next line is written.
            raise OSError(f"the disk took {written} of {len(line)} bytes")
