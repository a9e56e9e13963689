"""JSON Web Tokens (RFC 7519) of somebody else's identity provider: signature, audience, issuer, time, roles.

Which key may verify which algorithm is ours to say, not the token's: a secret verifies HS256 alone, an RSA key RS256 alone, a
P-256 key ES256 alone; "none" is no algorithm. Source: RFC 8725, sections 2.1, 3.1 and 3.2.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from daemon.access.principal import ROLES, AccessError, Limits, Principal, Role
from daemon.errors import ConfigError

Algorithm = Literal["HS256", "RS256", "ES256"]

MOST_BYTES: Final = 8192
"""Of a token; parsing a longer one is work for nothing."""
_LEAST_RSA_BITS: Final = 2048
_LONGEST_NAME: Final = 128
_ASYMMETRIC: Final = get_args(Algorithm)[1:]

_log = logging.getLogger(__name__)

PublicKey = RSAPublicKey | EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key, the one algorithm that it is for, and its id where it has one."""

    algorithm: Algorithm
    key: PublicKey | bytes = field(repr=False)
    kid: str | None = None


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Which tokens are good.

    Attributes:
        algorithms: that are taken; no others, whatever keys there are.
        keys: that do not change while we run.
        jwks_file: a JSON Web Key Set (RFC 7517) that may change.
        audience: that `aud` must name.
        issuer: that `iss` must be, None for any.
        roles_claim: which claim holds roles: a list, or words.
        leeway_s: how far the two clocks may lie apart.
        limits: of each subject.
    """

    algorithms: tuple[Algorithm, ...]
    keys: tuple[VerificationKey, ...]
    jwks_file: Path | None
    audience: str
    issuer: str | None
    roles_claim: str
    leeway_s: float
    limits: Limits


def public_key(path: Path) -> VerificationKey:
    """A public key from a PEM file.

    Raises:
        ConfigError: if it holds no RSA or P-256 key.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"cannot read the public key {path}: {error}") from error
    if isinstance(key, RSAPublicKey | EllipticCurvePublicKey):
        return _usable(key, None, str(path))
    raise ConfigError(f"{path} holds a {type(key).__name__}; it must be an RSA key, or one of the curve P-256")


def read_key_set(path: Path) -> tuple[VerificationKey, ...]:
    """The keys of a JSON Web Key Set.

    Raises:
        ConfigError: if it is none, or has no key that could be used.
    """
    try:
        entries = json.loads(path.read_bytes())["keys"]
        if any("d" in entry or "k" in entry for entry in entries):
            raise ConfigError(f"{path} holds private keys or secrets; only public keys belong into it")
        wanted = [entry for entry in entries if entry.get("use", "sig") == "sig" and entry.get("kty") in ("RSA", "EC")]
        found = [jwt.PyJWK.from_dict(entry) for entry in wanted]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, jwt.PyJWTError) as error:
        raise ConfigError(f"{path} is no JSON Web Key Set: {type(error).__name__}: {error}") from error
    keys = tuple(_usable(jwk.key, jwk.key_id, str(path)) for jwk in found if jwk.algorithm_name in _ASYMMETRIC)
    if not keys:
        raise ConfigError(f"{path} has no key for {' or '.join(_ASYMMETRIC)}")
    return keys


def _usable(key: PublicKey, kid: str | None, where: str) -> VerificationKey:
    if isinstance(key, RSAPublicKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise ConfigError(f"an RSA key of {where} has {key.key_size} bits; it needs at least {_LEAST_RSA_BITS}")
        return VerificationKey("RS256", key, kid)
    if not isinstance(key.curve, SECP256R1):
        raise ConfigError(f"a key of {where} is of the curve {key.curve.name}; ES256 needs P-256")
    return VerificationKey("ES256", key, kid)


class TokenVerifier:
    """Verifies tokens.

    Args:
        rules: which are good.

    Raises:
        ConfigError: if the key set cannot be used.
    """

    def __init__(self, rules: TokenRules) -> None:
        self._rules = rules
        self._stamp: object = None
        self._from_file: tuple[VerificationKey, ...] = ()
        if rules.jwks_file is not None:
            self._from_file, self._stamp = read_key_set(rules.jwks_file), _stamp(rules.jwks_file)

    @property
    def limits(self) -> Limits:
        """Of each subject."""
        return self._rules.limits

    def principal(self, token: str) -> Principal:
        """Who the token is for.

        Raises:
            AccessError: if it is not good; the message holds nothing of the token.
        """
        if len(token) > MOST_BYTES:
            raise _bad(f"the token is longer than {MOST_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, RecursionError) as error:
            raise _bad("the token is no JSON Web Token") from error
        algorithm = header.get("alg")
        if algorithm not in self._rules.algorithms:
            raise _bad(f"the token's algorithm is not one of {', '.join(self._rules.algorithms)}")
        candidates = [key for key in self._keys() if key.algorithm == algorithm and _fits(key, header.get("kid"))]
        return self._principal(self._claims(token, candidates))

    def _keys(self) -> Sequence[VerificationKey]:
        path = self._rules.jwks_file
        if path is not None and (stamp := _stamp(path)) != self._stamp:
            self._stamp = stamp  # whatever it holds: a broken file is read once, not for every token
            try:
                self._from_file = read_key_set(path)
            except ConfigError as error:
                _log.error("the keys read before stay in use: %s", error)
        return [*self._rules.keys, *self._from_file]

    def _claims(self, token: str, candidates: Sequence[VerificationKey]) -> dict[str, Any]:
        rules = self._rules
        required = ["exp", "aud", "sub"] + (["iss"] if rules.issuer is not None else [])
        for candidate in candidates:
            try:
                return jwt.decode(
                    token,
                    candidate.key,
                    algorithms=[candidate.algorithm],
                    audience=rules.audience,
                    issuer=rules.issuer,
                    leeway=rules.leeway_s,
                    options={"require": required},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.ExpiredSignatureError as error:
                raise AccessError(401, "expired", "the token has expired: get another") from error
            except jwt.MissingRequiredClaimError as error:
                raise _bad(f"the token lacks the claim {error.claim}") from error
            except jwt.InvalidAudienceError as error:
                raise _bad("the token is for another audience") from error
            except jwt.InvalidIssuerError as error:
                raise _bad("the token is of another issuer") from error
            except (jwt.PyJWTError, ValueError, OverflowError, TypeError, RecursionError) as error:
                raise _bad("the token is no JSON Web Token that could be used now") from error
        raise _bad("the token's signature is of no key that is known here")

    def _principal(self, claims: dict[str, Any]) -> Principal:
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_NAME:
            raise _bad(f"the token's sub is not text of 1 to {_LONGEST_NAME} characters")
        expires_at = float(claims["exp"])
        return Principal(f"jwt:{subject}", self._roles(claims), self._rules.limits, "jwt", expires_at)

    def _roles(self, claims: dict[str, Any]) -> frozenset[Role]:
        said = claims.get(self._rules.roles_claim)
        words = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        return frozenset(role for role in ROLES if role in words)


def _fits(key: VerificationKey, kid: object) -> bool:
    return kid is None or key.kid is None or key.kid == kid


def _stamp(path: Path) -> object:
    """What changes when a file does; None where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _bad(message: str) -> AccessError:
    return AccessError(401, "bad_credential", message)
