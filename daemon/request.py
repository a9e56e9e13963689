"""What a client asks for when it opens a stream: checked once, with an error that says what would be right."""

import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.errors import CLOSE_BAD_DATA, PeerError

DEFAULT_ROLES: Final = {1: ("customer",), 2: ("customer", "agent")}
_NAME: Final = r"^[A-Za-z0-9_.:@-]{1,128}$"
_ROLE: Final = r"^[^\s,][^,\x00-\x1f\x7f]{0,63}$"
"""Roles are joined by commas, in the query as in Redis."""
_MAX_METADATA: Final = 16


_Model = TypeVar("_Model", bound=BaseModel)


class StreamRequest(BaseModel):
    """Parameters of `/v1/stream`, as query string or as the first message `{"type": "start", ...}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoding: str = "linear16"
    sample_rate: int = 16_000
    channels: int = 1
    roles: tuple[Annotated[str, Field(pattern=_ROLE)], ...] = ()
    language: str | None = Field(default=None, pattern=r"^[a-z]{2,3}$")
    interim_ms: int | None = Field(default=None, ge=0, le=60_000)
    call_id: str | None = Field(default=None, pattern=_NAME)
    resume: bool = False
    """Whether the client comes back if it loses its connection."""
    metadata: dict[str, str] = Field(default_factory=dict, max_length=_MAX_METADATA)

    def role_names(self) -> tuple[str, ...]:
        """A role per channel.

        Raises:
            PeerError: if the number of roles is not the number of channels.
        """
        roles = self.roles or DEFAULT_ROLES.get(self.channels, ())
        if len(roles) != self.channels or len(set(roles)) != len(roles):
            raise PeerError(
                "bad_roles",
                f"roles {list(roles)} do not name {self.channels} different channels, for instance customer,agent",
            )
        return roles


class ResumeRequest(BaseModel):
    """The first message of a connection that goes on with a stream: `{"type": "resume", ...}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resume: str = Field(max_length=128)
    after: int = Field(default=-1, ge=-1)


def request_of_query(query: Mapping[str, str]) -> StreamRequest:
    """Reads the query string: roles separated by commas, metadata as JSON.

    Raises:
        PeerError: naming every parameter that is wrong.
    """
    values: dict[str, Any] = dict(query)
    if "roles" in values:
        values["roles"] = tuple(part.strip() for part in values["roles"].split(","))
    if "metadata" in values:
        values["metadata"] = parse_object(values["metadata"], "metadata")
    return _checked(StreamRequest, values)


def request_of_message(text: str, ignored: Collection[str] = ()) -> StreamRequest:
    """Reads the first message of a stream without a query string.

    Args:
        text: of the message.
        ignored: what it may hold that is no parameter.

    Raises:
        PeerError: if it is no `start` message or a parameter is wrong.
    """
    values = parse_object(text)
    kind = values.pop("type", None)
    if kind != "start":
        raise PeerError(
            "bad_start", f'the first message has type {kind!r}; it must be "start" with the stream\'s parameters'
        )
    return _checked(StreamRequest, {name: value for name, value in values.items() if name not in ignored})


def resume_of_message(text: str) -> ResumeRequest | None:
    """Reads a first message that asks to go on with a stream; None if it is another.

    Raises:
        PeerError: if it does, and a field is wrong.
    """
    values = parse_object(text)
    if values.get("type") != "resume":
        return None
    return _checked(ResumeRequest, {name: value for name, value in values.items() if name not in ("type", "token")})


def parse_object(text: str, what: str = "a text message") -> dict[str, Any]:
    """A JSON object.

    Args:
        text: what a client sent.
        what: names it in errors.

    Raises:
        PeerError: if `text` is something else.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # "\ud800" is JSON, but no text that Redis could take
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise PeerError("bad_json", f"{what} is no JSON: {error}", CLOSE_BAD_DATA) from error
    if not isinstance(value, dict):
        raise PeerError("bad_json", f"{what} holds a {type(value).__name__}; it must be an object", CLOSE_BAD_DATA)
    return value


def _checked(model: type[_Model], values: dict[str, Any]) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r:.80})" for e in error.errors()
        )
        raise PeerError("bad_request", wrong) from error
