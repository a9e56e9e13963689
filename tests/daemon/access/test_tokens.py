"""JSON Web Tokens: only what is signed by a key for its own algorithm, for us, and now; and tokens of our own."""

import base64
import hashlib
import hmac
import json
import random
import time
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from daemon.access.minting import Mint
from daemon.access.principal import AccessError, Limits, Principal
from daemon.access.settings import JwtConfig
from daemon.access.tokens import TokenVerifier, public_key, read_key_set
from daemon.errors import ConfigError

SECRET: Final = "a secret of more than thirty-two bytes"
RSA_KEY: Final = rsa.generate_private_key(65537, 2048)
EC_KEY: Final = ec.generate_private_key(ec.SECP256R1())


def pem(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


def claims(**other: Any) -> dict[str, Any]:
    good = {"sub": "anna", "aud": "medusa", "iss": "https://id.example.org", "exp": time.time() + 60, "roles": ["read"]}
    return {name: value for name, value in (good | other).items() if value is not None}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    paths = {"rsa": folder / "rsa.pem", "ec": folder / "ec.pem", "jwks": folder / "jwks.json"}
    paths["rsa"].write_bytes(pem(RSA_KEY))
    paths["ec"].write_bytes(pem(EC_KEY))
    write_jwks(paths["jwks"], one=RSA_KEY)
    return paths


def write_jwks(path: Path, **keys: Any) -> None:
    entries = []
    for kid, key in keys.items():
        is_rsa = isinstance(key, rsa.RSAPrivateKey)
        algorithm: Any = jwt.algorithms.RSAAlgorithm if is_rsa else jwt.algorithms.ECAlgorithm
        entries.append(json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"})
    path.write_text(json.dumps({"keys": entries}))


def verifier(**settings: Any) -> TokenVerifier:
    rules = JwtConfig(**{"audience": "medusa", "issuer": "https://id.example.org"} | settings).rules()
    assert rules is not None
    return TokenVerifier(rules)


@pytest.fixture(scope="module")
def every(files: dict[str, Path]) -> TokenVerifier:
    """A verifier with all three kinds of keys."""
    return verifier(
        algorithms=("HS256", "RS256", "ES256"),
        secret=SECRET,
        public_keys=(files["rsa"], files["ec"]),
        max_streams=3,
    )


def refused(verifier: TokenVerifier, token: str) -> AccessError:
    with pytest.raises(AccessError) as caught:
        verifier.principal(token)
    assert caught.value.status == 401
    assert not any(part in caught.value.message for part in token.split(".") if len(part) > 3)
    return caught.value


@pytest.mark.parametrize(("key", "algorithm"), [(SECRET, "HS256"), (RSA_KEY, "RS256"), (EC_KEY, "ES256")])
def test_a_good_token(every: TokenVerifier, key: Any, algorithm: str) -> None:
    found = every.principal(jwt.encode(claims(roles="read ingest sudo"), key, algorithm))
    assert (found.name, found.kind, found.limits) == ("jwt:anna", "jwt", Limits(streams=3))
    assert found.roles == {"read", "ingest"}
    assert found.expires_at == pytest.approx(time.time() + 60, abs=5)


@pytest.mark.parametrize(
    ("changed", "code", "says"),
    [
        ({"exp": 1.0}, "expired", "has expired"),
        ({"exp": None}, "bad_credential", "lacks the claim exp"),
        ({"exp": "soon"}, "bad_credential", "no JSON Web Token"),
        ({"aud": None}, "bad_credential", "lacks the claim aud"),
        ({"aud": "other"}, "bad_credential", "another audience"),
        ({"aud": {"medusa": 1}}, "bad_credential", ""),
        ({"iss": None}, "bad_credential", "lacks the claim iss"),
        ({"iss": "https://evil.example"}, "bad_credential", "another issuer"),
        ({"sub": None}, "bad_credential", "lacks the claim sub"),
        ({"sub": ""}, "bad_credential", "sub is not text"),
        ({"sub": "x" * 129}, "bad_credential", "sub is not text"),
        ({"nbf": time.time() + 3600}, "bad_credential", "now"),
    ],
)
def test_claims_that_are_not_good(every: TokenVerifier, changed: dict[str, Any], code: str, says: str) -> None:
    error = refused(every, jwt.encode(claims(**changed), SECRET, "HS256"))
    assert error.code == code
    assert says in error.message


@pytest.mark.parametrize("roles", [None, 3, {"read": True}, [], ["Read"], [["read"]], "reader"])
def test_roles_that_are_none(every: TokenVerifier, roles: Any) -> None:
    assert every.principal(jwt.encode(claims(roles=roles), SECRET, "HS256")).roles == frozenset()


def forged(header: dict[str, Any], body: dict[str, Any], sign: bytes | None) -> str:
    """A token with any header, signed with HMAC over whatever bytes are taken for a secret."""
    parts = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in (header, body)]
    text = b".".join(parts)
    signature = b"" if sign is None else hmac.new(sign, text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, "HS512", ["HS256"], 5])
def test_no_algorithm_is_no_signature(every: TokenVerifier, algorithm: Any) -> None:
    for sign in (None, SECRET.encode()):
        refused(every, forged({"alg": algorithm, "typ": "JWT"}, claims(), sign))


def test_a_public_key_is_no_secret(files: dict[str, Path], every: TokenVerifier) -> None:
    """Algorithm confusion: HS256 with the bytes of the RSA key that everybody has."""
    for only_rsa in (every, verifier(algorithms=("RS256",), public_keys=(files["rsa"],))):
        for data in (pem(RSA_KEY), pem(RSA_KEY).strip(), pem(EC_KEY)):
            refused(only_rsa, forged({"alg": "HS256", "typ": "JWT"}, claims(), data))


def test_an_algorithm_that_is_not_configured(files: dict[str, Path]) -> None:
    only_rsa = verifier(algorithms=("RS256",), public_keys=(files["rsa"],))
    assert "algorithm is not one of RS256" in refused(only_rsa, jwt.encode(claims(), SECRET, "HS256")).message
    assert "algorithm is not one of RS256" in refused(only_rsa, jwt.encode(claims(), EC_KEY, "ES256")).message


def test_another_key(every: TokenVerifier) -> None:
    others = [("x" * 40, "HS256"), (rsa.generate_private_key(65537, 2048), "RS256")]
    for key, algorithm in [*others, (ec.generate_private_key(ec.SECP256R1()), "ES256")]:
        assert "of no key" in refused(every, jwt.encode(claims(), key, algorithm)).message  # type: ignore[arg-type]


def test_critical_extensions_are_refused(every: TokenVerifier) -> None:
    refused(every, forged({"alg": "HS256", "crit": ["b64"], "b64": False}, claims(), SECRET.encode()))
    refused(every, forged({"alg": "HS256", "crit": ["other"], "other": 1}, claims(), SECRET.encode()))


def test_what_is_no_token(every: TokenVerifier) -> None:
    for text in ("", ".", "..", "a.b.c", "e30.e30.e30", "\u0663.a.b", "[" * 5000, "x" * 8193):
        refused(every, text)
    good = jwt.encode(claims(), SECRET, "HS256")
    chance = random.Random(5)
    for _ in range(500):
        at = chance.randrange(len(good))
        broken = good[:at] + chance.choice("AZaz09-_.= \n{") + good[at + 1 :]
        if broken.rstrip("=") != good and base64_changes(broken, good):
            refused(every, broken)


def base64_changes(one: str, other: str) -> bool:
    """Whether two tokens differ in what they decode to: the last letter of a part has bits that mean nothing."""
    try:
        parts = [[base64.urlsafe_b64decode(p + "==") for p in text.split(".")] for text in (one, other)]
    except ValueError:
        return True
    return parts[0] != parts[1]


def test_a_key_set_that_changes_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "jwks.json"
    write_jwks(path, one=RSA_KEY)
    found = verifier(algorithms=("RS256", "ES256"), jwks_file=path)
    first = jwt.encode(claims(), RSA_KEY, "RS256", {"kid": "one"})
    second = jwt.encode(claims(), EC_KEY, "ES256", {"kid": "two"})
    assert found.principal(first).name == "jwt:anna"
    refused(found, second)
    write_jwks(path, two=EC_KEY)
    assert found.principal(second).name == "jwt:anna"
    refused(found, first)
    refused(found, jwt.encode(claims(), EC_KEY, "ES256", {"kid": "other"}))
    path.write_text("{")
    assert found.principal(second).name == "jwt:anna", "a broken file changes nothing"
    assert "stay in use" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON Web Key Set"),
        ("[]", "no JSON Web Key Set"),
        ('{"keys": 3}', "no JSON Web Key Set"),
        ('{"keys": [3]}', "no JSON Web Key Set"),
        ('{"keys": [{"kty": "RSA"}]}', "no JSON Web Key Set"),
        ('{"keys": []}', "has no key for RS256 or ES256"),
        ('{"keys": [{"kty": "oct", "k": "AAAA"}]}', "holds private keys or secrets"),
    ],
)
def test_a_key_set_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_key_set(path)


def test_public_keys_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    weak = rsa.generate_private_key(65537, 1024)
    private = RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    cases = {
        pem(weak): "has 1024 bits; it needs at least 2048",
        pem(ec.generate_private_key(ec.SECP384R1())): "ES256 needs P-256",
        pem(ed25519.Ed25519PrivateKey.generate()): "it must be an RSA key",
        private: "cannot read the public key",
        b"nothing": "cannot read the public key",
    }
    for data, says in cases.items():
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=says):
            public_key(path)


EDGE: Final = Principal("edge", frozenset({"ingest", "read"}))


def test_a_minted_token_says_who_and_what_and_ends() -> None:
    now = [1000.0]
    mint = Mint(SECRET.encode(), lambda: now[0])
    token, lasts_s = mint.issue(EDGE, "token", frozenset({"ingest"}), 60)
    assert lasts_s == 60
    assert mint.kind_of(token) == "token"
    said = mint.read(token, "token")
    assert (said.name, said.kind) == ("edge", "token")
    assert said.roles == {"ingest"}
    with pytest.raises(AccessError, match="none that was minted here"):
        mint.read(token, "session")
    now[0] += 60
    with pytest.raises(AccessError) as caught:
        mint.read(token, "token")
    assert caught.value.code == "expired"


def test_a_token_lasts_no_longer_than_what_it_was_made_from() -> None:
    mint = Mint(None, lambda: 1000.0)
    owner = Principal("jwt:anna", frozenset({"read"}), kind="jwt", expires_at=1010.0)
    assert mint.issue(owner, "session", owner.roles, 3600)[1] == 10


def test_processes_share_tokens_where_they_share_the_secret() -> None:
    token, _ = Mint(SECRET.encode(), time.time).issue(EDGE, "token", EDGE.roles, 60)
    assert Mint(SECRET.encode(), time.time).read(token, "token").name == "edge"
    for other in (None, b"x" * 40):
        with pytest.raises(AccessError):
            Mint(other, time.time).read(token, "token")


def test_a_secret_that_is_used_twice_mixes_nothing(every: TokenVerifier) -> None:
    """The provider's secret and ours may be the same by mistake: neither's tokens are good for the other."""
    mint = Mint(SECRET.encode(), time.time)
    token, _ = mint.issue(EDGE, "token", EDGE.roles, 60)
    refused(every, token)
    theirs = jwt.encode(claims(aud="token", iss="medusa-daemon"), SECRET, "HS256", {"typ": "medusa-token"})
    with pytest.raises(AccessError):
        mint.read(theirs, "token")
