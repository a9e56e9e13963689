"""The JSON Schema in docs is that of the manifest: it takes what is written and refuses what is refused when it is read."""

import copy
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator, ValidationError
from typer.testing import CliRunner

from daemon.config import DEFAULT_BUNDLE
from export.cli import app
from export.schema import manifest_schema
from model.bundle import Manifest
from model.spec import EncoderSpec, EnsembleSpec, MemberSpec
from tests.model.tiny import tiny_bundle

ROOT: Final = Path(__file__).parents[2]
SCHEMA: Final = json.loads((ROOT / "docs" / "bundle.schema.json").read_text(encoding="utf-8"))

WRONG: Final[dict[str, Callable[[dict[str, Any]], object]]] = {
    "a field too few": lambda data: data.pop("opset"),
    "a field too many": lambda data: data.update(colour="red"),
    "an old version": lambda data: data.update(format_version=1),
    "no temperature": lambda data: data.update(temperature=0),
    "a temperature in words": lambda data: data.update(temperature="warm"),
    "a threshold above 1": lambda data: data.update(abstain_below=1.5),
    "files as a list": lambda data: data.update(files=[]),
    "no ensemble among the files": lambda data: data["files"].pop("ensemble.onnx"),
    "a hash that is none": lambda data: data["files"].update({"ensemble.onnx": "0"}),
    "costs in words": lambda data: data.update(costs={"text": {"flops": "many"}}),
    "a precision that is a number": lambda data: data.update(precisions={"text": 16}),
    "a shape that is a number": lambda data: data["inputs"].update(text=3),
    "a size that is text": lambda data: data["outputs"].update(probabilities=[None, "8"]),
    "an unknown kind of encoder": lambda data: data["ensemble"]["encoders"][0].update(kind="ears"),
    "a width of 0": lambda data: data["ensemble"]["encoders"][0].update(dim=0),
    "one source, not a list": lambda data: data["ensemble"]["encoders"][0].update(sources="path:x"),
    "a field too many of an encoder": lambda data: data["ensemble"]["encoders"][0].update(colour="red"),
    "a field too few of a member": lambda data: data["ensemble"]["members"][0].pop("seed"),
    "a field too many of a member": lambda data: data["ensemble"]["members"][0].update(colour="red"),
    "an unknown fusion": lambda data: data["ensemble"]["members"][0].update(fusion="cold"),
    "always dropped": lambda data: data["ensemble"]["members"][0].update(dropout=1.0),
    "no modality": lambda data: data["ensemble"]["members"][0].update(modalities=[]),
    "no member": lambda data: data["ensemble"].update(members=[]),
    "a class that is none": lambda data: data["ensemble"].update(trained_classes=["joy", "sad"]),
    "an attribute that is none": lambda data: data["ensemble"].update(trained_attributes=["warmth"]),
}


def manifest(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def test_the_page_is_the_schema_of_the_code() -> None:
    """Else: `medusa-export schema > docs/bundle.schema.json`."""
    assert manifest_schema() == SCHEMA
    Draft202012Validator.check_schema(SCHEMA)


def test_the_command_prints_it() -> None:
    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    assert result.output == (ROOT / "docs" / "bundle.schema.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [EncoderSpec, EnsembleSpec, MemberSpec])
def test_every_field_is_described_and_nothing_else_is_taken(kind: type) -> None:
    for part, names in (
        (SCHEMA, [field.name for field in fields(Manifest)]),
        (SCHEMA["$defs"][kind.__name__], [field.name for field in fields(kind)]),
    ):
        assert list(part["properties"]) == names
        assert part["additionalProperties"] is False
        assert all(properties["description"] for properties in part["properties"].values())


@pytest.mark.parametrize("bundle", ["shipped", "tiny"])
def test_bundles_fit(bundle: str) -> None:
    folder = DEFAULT_BUNDLE if bundle == "shipped" else tiny_bundle().bundle
    Draft202012Validator(SCHEMA).validate(manifest(folder))


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_manifest_fits_neither_the_schema_nor_the_code(wrong: str) -> None:
    data = manifest(tiny_bundle().bundle)
    changed = copy.deepcopy(data)
    WRONG[wrong](changed)
    assert changed != data
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate(changed)
    if wrong not in ("an old version", "no ensemble among the files", "a hash that is none"):  # what read_bundle says
        with pytest.raises(ValueError, match="."):
            Manifest.from_dict(changed)
