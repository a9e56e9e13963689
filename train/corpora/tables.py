"""Label files as rows that know where they stand, so that every mistake of a file is told at once with its place."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from train.errors import CorpusError

MAX_TOLD: Final = 20
"""Mistakes that one message spells out; the rest are counted."""

SPLITS: Final = {
    "train": "train",
    "development": "dev",
    "dev": "dev",
    "validation": "dev",
    "test": "test",
    "test1": "test1",
    "test2": "test2",
    "test3": "test3",
}
"""A corpus' word for a part of its split, in lower case -> ours."""

GENDERS: Final = {"female": "female", "f": "female", "male": "male", "m": "male", "unknown": "", "": ""}
"""A corpus' word for a gender, in lower case -> ours."""


class Problems:
    """Mistakes found while reading."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._count = 0

    def add(self, path: Path, line: int, what: str) -> None:
        """Notes one mistake; lines count from 1."""
        self._count += 1
        if len(self._told) < MAX_TOLD:
            self._told.append(f"  {path}:{line}: {what}")

    def refuse(self) -> None:
        """Ends the reading if anything was wrong.

        Raises:
            CorpusError: naming the first `MAX_TOLD` mistakes and the number of all.
        """
        if self._count:
            more = self._count - len(self._told)
            rest = f"\n  and {more} more" if more else ""
            raise CorpusError(f"{self._count} mistakes in the labels:\n" + "\n".join(self._told) + rest)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a label file; what is wrong with it goes to `problems`.

    Attributes:
        path: the file.
        line: its line, the first is 1.
        values: column -> text, without surrounding space.
        problems: where mistakes are gathered.
    """

    path: Path
    line: int
    values: Mapping[str, str]
    problems: Problems

    def get(self, column: str) -> str:
        """The text of a column, "" where the table has none."""
        return self.values.get(column, "")

    def wrong(self, column: str, must: str) -> None:
        """Notes that a column's value is not what it must be."""
        self.problems.add(self.path, self.line, f"{column} must be {must}, got {self.get(column)!r:.80}")

    def required(self, column: str) -> str:
        """The text of a column that may not be empty."""
        if not self.get(column):
            self.wrong(column, "given")
        return self.get(column)

    def number(self, column: str, low: float, high: float = math.inf) -> float:
        """A number in `low`..`high`; NaN where the field is empty or wrong."""
        text = self.get(column)
        if not text or text.lower() == "nan":
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if low <= value <= high and math.isfinite(value):
            return value
        self.wrong(column, f"a number of at least {low:g}" if high == math.inf else f"a number in {low:g}..{high:g}")
        return math.nan

    def choice(self, column: str, names: Mapping[str, str]) -> str:
        """What `names` holds for the text in lower case; "" and a mistake if it is none of them."""
        text = self.get(column).lower()
        if text in names:
            return names[text]
        self.wrong(column, f"one of {', '.join(filter(None, names))}")
        return ""


def read_csv(path: Path, columns: Sequence[str], problems: Problems, lower: bool = False) -> Iterator[Row]:
    """Rows of a CSV file with a header, UTF-8.

    Args:
        path: the file.
        columns: those that it must have.
        problems: where rows of a wrong length are noted; such rows are not yielded.
        lower: read the header in lower case.

    Raises:
        CorpusError: if the file cannot be read or lacks a column.
    """
    lines = _lines(path)
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip().lower() if lower else name.strip() for name in next(reader, [])]
        _check_header(path, header, columns)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                problems.add(path, reader.line_num, f"{len(fields)} fields, but the header names {len(header)} columns")
                continue
            values = dict(zip(header, (field.strip() for field in fields), strict=True))
            yield Row(path, reader.line_num, values, problems)
    except csv.Error as error:
        raise CorpusError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def read_jsonl(path: Path, columns: Sequence[str], problems: Problems) -> Iterator[Row]:
    """Rows of a file that holds a JSON object a line; null is as if the key were not there.

    Args:
        path: the file.
        columns: keys that some row must have.
        problems: where lines that hold something else are noted; such lines are not yielded.

    Raises:
        CorpusError: if the file cannot be read or no row has one of `columns`.
    """
    rows = []
    for line, text in enumerate(_lines(path), 1):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except ValueError as error:
            problems.add(path, line, f"not JSON: {error}")
            continue
        if not isinstance(found, dict) or not all(_is_plain(value) for value in found.values()):
            problems.add(path, line, f"must be an object of texts and numbers, got {text.strip()!r:.80}")
            continue
        values = {name.strip().lower(): str(value).strip() for name, value in found.items() if value is not None}
        rows.append(Row(path, line, values, problems))
    if rows:
        _check_header(path, sorted({name for row in rows for name in row.values}), columns)
    yield from rows


def _is_plain(value: object) -> bool:
    return value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))


def _lines(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return file.readlines()
    except OSError as error:
        raise CorpusError(f"cannot read the label file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8: {error}") from error


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    if missing:
        raise CorpusError(f"{path} lacks the columns {missing}: it has {list(header)}")
    if twice:
        raise CorpusError(f"{path} has the columns {twice} more than once")
