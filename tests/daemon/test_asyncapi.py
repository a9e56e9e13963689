"""docs/asyncapi.yaml says what the daemon does: every message, every parameter, every code, and nothing else."""

import ast
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from referencing import Registry
from referencing.jsonschema import DRAFT7

from daemon import parking, pipeline, request, resample, stream, streams, wire
from daemon.errors import PeerError
from daemon.request import StreamRequest, request_of_message, request_of_query
from daemon.resample import AudioDecoder
from daemon.transports import native, opus, websocket
from model.labels import ATTRIBUTES, CLASSES
from tests.daemon.test_wire import MESSAGES

Json = dict[str, Any]

DOCUMENT: Json = yaml.safe_load((Path(__file__).parents[2] / "docs" / "asyncapi.yaml").read_text(encoding="utf-8"))
SCHEMAS: Json = DOCUMENT["components"]["schemas"]
QUERY: Json = DOCUMENT["channels"]["stream"]["bindings"]["ws"]["query"]
DESCRIBED: Json = DOCUMENT["components"]["messages"]
_URI = "urn:medusa:asyncapi"
OPTIONAL = {"modality_share", "members_used"}
"""Fields that only some results have."""
_REGISTRY: Registry[Any] = Registry().with_resource(_URI, DRAFT7.create_resource(DOCUMENT))


def schema(name: str) -> Draft7Validator:
    """AsyncAPI's schemas are JSON Schema draft 7."""
    return Draft7Validator({"$ref": f"{_URI}#/components/schemas/{name}"}, registry=_REGISTRY)


def payload(message: str) -> Draft7Validator:
    return schema(DESCRIBED[message]["payload"]["$ref"].rpartition("/")[2])


def names_of(operation: str) -> set[str]:
    return {entry["$ref"].rpartition("/")[2] for entry in DOCUMENT["operations"][operation]["messages"]}


def literals(module: ModuleType, call: str) -> set[str]:
    """First arguments, as far as they are written out, of every call of `call` in a module."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == call and node.args:
            match node.args[0]:
                case ast.Constant(value=str(text)):
                    found.add(text)
    return found


def types_built() -> set[str]:
    """Every constant `"type"` of a message in daemon/wire.py."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(wire))):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                match key, value:
                    case ast.Constant(value="type"), ast.Constant(value=str(kind)):
                        found.add(kind)
    return found


def references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []


def test_every_server_message_is_described_and_every_described_one_is_built() -> None:
    assert names_of("tell") == types_built() == {message["type"] for message in MESSAGES.values()}


def test_all_messages_belong_to_the_channel_and_have_a_direction() -> None:
    assert set(DESCRIBED) == set(DOCUMENT["channels"]["stream"]["messages"]) == names_of("take") | names_of("tell")
    assert names_of("take") == {"start", "resume", "audio", "keep_alive", "finalize", "close"}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_the_server_builds_fits_the_document(name: str) -> None:
    message = json.loads(json.dumps(MESSAGES[name] | {"seq": 3}))
    payload(message["type"]).validate(message)


@pytest.mark.parametrize("name", MESSAGES)
def test_the_document_insists_on_every_field_and_knows_no_other(name: str) -> None:
    message: Json = json.loads(json.dumps(MESSAGES[name] | {"seq": 3}))
    validator = payload(message["type"])
    for field in message:
        without = {key: value for key, value in message.items() if key != field}
        assert validator.is_valid(without) == (field in OPTIONAL), field
    assert not validator.is_valid(message | {"unheard_of": "token"})
    for other in names_of("tell") - {message["type"]}:
        assert not payload(other).is_valid(message)


@pytest.mark.parametrize(("name", "example"), [(n, e) for n, m in DESCRIBED.items() for e in m.get("examples", ())])
def test_every_example_fits(name: str, example: Json) -> None:
    payload(name).validate(example["payload"])
    assert example["payload"]["type"] == name


def test_every_message_but_audio_has_an_example() -> None:
    assert [name for name, message in DESCRIBED.items() if "examples" not in message] == ["audio"]


def taken(values: Json) -> bool:
    """Whether the server takes a `start` message."""
    try:
        asked = request_of_message(json.dumps(values))
        AudioDecoder(asked.encoding, asked.sample_rate, asked.channels)
        asked.role_names()
    except PeerError:
        return False
    return True


GOOD_STARTS: list[Json] = [
    {},
    {"encoding": "float32", "sample_rate": 4000},
    {"encoding": "alaw", "sample_rate": 192_000, "channels": 2},
    {"roles": ["Kunde 7"]},
    {"roles": ["a", "r" * 64], "channels": 2},
    {"roles": []},
    {"language": "de", "interim_ms": 0, "call_id": "a.b:c@d-e_f"},
    {"language": None, "interim_ms": None, "call_id": None},
    {"interim_ms": 60_000, "metadata": {str(n): "" for n in range(16)}},
]
BAD_STARTS: list[Json] = [
    {"type": "begin"},
    {"encoding": "mp3"},
    {"encoding": None},
    {"sample_rate": 3999},
    {"sample_rate": 192_001},
    {"sample_rate": 8000.5},
    {"channels": 0},
    {"channels": 3},
    {"roles": "customer,agent"},
    {"roles": ["a", "a"], "channels": 2},
    {"roles": ["a", "b", "c"]},
    {"roles": ["a,b"]},
    {"roles": [""]},
    {"roles": [" a"]},
    {"roles": ["r" * 65]},
    {"language": "en-US"},
    {"interim_ms": -1},
    {"interim_ms": 60_001},
    {"call_id": ""},
    {"call_id": "x" * 129},
    {"call_id": "a b"},
    {"metadata": {str(n): "" for n in range(17)}},
    {"metadata": {"a": 1}},
    {"resume": "token"},
    {"unheard_of": 1},
]


@pytest.mark.parametrize("values", GOOD_STARTS)
def test_a_start_that_fits_is_taken(values: Json) -> None:
    message = {"type": "start"} | values
    payload("start").validate(message)
    assert taken(message)


@pytest.mark.parametrize("values", BAD_STARTS)
def test_a_start_that_does_not_fit_is_refused(values: Json) -> None:
    message = {"type": "start"} | values
    assert not payload("start").is_valid(message)
    assert not taken(message)


def test_query_and_start_describe_the_parameters_that_there_are() -> None:
    parameters = set(StreamRequest.model_fields)
    assert set(QUERY["properties"]) == parameters
    assert set(SCHEMAS["Start"]["properties"]) == parameters | {"type", "token"}


def test_query_examples_are_taken() -> None:
    examples = {name: p["examples"][0] for name, p in QUERY["properties"].items() if "examples" in p}
    assert request_of_query({"channels": "2"} | examples).role_names() == ("customer", "agent")


def test_defaults_are_those_of_the_server() -> None:
    defaults = {name: SCHEMAS[name]["default"] for name in ("Encoding", "SampleRate", "Channels")}
    asked = StreamRequest()
    assert defaults == {"Encoding": asked.encoding, "SampleRate": asked.sample_rate, "Channels": asked.channels}


def test_lists_are_those_of_the_server() -> None:
    assert SCHEMAS["Encoding"]["enum"] == [*resample.ENCODINGS, opus.OPUS]
    assert SCHEMAS["Channels"]["enum"] == list(resample.CHANNELS)
    assert SCHEMAS["Class"]["enum"] == list(CLASSES)
    assert SCHEMAS["Emotion"]["properties"]["probabilities"]["required"] == list(CLASSES)
    assert SCHEMAS["SessionCreated"]["properties"]["trained_attributes"]["items"]["enum"] == list(ATTRIBUTES)
    assert DOCUMENT["info"]["version"] == wire.WIRE_VERSION


@pytest.mark.parametrize("kind", ["keep_alive", "finalize", "close"])
def test_the_server_knows_what_a_client_may_send(kind: str) -> None:
    payload(kind).validate({"type": kind})
    assert not payload(kind).is_valid({})
    source = ast.parse(inspect.getsource(native))
    compared = {ast.unparse(node) for node in ast.walk(source) if isinstance(node, ast.Compare)}
    assert f"kind == '{kind}'" in compared


def test_error_codes_are_those_in_the_code() -> None:
    modules = (parking, pipeline, resample, request, stream, streams, native, opus, websocket)
    raised = {code for module in modules for call in ("PeerError", "wire.error") for code in literals(module, call)}
    assert SCHEMAS["ErrorCode"]["enum"] == sorted(raised)


def test_reasons_of_an_end_are_those_in_the_code() -> None:
    endings, codes = set(SCHEMAS["Ending"]["enum"]), set(SCHEMAS["ErrorCode"]["enum"])
    written = literals(websocket, "Ending") | literals(stream, "Ending")
    assert endings <= written <= endings | codes


def test_every_reference_leads_somewhere() -> None:
    found = references(DOCUMENT)
    assert found
    for reference in found:
        node: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_every_schema_is_one_and_is_used() -> None:
    used = {reference.rpartition("/")[2] for reference in references(DOCUMENT)}
    Draft7Validator.check_schema(QUERY)
    for name, body in SCHEMAS.items():
        Draft7Validator.check_schema(body)
        assert name in used, f"nothing refers to the schema {name}"
