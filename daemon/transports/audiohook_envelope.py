"""What every message of AudioHook is wrapped in: numbers that each side counts and the other one repeats."""

import json
import re
from fractions import Fraction
from typing import Any, Final

from daemon.errors import PeerError
from daemon.transports.parameters import shown

_DURATION: Final = re.compile(r"PT([0-9]{1,7}(?:\.[0-9]{1,9})?)S")


class Envelope:
    """Opens the client's messages and wraps ours.

    Args:
        session: its id, None if the first message says it.
    """

    def __init__(self, session: str | None) -> None:
        self._session = session
        self._seq = 0
        self._clientseq = 0

    def opened(self, message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Type and parameters of the client's next message.

        Raises:
            PeerError: if it is not the next one, or not of this session.
        """
        kind, parameters = message.get("type"), message.get("parameters")
        seq, serverseq, session = message.get("seq"), message.get("serverseq"), message.get("id")
        if message.get("version") != "2" or not isinstance(kind, str) or not isinstance(parameters, dict):
            raise PeerError("bad_envelope", 'a message has "version": "2", a type, and parameters, which are an object')
        if type(seq) is not int or seq != self._clientseq + 1:
            raise PeerError("bad_seq", f"seq is {shown(seq)}; it must be {self._clientseq + 1}")
        if type(serverseq) is not int or not 0 <= serverseq <= self._seq:
            raise PeerError("bad_seq", f"serverseq is {shown(serverseq)}; the last that we sent is {self._seq}")
        if not isinstance(session, str) or self._session not in (None, session):
            raise PeerError("bad_id", f"id is {shown(session)}; this session is {self._session}")
        seconds(message.get("position"), "position")
        self._clientseq, self._session = seq, session
        return kind, parameters

    def wrapped(self, kind: str, parameters: dict[str, Any] | None = None) -> str:
        """Our next message."""
        self._seq += 1
        envelope = {"version": "2", "type": kind, "id": self._session or "", "seq": self._seq}
        envelope |= {"clientseq": self._clientseq, "parameters": parameters or {}}
        return json.dumps(envelope, separators=(",", ":"), ensure_ascii=False)


def seconds(value: object, name: str) -> Fraction:
    """An ISO 8601 duration in seconds.

    Raises:
        PeerError: if it is none.
    """
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise PeerError("bad_duration", f'{name} is {shown(value)}; it is a duration in seconds, as in "PT12.5S"')
    return Fraction(found[1])
