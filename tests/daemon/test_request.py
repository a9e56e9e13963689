"""What a client may ask for, and what it is told when it asks for something else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from daemon.errors import CLOSE_BAD_DATA, PeerError
from daemon.request import StreamRequest, parse_object, request_of_message, request_of_query

FULL = StreamRequest(
    encoding="mulaw",
    sample_rate=8000,
    channels=2,
    roles=("caller", "agent 7"),
    language="de",
    interim_ms=500,
    call_id="call:2026-11-21@desk_1.a",
    metadata={"queue": "billing", "note": "grüße, ja"},
)


def refused(query: dict[str, str]) -> PeerError:
    with pytest.raises(PeerError) as caught:
        request_of_query(query)
    return caught.value


def refused_start(**values: Any) -> PeerError:
    with pytest.raises(PeerError) as caught:
        request_of_message(json.dumps({"type": "start", **values}))
    return caught.value


def test_nothing_asked_for_is_a_mono_stream_of_16_bit_samples_at_16_khz() -> None:
    request = request_of_message('{"type": "start"}')
    assert request == request_of_query({}) == StreamRequest()
    assert (request.encoding, request.sample_rate, request.channels) == ("linear16", 16_000, 1)
    assert (request.language, request.interim_ms, request.call_id, request.metadata) == (None, None, None, {})


@pytest.mark.parametrize(("channels", "roles"), [(1, ("customer",)), (2, ("customer", "agent"))])
def test_roles_that_were_not_given(channels: int, roles: tuple[str, ...]) -> None:
    assert StreamRequest(channels=channels).role_names() == roles


def test_query_and_start_message_say_the_same() -> None:
    text = (
        "encoding=mulaw&sample_rate=8000&channels=2&roles=caller,%20agent%207&language=de&interim_ms=500"
        "&call_id=call:2026-11-21@desk_1.a&metadata=%7B%22queue%22:%22billing%22,%22note%22:%22gr%C3%BC%C3%9Fe,+ja%22%7D"
    )
    assert request_of_query(QueryParams(text)) == FULL
    assert request_of_message(json.dumps({"type": "start", **FULL.model_dump()})) == FULL
    assert FULL.role_names() == ("caller", "agent 7")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("sample_rate", "8k", "valid integer"),
        ("sample_rate", "", "valid integer"),
        ("sample_rate", "9" * 5000, "exceeded maximum size"),
        ("channels", "two", "valid integer"),
        ("roles", "", "pattern"),
        ("roles", "customer,", "pattern"),
        ("roles", "customer, ", "pattern"),
        ("roles", "a\nb", "pattern"),
        ("roles", "r" * 65, "pattern"),
        ("language", "", "pattern"),
        ("language", "EN", "pattern"),
        ("language", "en-US", "pattern"),
        ("interim_ms", "-1", "greater than or equal to 0"),
        ("interim_ms", "60001", "less than or equal to 60000"),
        ("interim_ms", "1.5", "valid integer"),
        ("call_id", "", "pattern"),
        ("call_id", "a b", "pattern"),
        ("call_id", "a\n", "pattern"),
        ("call_id", "x" * 129, "pattern"),
        ("call_id", "{slot}", "pattern"),
        ("metadata", '{"a": 1}', "valid string"),
        ("metadata", json.dumps({str(n): "" for n in range(17)}), "at most 16 items"),
        ("sampel_rate", "8000", "not permitted"),
        ("type", "start", "not permitted"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value(name: str, value: str, why: str) -> None:
    error = refused({name: value})
    assert (error.code, error.close_code) == ("bad_request", CLOSE_BAD_DATA)
    assert error.message.startswith(name)
    assert why in error.message
    assert "(got " in error.message
    assert len(error.message) < 300, "a message must not echo whatever was sent"


@pytest.mark.parametrize(
    "values",
    [
        {"encoding": None},
        {"sample_rate": 8000.5},
        {"sample_rate": float("nan")},
        {"sample_rate": [8000]},
        {"channels": None},
        {"roles": "customer,agent"},
        {"roles": [1, 2]},
        {"roles": ["a,b"]},
        {"language": 7},
        {"metadata": []},
        {"metadata": {"a": None}},
        {"metadata": {"a": {"b": "c"}}},
    ],
)
def test_a_wrong_json_type_is_named(values: dict[str, Any]) -> None:
    error = refused_start(**values)
    assert error.code == "bad_request"
    assert error.message.startswith(next(iter(values)))


def test_all_mistakes_are_told_at_once() -> None:
    error = refused({"sample_rate": "8k", "interim_ms": "-5", "colour": "red"})
    assert all(part in error.message for part in ("sample_rate: ", "'8k'", "interim_ms: ", "'-5'", "colour: ", "'red'"))


@pytest.mark.parametrize(
    ("channels", "roles"), [(1, ("a", "b")), (2, ("a",)), (2, ("a", "a")), (2, ("a", "b", "c")), (3, ())]
)
def test_roles_name_every_channel_once(channels: int, roles: tuple[str, ...]) -> None:
    with pytest.raises(PeerError, match=f"do not name {channels} different channels, for instance") as caught:
        StreamRequest(channels=channels, roles=roles).role_names()
    assert caught.value.code == "bad_roles"


@pytest.mark.parametrize("text", ["{}", '{"type": "close"}', '{"type": null}', '{"type": ["start"]}'])
def test_the_first_message_must_be_a_start(text: str) -> None:
    with pytest.raises(PeerError, match='must be "start"') as caught:
        request_of_message(text)
    assert caught.value.code == "bad_start"


NO_JSON = ["", "start", "{", "{'type': 'start'}", "[" * 100_000, '{"sample_rate": ' + "9" * 5000 + "}"]
HALF_A_PAIR = ['{"metadata": {"a": "\\ud800"}}', '{"\\ud800": 1}', '{"roles": ["\\udfff"]}']


@pytest.mark.parametrize("text", [*NO_JSON, *HALF_A_PAIR])
def test_what_is_no_json_is_refused(text: str) -> None:
    """Half a surrogate pair is JSON by the letter, but nothing could publish it."""
    with pytest.raises(PeerError, match="^a text message is no JSON: ") as caught:
        parse_object(text)
    assert (caught.value.code, caught.value.close_code) == ("bad_json", CLOSE_BAD_DATA)
    caught.value.message.encode()


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("1", "int"), ("null", "NoneType"), ('"start"', "str")])
def test_json_that_is_no_object_is_refused(text: str, kind: str) -> None:
    with pytest.raises(PeerError, match=f"a text message holds a {kind}; it must be an object"):
        parse_object(text)


@pytest.mark.parametrize(
    ("metadata", "why"), [("{", "metadata is no JSON"), ("a=b", "metadata is no JSON"), ("[]", "metadata holds a list")]
)
def test_metadata_in_the_query_that_is_no_object_is_named(metadata: str, why: str) -> None:
    error = refused({"metadata": metadata})
    assert error.code == "bad_json"
    assert why in error.message


Text = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=8)
Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | Text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(Text, inner, max_size=3),
    max_leaves=6,
)
Names = st.sampled_from(["type", *StreamRequest.model_fields]) | Text


@given(values=st.dictionaries(Names, Json, max_size=5))
def test_any_start_message_is_taken_or_gives_an_error_that_can_be_sent(values: dict[str, Any]) -> None:
    try:
        request = request_of_message(json.dumps({"type": "start"} | values))
        request.role_names()
    except PeerError as error:
        error.message.encode()
    else:
        request.model_dump_json().encode()


@given(
    query=st.dictionaries(st.sampled_from(list(StreamRequest.model_fields)) | st.text(max_size=8), st.text(max_size=20))
)
def test_any_query_is_taken_or_gives_an_error_that_can_be_sent(query: dict[str, str]) -> None:
    try:
        request_of_query(query).role_names()
    except PeerError as error:
        error.message.encode()
