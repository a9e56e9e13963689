"""The JSON Schema of a bundle's manifest, from the dataclasses that it is read into: docs/bundle.schema.json.

Names, types and defaults come from the fields, descriptions from their docstrings; what a type cannot say is in `_RULES`.
"""

import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Final, Literal, get_args

from export.group_attention import Kernel
from model.bundle import FORMAT_VERSION, LATER_FIELDS, Manifest
from model.labels import ATTRIBUTES, CLASSES
from model.spec import EncoderSpec, EnsembleSpec, Fallback, Lineage, MemberSpec

Schema = dict[str, Any]

_SHA256: Final = "^[0-9a-f]{64}$"
_ABOVE_0: Final[Schema] = {"minimum": 1}
_NOT_BELOW_0: Final[Schema] = {"minimum": 0}
_SHARE: Final[Schema] = {"minimum": 0, "exclusiveMaximum": 1}
_FIGURES: Final[Schema] = {"additionalProperties": {"type": "number", "minimum": 0}}

_RULES: Final[Mapping[type, Mapping[str, Schema]]] = {
    Manifest: {
        "name": {"minLength": 1},
        "temperature": {"exclusiveMinimum": 0},
        "abstain_below": {"minimum": 0, "maximum": 1},
        "opset": _ABOVE_0,
        "tolerances": _FIGURES,
        "parity": _FIGURES,
        "costs": {"additionalProperties": {"type": "object", **_FIGURES}},
        "kernels": {"additionalProperties": {"enum": list(get_args(Kernel))}},
        "prior_log_ratio": {"propertyNames": {"enum": list(CLASSES)}},
        "bundle_id": {"pattern": "-[0-9a-f]{12}$"},
        "files": {
            "additionalProperties": {"type": "string", "pattern": _SHA256},
            "propertyNames": {"pattern": r"^[^/]"},
            "required": ["ensemble.onnx"],
        },
        "format_version": {"const": FORMAT_VERSION},
    },
    EnsembleSpec: {
        "encoders": {"description": "the frozen encoders; members name them as modalities."},
        "members": {"description": "in the order of the graph's votes.", "minItems": 1},
        "trained_classes": {
            "description": "of the eight classes; the others have probability 0.",
            "items": {"enum": list(CLASSES)},
            "minItems": 1,
            "uniqueItems": True,
        },
        "trained_attributes": {
            "description": "of the three attributes; the others are not reported.",
            "items": {"enum": list(ATTRIBUTES)},
        },
    },
    EncoderSpec: {
        "dim": _ABOVE_0,
        "stack": _ABOVE_0,
        "sources": {"items": {"type": "string", "pattern": "^(package|path|hub|bundle):"}},
        "sha256": {"pattern": "^([0-9a-f]{64})?$"},
    },
    Fallback: {
        "members": {"minItems": 1, "uniqueItems": True},
        "temperature": {"exclusiveMinimum": 0},
        "abstain_below": {"minimum": 0, "maximum": 1},
    },
    Lineage: {"clips": _NOT_BELOW_0, "speakers": _NOT_BELOW_0},
    MemberSpec: {
        "modalities": {"minItems": 1, "uniqueItems": True},
        **dict.fromkeys(("dim", "heads", "layers", "feed_forward"), _NOT_BELOW_0),
        "dropout": _SHARE,
        "input_dropout": _SHARE,
        "contrast": _NOT_BELOW_0,
    },
}
_SIMPLE: Final[Mapping[Any, Schema]] = {
    Any: {},
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}


def manifest_schema() -> Schema:
    """The schema, as plain data for JSON."""
    definitions: dict[str, Schema] = {}
    top = _object(Manifest, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"manifest.json of a MEDUSA-RT bundle, format version {FORMAT_VERSION}",
        **top,
        "required": [item.name for item in fields(Manifest) if item.name not in LATER_FIELDS],
        "$defs": definitions,
    }


def _object(kind: type, definitions: dict[str, Schema]) -> Schema:
    hints, described = typing.get_type_hints(kind), _descriptions(kind)
    properties: dict[str, Schema] = {}
    for item in fields(kind):
        rules = _RULES.get(kind, {}).get(item.name, {})
        properties[item.name] = {
            "description": described[item.name],
            **_of(hints[item.name], definitions),
            **rules,
        }
    return {
        "description": (inspect.getdoc(kind) or "").partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": [item.name for item in fields(kind) if _needed(item)],
        "additionalProperties": False,
    }


def _needed(item: "Field[Any]") -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _of(hint: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type hint, of those that `model.plain` knows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        name = hint.__name__
        if name not in definitions:
            definitions[name] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is types.UnionType:
        return {"anyOf": [_of(one, definitions) for one in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    return dict(_SIMPLE[hint])


def _descriptions(kind: type) -> dict[str, str]:
    """What the docstring's `Attributes:` say of each field, "" where it says nothing."""
    found = dict.fromkeys((item.name for item in fields(kind)), "")
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    for match in re.finditer(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", section, re.MULTILINE):
        if match[1] in found:
            found[match[1]] = " ".join(match[2].split())
    return found
