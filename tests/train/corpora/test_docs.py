"""docs/corpora.md shows the registry as it is."""

import re
from pathlib import Path

from train.corpora import READERS
from train.corpora.label_maps import LABEL_MAPS, LABEL_SETS, Dropped

PAGE = (Path(__file__).parents[3] / "docs" / "corpora.md").read_text(encoding="utf-8")


def section(corpus: str) -> str:
    found = re.search(rf"^## {re.escape(corpus)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/corpora.md has no section {corpus}"
    return found[1]


def table_after(text: str) -> dict[str, str]:
    """The two-column table that follows the start of `text`, without its head."""
    lines = text[text.index("\n|") + 1 :].splitlines()
    rows: dict[str, str] = {}
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        left, right = (cell.strip() for cell in line.strip("|").split("|"))
        assert left not in rows, left
        rows[left] = right
    return rows


def test_every_map_is_shown_as_it_is() -> None:
    for name, labels in LABEL_MAPS.items():
        places = [match.end() for match in re.finditer(rf"[Mm]ap `{re.escape(name)}`", PAGE)]
        assert len(places) == 1, name
        rows = table_after(PAGE[places[0] :])
        shown = {label.strip(): name for cell, name in rows.items() for label in cell.split(",")}
        expected = {k: f"dropped: {v.reason}" if isinstance(v, Dropped) else v for k, v in labels.items()}
        assert shown == expected, name


def test_label_sets_are_shown_as_they_are() -> None:
    for corpus, sets in LABEL_SETS.items():
        text = section(corpus)
        rows = table_after(text[text.index("| `label_set` |") - 1 :])
        assert {int(size): tuple(classes.split(", ")) for size, classes in rows.items()} == sets
        assert f"{next(iter(sets))} is the default" in text


def test_every_reader_has_a_section_and_its_options() -> None:
    for name, reader in READERS.items():
        assert section(name)
        row = re.search(rf"^\| `{re.escape(name)}` \|.*\|([^|]*)\|$", PAGE, re.MULTILINE)
        assert row, name
        assert set(re.findall(r"`(\w+)`", row[1])) == set(reader.options)
