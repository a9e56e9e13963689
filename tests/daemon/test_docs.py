"""The pages about configuration and events say what the code does: all of it, and nothing else."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from daemon.commands import app
from daemon.config import DEFAULT_BUNDLE, Config
from daemon.messages import CallEvent, EmotionEvent, Scores
from daemon.sinks.redis import DEFAULT_STREAMS
from daemon.sinks.spool import Fields, Spool
from daemon.wire import deletion_fields, redis_fields
from model.posteriors import Posteriors
from tests.factories import (
    make_alert_event,
    make_call_event,
    make_emotion_event,
    make_info,
    make_scores,
    make_summary_event,
    make_utterance,
)

ROOT: Final = Path(__file__).parents[2]
CONFIGURATION: Final = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
EVENTS: Final = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
TYPES: Final = {
    "text": r".*",
    "integer": r"\d+",
    "number": r"\d+(\.\d{1,6})?",
    "signed": r"-?\d+(\.\d{1,6})?",
    "flag": r"[01]",
}


def rows(text: str) -> list[list[str]]:
    """The cells of a page's table rows, heads and rules left out."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return cells


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the configuration with its default; PydanticUndefined where the machine decides."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.default


def shown(default: Any) -> str:
    """A default as the page writes it."""
    if default is None:
        return "none"
    if default == ():
        return "`[]`"
    if default == DEFAULT_BUNDLE:
        return f"`{DEFAULT_BUNDLE.relative_to(ROOT)}`"
    return f"`{default}`"


def flags() -> dict[str, str]:
    """The flags of `serve`, by the key that they set."""
    (serve,) = [
        command.callback
        for command in app.registered_commands
        if command.callback and command.callback.__name__ == "serve"
    ]
    return {name: f"`--{name}`" for name in serve.__annotations__ if name in Config.model_fields}


def test_every_key_with_its_variable_flag_and_default() -> None:
    known = dict(keys(Config))
    assert len(known) > 25
    described = {row[0].strip("`"): row for row in rows(CONFIGURATION)}
    assert list(described) == list(known)
    for key, (_, variable, flag, default, meaning) in described.items():
        assert variable == f"`MEDUSA_{key.upper().replace('.', '__')}`"
        assert flag == flags().get(key, ""), key
        assert default == shown(known[key]) or (known[key] is PydanticUndefined and default), key
        assert meaning, key


def test_the_flags_are_those_of_the_design() -> None:
    """Else the column above could be empty."""
    assert set(flags()) == {"host", "port", "redis", "bundle", "role", "insecure"}


def emotion_entries() -> list[Fields]:
    """Entries that between them leave empty all that can be."""
    untrained = make_scores()
    posteriors = untrained.posteriors
    bare = Posteriors(posteriors.probabilities, (None, None, None), posteriors.uncertainty, abstained=True)
    event = EmotionEvent(make_info(), make_utterance(), Scores(bare, None, untrained.latency), 1)
    shares = (("whisper", 0.75), ("interaction", 0.25))
    heard = replace(posteriors, modality_share=shares, members_used=("voice", "course"))
    shared = replace(event, scores=replace(untrained, posteriors=heard))
    entries = [redis_fields(each) for each in (event, shared, make_emotion_event(), make_emotion_event(interim=1))]
    return [{re.sub("^share_.*", "share_*", name): value for name, value in entry.items()} for entry in entries]


def call_entries() -> list[Fields]:
    info = make_info(metadata={"queue": "billing", "note": ""})
    events: list[CallEvent] = [make_call_event("call.started", info=info), make_call_event("call.ended", info=info)]
    entries = [redis_fields(event) for event in (*events, make_call_event("call.failed", info=info))]
    return [{re.sub("^meta_.*", "meta_*", name): value for name, value in entry.items()} for entry in entries]


def summary_entries() -> list[Fields]:
    """An entry per role of each summary: the fields of a role have its number."""
    found = []
    for event in (make_summary_event(), make_summary_event(attributes=False)):
        fields = redis_fields(event)
        for role in ("r0_", "r1_"):
            other = {"r0_": "r1_", "r1_": "r0_"}[role]
            mine = {name: value for name, value in fields.items() if not name.startswith(other)}
            found.append({re.sub(f"^{role}", "r*_", name): value for name, value in mine.items()})
    return found


def gap_entries() -> list[Fields]:
    """A gap of one session, and one of many."""
    found = []
    for limit in (0, 1):
        with tempfile.TemporaryDirectory() as folder:
            spool = Spool(Path(folder), memory_limit=limit, disk_limit=0)
            for index in range(2):
                spool.append(redis_fields(make_emotion_event(index)), interim=False)
            found += [fields for fields in spool.peek(9) if fields["type"] == "gap"]
            spool.close()
    assert sorted(gap["session"] for gap in found) == ["", "session-1"]
    return found


ENTRIES: Final = {
    "`emotion`, `emotion.interim`": emotion_entries(),
    "`call.started`, `call.ended`, `call.failed`": call_entries(),
    "`alert`": [redis_fields(make_alert_event())],
    "`call.summary`": summary_entries(),
    "`gap`": gap_entries(),
}
SECTIONS: Final = {section.partition("\n")[0]: rows(section) for section in EVENTS.split("\n## ")[1:] if rows(section)}


DELETION: Final = deletion_fields("call-1", 1)


def test_every_kind_of_event_has_its_section() -> None:
    assert set(SECTIONS) == {"Every entry", *ENTRIES}
    assert f"\n## `{DELETION['type']}`\n" in EVENTS
    described = next(row for row in SECTIONS["Every entry"] if row[0] == "`type`")[-1]
    built = {entry["type"] for entries in ENTRIES.values() for entry in entries} | {DELETION["type"]}
    assert set(re.findall(r"`(.*?)`", described)) == built


def test_a_deletion_has_the_common_fields_alone() -> None:
    common = {row[0].strip("`"): row for row in SECTIONS["Every entry"]}
    assert set(DELETION) == set(common)
    assert {name for name, value in DELETION.items() if value == ""} == {
        name for name, row in common.items() if "`call.deleted`" in row[3]
    }


@pytest.mark.parametrize("section", ENTRIES)
def test_every_field_with_its_type(section: str) -> None:
    entries = ENTRIES[section]
    described = {
        name: row for row in SECTIONS["Every entry"] + SECTIONS[section] for name in re.findall(r"`(.*?)`", row[0])
    }
    absent = {name for name, row in described.items() if row[3].startswith("absent ")}
    assert {name for name in absent if any(name in entry for entry in entries)} == absent
    assert {name for name in absent if all(name in entry for entry in entries)} == set()
    for entry in entries:
        assert set(entry) | absent == set(described), entry["type"]
        for name, value in entry.items():
            assert value == "" or re.fullmatch(TYPES[described[name][1]], value), (name, value)


@pytest.mark.parametrize("section", ENTRIES)
def test_what_is_ever_empty_is_said_to_be(section: str) -> None:
    entries = ENTRIES[section]
    sometimes = [row for row in SECTIONS[section] if row[3] != "never" and not row[3].startswith("absent ")]
    said = {name for row in sometimes for name in re.findall(r"`(.*?)`", row[0])}
    own = {name for row in SECTIONS[section] for name in re.findall(r"`(.*?)`", row[0])}
    assert {name for entry in entries for name in own if entry.get(name) == ""} == said
    common = {name for entry in entries for name in entry.keys() - own if entry[name] == ""}
    assert common == ({"call", "session"} if section == "`gap`" else set())


def test_the_keys_and_times_are_those_of_the_sink() -> None:
    assert f"`{DEFAULT_STREAMS.events_key}`" in EVENTS
    assert f"`{DEFAULT_STREAMS.call_prefix}{{call_id}}`" in EVENTS
    assert f"for {DEFAULT_STREAMS.unsure_ttl_s // 86_400} days" in EVENTS
    assert DEFAULT_STREAMS.seen_ttl_s == 3600
    assert f"(at most {DEFAULT_STREAMS.batch})" in EVENTS


@pytest.mark.parametrize("page", ["docs/configuration.md", "docs/events.md"])
def test_the_readme_leads_there(page: str) -> None:
    assert f"]({page})" in (ROOT / "README.md").read_text(encoding="utf-8")
