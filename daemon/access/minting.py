"""Tokens of our own: for a minute, for a browser that must not hold a key, or for a session of our pages.

They are signed with a key derived from one secret and name whoever they were minted for; what that one may do is looked up
again each time, so a key that is gone takes its tokens with it.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import jwt

from daemon.access.principal import ROLES, AccessError, Principal, Role

Minted = Literal["token", "session"]

_ALGORITHM: Final = "HS256"
_ISSUER: Final = "medusa-daemon"
_TYPES: Final[dict[str, Minted]] = {"medusa-token": "token", "medusa-session": "session"}
_LABEL: Final = b"medusa minted token, version 1"
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Claims:
    """What a minted token says.

    Attributes:
        name: of the principal that it was minted for.
        roles: that it may have at most.
        kind: what it is for.
        expires_at: seconds since the epoch.
    """

    name: str
    roles: frozenset[Role]
    kind: Minted
    expires_at: float


class Mint:
    """Makes and reads them.

    Args:
        secret: that several processes may share; None for one of this process's own, which ends with it.
        clock: seconds since the epoch.
    """

    def __init__(self, secret: bytes | None, clock: Callable[[], float]) -> None:
        # A secret that is used elsewhere too makes no token that is good here, and the other way round.
        self._key = hmac.new(secret or secrets.token_bytes(_SECRET_BYTES), _LABEL, hashlib.sha256).digest()
        self._clock = clock

    def issue(self, principal: Principal, kind: Minted, roles: frozenset[Role], lifetime_s: float) -> tuple[str, int]:
        """A token and for how many seconds it is good: never for longer than what it was minted from."""
        now = self._clock()
        expires_at = now + lifetime_s
        if principal.expires_at is not None:
            expires_at = min(expires_at, principal.expires_at)
        claims = {
            "iss": _ISSUER,
            "sub": principal.name,
            "aud": kind,
            "roles": sorted(roles),
            "iat": int(now),
            "exp": int(expires_at),
        }
        (type_,) = [name for name, known in _TYPES.items() if known == kind]
        return jwt.encode(claims, self._key, _ALGORITHM, {"typ": type_}), max(0, int(expires_at - now))

    def kind_of(self, token: str) -> Minted | None:
        """What an unverified token says it is; None where it is none of ours. It says so: `read` finds out."""
        try:
            return _TYPES.get(str(jwt.get_unverified_header(token).get("typ")))
        except (jwt.PyJWTError, RecursionError):
            return None

    def read(self, token: str, kind: Minted) -> Claims:
        """What a token says.

        Raises:
            AccessError: if it is not good, or is for something else.
        """
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                audience=kind,
                issuer=_ISSUER,
                options={"require": ["exp", "sub", "aud", "iss"], "verify_exp": False, "verify_iat": False},
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise AccessError(401, "bad_credential", "the token is none that was minted here") from error
        if claims["exp"] <= self._clock():
            raise AccessError(401, "expired", "the token has expired: get another")
        roles = frozenset(role for role in ROLES if role in claims["roles"])
        return Claims(claims["sub"], roles, kind, float(claims["exp"]))
