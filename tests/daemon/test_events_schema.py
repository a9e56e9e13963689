"""docs/events.schema.json fits every entry that the daemon writes, insists on every field, and knows every value's form."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator

from model.labels import CLASSES
from tests.daemon.test_docs import call_entries, gap_entries

Json = dict[str, Any]

SCHEMA: Final[Json] = json.loads(
    (Path(__file__).parents[2] / "docs" / "events.schema.json").read_text(encoding="utf-8")
)
GOLDEN: Final = Path(__file__).parents[1] / "golden"
KINDS: Final = [kind["$ref"].rpartition("/")[2] for kind in SCHEMA["oneOf"]]
ENTRIES: Final[list[dict[str, str]]] = [
    *(json.loads(path.read_text(encoding="utf-8")) for path in sorted(GOLDEN.glob("redis_*.json"))),
    *({re.sub(r"\*$", "note", name): value for name, value in entry.items()} for entry in call_entries()),
    *gap_entries(),
]
VALIDATOR: Final = Draft202012Validator(SCHEMA)
OPTIONAL: Final = {"members_used"}
"""Named fields that only some entries have."""


def of_kind(entry: dict[str, str]) -> Json:
    """The definition of an entry's type."""
    (found,) = [kind for kind in KINDS if entry["type"] in SCHEMA["$defs"][kind]["properties"]["type"]["enum"]]
    definition: Json = SCHEMA["$defs"][found]
    return definition


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_every_type_of_entry_is_there_and_no_other() -> None:
    described = [name for kind in KINDS for name in SCHEMA["$defs"][kind]["properties"]["type"]["enum"]]
    built = {entry["type"] for entry in ENTRIES}
    assert len(described) == len(set(described))
    assert set(described) == set(SCHEMA["$defs"]["entry"]["properties"]["type"]["enum"]) == built
    assert SCHEMA["$defs"]["class"]["enum"] == list(CLASSES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["type"])
def test_what_the_daemon_writes_fits(entry: dict[str, str]) -> None:
    VALIDATOR.validate(entry)
    assert VALIDATOR.is_valid(entry | {"mood": "a field of a later version"})


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["type"])
def test_every_field_is_described_and_its_form_is_checked(entry: dict[str, str]) -> None:
    kind, common = of_kind(entry), SCHEMA["$defs"]["entry"]
    fits = Draft202012Validator(SCHEMA | {"oneOf": [kind]}).is_valid
    many = kind.get("patternProperties", {})
    free = {
        name
        for name, about in (common["properties"] | kind["properties"]).items()
        if about.get("$ref") == "#/$defs/text"
    }
    for name in entry:
        listed = name in common["properties"] | kind["properties"]
        patterns = [pattern for pattern in many if re.search(pattern, name)]
        assert listed + len(patterns) == 1, name
        if listed:
            without = {key: value for key, value in entry.items() if key != name}
            assert fits(without) == (name in OPTIONAL), name
        nonsense = {"type", "v"} if name in free or name.startswith("meta_") else {name}
        assert not fits(entry | dict.fromkeys(nonsense, "\x00 no value")) or _is_name(kind, name), name
    assert set(kind["required"]) | set(common["required"]) <= set(entry)


def _is_name(kind: Json, name: str) -> bool:
    """Text that may be anything but nothing."""
    about = (SCHEMA["$defs"]["entry"]["properties"] | kind["properties"] | kind.get("patternProperties", {})).get(
        name, {}
    )
    return about.get("$ref") == "#/$defs/name" or name.endswith("_role")
