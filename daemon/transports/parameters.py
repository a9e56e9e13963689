"""Values as other people's protocols write them, and the request that they amount to."""

import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any, Final

from daemon.errors import PeerError
from daemon.request import StreamRequest, request_of_message

_LONGEST: Final = 512
"""Characters of a name or a value that a customer attaches to a call."""
_NUMBER: Final = re.compile(r"[0-9]{1,12}")
_FLAGS: Final = {"true": True, "false": False}

_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: object) -> str:
    """A peer's value in a message to it: however deep or long it is, a short text."""
    return _SHORT.repr(value)


def request_of(known: Mapping[str, Any], given: Mapping[str, str]) -> StreamRequest:
    """The request of a stream.

    Args:
        known: what the protocol itself says.
        given: what the customer says over it; roles are separated by commas.

    Raises:
        PeerError: naming every value that is wrong.
    """
    call = known.get("call_id")
    if not isinstance(call, str | None):
        raise PeerError("bad_request", f"the id of the call is {shown(call)}; it is text")
    asked: dict[str, Any] = {"type": "start", **known, **given}
    if "roles" in given:
        asked["roles"] = [part.strip() for part in given["roles"].split(",")]
    return request_of_message(json.dumps(asked))


def texts(parameters: object) -> dict[str, str]:
    """A customer's own parameters of a call.

    Raises:
        PeerError: if they are no short texts by name.
    """
    if not isinstance(parameters, Mapping):
        raise PeerError("bad_request", f"the parameters are {shown(parameters)}; they must be an object")
    for name, value in parameters.items():
        if not isinstance(value, str) or max(len(name), len(value)) > _LONGEST:
            raise PeerError(
                "bad_request", f"parameter {shown(name)} is {shown(value)}; it is text of at most {_LONGEST} characters"
            )
    return dict(parameters)


def number(value: object, name: str) -> int:
    """A count, which some write as a string.

    Raises:
        PeerError: if it is none.
    """
    if not isinstance(value, str | int) or _NUMBER.fullmatch(str(value)) is None:
        raise PeerError("bad_number", f'{name} is {shown(value)}; it is a whole number, as in "160"')
    return int(value)


def whole(query: Mapping[str, str], name: str, default: int | None, least: int, most: int) -> int:
    """A number of the query, within its limits.

    Raises:
        PeerError: if it is none, or is not there and has no default.
    """
    text = query.get(name, "" if default is None else str(default))
    value = int(text) if _NUMBER.fullmatch(text) else -1
    if not least <= value <= most:
        raise PeerError("bad_request", f"{name} is {shown(text)}; it is a whole number from {least} to {most}")
    return value


def flag(query: Mapping[str, str], name: str, default: bool) -> bool:
    """A yes or no of the query.

    Raises:
        PeerError: if it is neither.
    """
    text = query.get(name, str(default)).lower()
    if text not in _FLAGS:
        raise PeerError("bad_request", f"{name} is {shown(text)}; it is true or false")
    return _FLAGS[text]
