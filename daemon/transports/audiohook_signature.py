"""The signature of an AudioHook handshake: HTTP message signatures with HMAC-SHA256, as Genesys Cloud makes them.

Signature-Input: sig1=("@request-target" "@authority" "audiohook-organization-id" "audiohook-session-id"
    "audiohook-correlation-id" "x-api-key");keyid="..";nonce="..";alg="hmac-sha256";created=1641013200;expires=1641013210
Signature: sig1=:<base64>:

What is signed is a line per component, `"name": value`, and the value of Signature-Input behind `"@signature-params": `.

Source: draft-ietf-httpbis-message-signatures-09 (before RFC 9421 renamed "@request-target"), sections 2 and 3;
https://developer.genesys.cloud/devapps/audiohook/session-walkthrough.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from daemon.transports.dialect import Handshake

MAX_AGE_S: Final = 10
MAX_SKEW_S: Final = 3
"""How far the two clocks may lie apart."""
_LEAST_NONCE: Final = 22
"""Characters; 128 bits in base64."""
_REQUIRED: Final = {
    "@request-target",
    "@authority",
    "audiohook-organization-id",
    "audiohook-session-id",
    "audiohook-correlation-id",
    "x-api-key",
}
_INPUT: Final = re.compile(
    r'([a-z*][a-z0-9_.*-]*)=(\((?:"[a-z0-9@-]+"(?: "[a-z0-9@-]+")*)?\)((?:;[a-z]+=(?:"[ -!#-\[\]-~]*"|[0-9]{1,15}))*))'
)
_PARAMETER: Final = re.compile(r';([a-z]+)=(?:"([^"]*)"|([0-9]+))')
_SIGNATURE: Final = re.compile(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):")
_PARAMETERS: Final = {"keyid", "nonce", "alg", "created", "expires"}


class AudioHookKeys:
    """Who may connect, and the handshakes seen of late.

    Args:
        client_secrets: API key -> client secret; empty lets anybody in.
        public_url: under which Genesys reaches us, where a proxy stands between.
        clock: seconds since the epoch.
    """

    def __init__(self, client_secrets: Mapping[str, bytes], public_url: str | None, clock: Callable[[], float]) -> None:
        self._secrets = client_secrets
        self._public_url = public_url
        self._clock = clock
        self._nonces: dict[str, float] = {}

    def problem(self, handshake: Handshake) -> str | None:
        """What is wrong with the signature of a handshake, None if it is good or none is wanted."""
        if not self._secrets:
            return None
        given = _INPUT.fullmatch(handshake.headers.get("signature-input", "").strip())
        signature = _SIGNATURE.fullmatch(handshake.headers.get("signature", "").strip())
        if given is None or signature is None or given[1] != signature[1]:
            return "Signature and Signature-Input are not those of one HMAC signature"
        parameters = {name: text or digits for name, text, digits in _PARAMETER.findall(given[3])}
        key = handshake.headers.get("x-api-key", "")
        names = re.findall(r'"([^"]+)"', given[2][: given[2].index(")")])
        base = self._base(handshake, names, given[2])
        wrong = self._wrong(parameters, names, key)
        # An unknown key costs as much time as a known one.
        secret = self._secrets.get(key)
        wanted = hmac.new(secret or secrets.token_bytes(32), (base or "").encode(), hashlib.sha256).digest()
        good = hmac.compare_digest(wanted, _decoded(signature[2])) and secret is not None and base is not None
        if wrong is None and good:
            wrong = self._replayed(parameters["nonce"])
        return wrong if wrong is not None or good else "the signature is not that of this API key and request"

    def _wrong(self, parameters: Mapping[str, str], names: list[str], key: str) -> str | None:
        """What is wrong but for the signature itself."""
        now = self._clock()
        created = int(parameters.get("created") or 0)
        if missing := _REQUIRED - set(names):
            return f"the signature does not cover {', '.join(sorted(missing))}"
        if unknown := set(parameters) - _PARAMETERS:
            return f"the signature has parameters that are not known: {', '.join(sorted(unknown))}"
        if parameters.get("alg", "hmac-sha256") != "hmac-sha256":
            return "the algorithm is not hmac-sha256"
        if parameters.get("keyid") != key:
            return "keyid is not the X-API-KEY"
        if len(parameters.get("nonce", "")) < _LEAST_NONCE:
            return f"the nonce is shorter than {_LEAST_NONCE} characters"
        if created > now + MAX_SKEW_S:
            return "the signature was created in the future: are both clocks right?"
        if created + MAX_AGE_S < now - MAX_SKEW_S or int(parameters.get("expires") or now + 1) < now - MAX_SKEW_S:
            return f"the signature is older than {MAX_AGE_S} s: are both clocks right?"
        return None

    def _replayed(self, nonce: str) -> str | None:
        now = self._clock()
        self._nonces = {seen: until for seen, until in self._nonces.items() if until >= now}
        if nonce in self._nonces:
            return "the nonce was used before"
        self._nonces[nonce] = now + MAX_AGE_S + 2 * MAX_SKEW_S
        return None

    def _base(self, handshake: Handshake, names: list[str], signed: str) -> str | None:
        """What was signed; None where it names something that the request does not have, or has it twice."""
        if len(set(names)) != len(names):
            return None
        lines = []
        for name in names:
            value = self._component(handshake, name)
            if value is None:
                return None
            lines.append(f'"{name}": {value}')
        return "\n".join([*lines, f'"@signature-params": {signed}'])

    def _component(self, handshake: Handshake, name: str) -> str | None:
        prefix, authority = "", handshake.headers.get("host", "")
        if self._public_url is not None:
            public = urlsplit(self._public_url)
            prefix, authority = public.path.rstrip("/"), public.netloc
        if name == "@authority":
            return authority.lower()
        if name == "@request-target":
            return prefix + _target(handshake.url)
        return None if name.startswith("@") else handshake.headers.get(name)


def _target(url: str) -> str:
    """Path and query, as they stand in the request."""
    behind_host = url.split("://", 1)[-1].partition("/")[2]
    return f"/{behind_host}"


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
