"""Who can reach a daemon at all: addresses, host names, certificates, and what the programs say about it."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import time
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from websockets.asyncio.client import connect

from daemon import cli
from daemon.access.assembled import OPEN, described, gate_of
from daemon.access.gate import Asked
from daemon.access.keys import digest, new_key
from daemon.access.principal import AccessError
from daemon.access.tls import CertificateFiles, keep_fresh, tls_context
from daemon.access.tls import described as certificate_described
from daemon.config import Config, load_config
from daemon.errors import ConfigError
from daemon.listening import bound
from tests.daemon.conftest import serving
from tests.waiting import until

SECRET: Final = "a secret of more than thirty-two bytes"
KEY: Final = new_key()
KEYS: Final = {"edge": {"sha256": digest(KEY), "roles": ["ingest", "read"]}}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEDUSA_")]:
        monkeypatch.delenv(name)


def write_certificate(folder: Path, name: str = "localhost", days: float = 90) -> CertificateFiles:
    """A certificate of its own making, for this machine."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = CertificateFiles(folder / "cert.pem", folder / "key.pem")
    files.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def config(**flags: Any) -> Config:
    return load_config(None, {"port": 0} | flags)


def tls_section(files: CertificateFiles) -> dict[str, Any]:
    return {"cert": files.cert, "key": files.key}


def listens(**flags: Any) -> str:
    with bound(config(**flags)) as listening:
        return str(listening.getsockname()[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_alone_needs_nothing(host: str) -> None:
    assert listens(host=host) in ("127.0.0.1", "127.0.0.2", "::1")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_other_machines_need_keys_and_tls(host: str, tmp_path: Path) -> None:
    tls = tls_section(write_certificate(tmp_path))
    lacking: dict[str, dict[str, Any]] = {
        "access keys (anybody could stream, read transcripts and delete calls) and TLS": {},
        "lacks TLS (keys and audio would be readable on the way)": {"access": {"keys": KEYS}},
        "lacks access keys (anybody could stream, read transcripts and delete calls)": {"tls": tls},
    }
    for says, flags in lacking.items():
        with pytest.raises(ConfigError) as caught:
            listens(host=host, **flags)
        message = str(caught.value)
        assert says in message
        assert all(way in message for way in ("[access.keys.NAME]", "--host 127.0.0.1", "--insecure"))
        assert listens(host=host, insecure=True, **flags)
    assert listens(host=host, access={"keys": KEYS}, tls=tls)


def test_check_and_serve_refuse_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    refusals = [
        CliRunner().invoke(cli.app, [command, "--host", "0.0.0.0", "--port", "0"]) for command in ("check", "serve")
    ]
    assert [result.exit_code for result in refusals] == [2, 2]
    assert refusals[0].stderr == refusals[1].stderr
    assert "0.0.0.0 is reached from other machines" in refusals[0].stderr


def request(host: str, path: str = "/api/calls", kind: Any = "http", **headers: str) -> Asked:
    return Asked(kind, "GET", path, b"", {"host": host} | headers, (), "127.0.0.1")


def test_a_page_that_gives_its_name_our_address_gets_nothing() -> None:
    """DNS rebinding: to a browser such a page is of our own origin, for its name leads here."""
    gate = gate_of(config(access={"allowed_origins": ["https://calls.example.org"]}))
    for host in (
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[::1",
        "192.0.2.7",
    ):
        for asked in (request(host), request(host, "/v1/stream", "websocket", origin=f"http://{host}")):
            with pytest.raises(AccessError) as caught:
                gate.admit(asked)
            assert caught.value.code in ("bad_host", "bad_origin")
        assert gate.admit(request(host, "/health")).name == "anyone"
        assert gate.admit(request(host, "/twilio", "websocket")).name == "anyone", "tunnels have other names"
    for host in (
        "localhost",
        "LOCALHOST:8765",
        "127.0.0.1:8765",
        "127.0.0.9",
        "[::1]:8765",
        "a.localhost",
        "calls.example.org",
    ):
        assert gate.admit(request(host)).name == "anyone"
    assert gate_of(config(insecure=True)).admit(request("any.example")).name == "anyone"
    shows = {"authorization": f"Bearer {KEY}"}
    assert gate_of(config(access={"keys": KEYS})).admit(request("any.example", **shows)).name == "edge"


@pytest.mark.parametrize(
    ("access", "says"),
    [
        ({"keys": {"edge": {"roles": ["ingest"]}}}, "either sha256 or key_file"),
        ({"keys": {"edge": {"roles": ["ingest"], "sha256": KEY}}}, "64 hexadecimal digits"),
        ({"keys": {"edge": {"roles": [], "sha256": digest(KEY)}}}, "at least 1 item"),
        ({"keys": {"edge": {"roles": ["root"], "sha256": digest(KEY)}}}, "'ingest', 'read', 'admin'"),
        ({"keys": {"a b": {"roles": ["read"], "sha256": digest(KEY)}}}, "pattern"),
        ({"keys": {"edge": {"roles": ["read"], "sha256": digest(KEY), "max_streams": 0}}}, "greater than 0"),
        ({"keys": {"edge": KEY}}, "AccessKeyConfig"),
        ({"token_secret": "too short and secret"}, "at least 32 bytes"),
        ({"allowed_origins": ["*"]}, "pattern"),
        ({"allowed_origins": ["https://a.org/page"]}, "pattern"),
        ({"jwt": {"secret": SECRET}}, "algorithms is missing"),
        ({"jwt": {"algorithms": ["HS256"], "secret": SECRET}}, "audience is missing"),
        ({"jwt": {"algorithms": ["HS256"], "audience": "a"}}, "HS256 and secret belong together"),
        ({"jwt": {"algorithms": ["RS256"], "audience": "a"}}, "public_keys or jwks_file"),
        ({"jwt": {"algorithms": ["none"], "audience": "a"}}, "'HS256', 'RS256' or 'ES256'"),
        ({"jwt": {"algorithms": ["HS256"], "audience": "a", "secret": "too short and secret"}}, "at least 32 bytes"),
        ({"sekret": SECRET}, "access.sekret"),
    ],
)
def test_mistakes_are_told_without_secrets(access: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(access=access)
    message = str(caught.value)
    assert says in message
    assert not any(secret in message for secret in (KEY, SECRET, "too short and secret"))


def test_mistakes_that_only_files_can_have(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"keys": {"edge": {"roles": ["read"], "key_file": tmp_path / "none"}}}, "cannot read the key file"),
        ({"keys": KEYS | {"desk": KEYS["edge"]}}, "access.keys.desk is the same key as access.keys.edge"),
        (
            {"jwt": {"algorithms": ["RS256"], "audience": "a", "public_keys": [tmp_path / "none"]}},
            "cannot read the public key",
        ),
        ({"jwt": {"algorithms": ["RS256"], "audience": "a", "jwks_file": tmp_path / "none"}}, "no JSON Web Key Set"),
    ]
    for access, says in cases:
        with pytest.raises(ConfigError, match=says):
            gate_of(config(access=access))
    with pytest.raises(ConfigError, match="cert and key belong together"):
        config(tls={"cert": tmp_path / "cert.pem"})


def test_what_check_says_of_access(tmp_path: Path) -> None:
    assert described(config()) == OPEN
    path = tmp_path / "key"
    path.write_text(new_key())
    keys = KEYS | {"desk": {"key_file": path, "roles": ["read", "admin"]}}
    tokens = {"algorithms": ["HS256"], "audience": "medusa", "secret": SECRET}
    assert described(config(access={"keys": keys, "jwt": tokens})).splitlines() == [
        "key edge: ingest, read",
        "key desk: read, admin",
        "tokens for medusa: HS256",
    ]


def test_the_key_command_makes_a_key_and_the_lines_for_it() -> None:
    result = CliRunner().invoke(cli.app, ["key", "call-centre.1", "--roles", "ingest, read"])
    assert result.exit_code == 0
    made, _, lines = result.stdout.partition("\n")
    access = config(**tomllib.loads(lines)).access
    (name,) = access.keys
    assert (name, access.keys[name].roles, access.keys[name].sha256) == (
        "call-centre.1",
        ("ingest", "read"),
        digest(made),
    )
    assert made not in lines + result.stderr
    assert CliRunner().invoke(cli.app, ["key", "other"]).stdout.partition("\n")[0] != made
    for arguments in (["a b"], ["edge", "--roles", "root"], ["edge", "--roles", ""]):
        assert CliRunner().invoke(cli.app, ["key", *arguments]).exit_code == 2


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files, other = write_certificate(tmp_path), write_certificate(tmp_path / "other")
    for broken in (CertificateFiles(files.cert, other.key), CertificateFiles(files.key, files.key)):
        with pytest.raises(
            ConfigError, match="cannot use the certificate .* they must be PEM files, of the same key pair"
        ):
            tls_context(broken)
    with pytest.raises(ConfigError, match="cannot use the certificate"):
        tls_context(CertificateFiles(tmp_path / "none", files.key))
    with pytest.raises(ConfigError, match="ended on"):
        tls_context(write_certificate(tmp_path, days=-1))


def test_what_check_says_of_the_certificate(tmp_path: Path) -> None:
    assert certificate_described(write_certificate(tmp_path, days=90.5)).endswith("in 90 days")
    assert certificate_described(write_certificate(tmp_path, days=5.5)).endswith("in 5 days: renew it")


def trusting() -> ssl.SSLContext:
    """A client that takes any certificate: which one it is is looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def name_shown(port: int) -> str:
    """The name in the certificate that a new connection is shown."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        with trusting().wrap_socket(plain) as secure:
            shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return str(x509.load_der_x509_certificate(shown).subject.rfc4514_string())


@asynccontextmanager
async def echoing(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_certificate_that_changes_is_taken_and_open_connections_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_certificate(tmp_path, "first")
    context = tls_context(files)
    renewing = asyncio.create_task(keep_fresh(context, files, every_s=0.02))
    async with echoing(context) as port:
        assert await asyncio.to_thread(name_shown, port) == "CN=first"
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting())
        files.key.write_bytes(b"half a file")
        await until(lambda: "stays in use" in caplog.text)
        assert await asyncio.to_thread(name_shown, port) == "CN=first", "a rotation that is half done changes nothing"
        write_certificate(tmp_path, "second")
        async with asyncio.timeout(10):
            while await asyncio.to_thread(name_shown, port) != "CN=second":
                pass  # every look takes a connection
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()
    renewing.cancel()
    await asyncio.wait({renewing})
    assert renewing.cancelled()


async def test_a_daemon_over_tls(tmp_path: Path) -> None:
    """Streams and pages speak TLS, nothing speaks without it, and versions before 1.2 are refused."""
    files = write_certificate(tmp_path)
    async with serving(tmp_path / "spool", tls=tls_section(files), access={"keys": KEYS}) as served:
        url, trusted = (
            f"wss://localhost:{served.port}/v1/stream?interim_ms=0",
            ssl.create_default_context(cafile=files.cert),
        )
        shows = {"Authorization": f"Bearer {KEY}"}
        async with connect(url, ssl=trusted, additional_headers=shows, origin=None) as stream:
            await stream.send(b"\0" * 3200)
            await stream.send('{"type": "close"}')
            assert [json.loads(message)["type"] async for message in stream] == ["session.created", "session.closed"]
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"alive" not in await reader.read()
        writer.close()
        old = trusting()
        old.set_ciphers("DEFAULT:@SECLEVEL=0")  # else our own side would refuse
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection("127.0.0.1", served.port, ssl=old)


def test_a_subject_of_tokens_has_the_limits_of_tokens() -> None:
    """Also through what was minted for it."""
    tokens = {"algorithms": ["HS256"], "audience": "medusa", "secret": SECRET, "max_streams": 2}
    gate = gate_of(config(access={"jwt": tokens}))
    claims = {"sub": "anna", "aud": "medusa", "exp": time.time() + 60, "roles": ["read"]}
    shows = {"authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}
    anna = gate.admit(request("localhost", **shows))
    minted, _ = gate.mint.issue(anna, "token", anna.roles, 60)
    again = gate.admit(request("localhost", authorization=f"Bearer {minted}"))
    assert (again.name, again.roles, again.limits) == (anna.name, anna.roles, anna.limits)
    assert again.limits.streams == 2


def test_whatever_is_asked_is_answered() -> None:
    """Never a crash: somebody, or an error that says which."""
    tokens = {"algorithms": ["HS256"], "audience": "medusa", "secret": SECRET}
    gate = gate_of(config(access={"keys": KEYS, "jwt": tokens, "failures_per_minute": 10**9}))
    passed = 0

    @settings(max_examples=300, deadline=None, database=None)
    @given(
        path=st.sampled_from(["/api/calls", "/v1/stream", "/whip", "/v1/token", "/", "/twilio"]) | st.text(max_size=20),
        method=st.sampled_from(["GET", "POST", "DELETE", "OPTIONS", ""]),
        kind=st.sampled_from(["http", "websocket"]),
        query=st.binary(max_size=40),
        headers=st.dictionaries(
            st.sampled_from(["authorization", "cookie", "origin", "host", "x-hume-api-key", "sec-fetch-site"]),
            st.text(max_size=60)
            | st.sampled_from([f"Bearer {KEY}", "Bearer a.b.c", "medusa_session=a.b.c", "https://a.org"]),
        ),
        subprotocols=st.lists(st.sampled_from(["bearer", "token", KEY, "", "a.b.c"]), max_size=3),
        address=st.sampled_from(["127.0.0.1", "::1", "fe80::1%eth0", "local", ""]),
    )
    @example("/api/calls", "GET", "http", b"", {"authorization": f"Bearer {KEY}"}, [], "127.0.0.1")
    def ask(
        path: str, method: str, kind: Any, query: bytes, headers: Any, subprotocols: list[str], address: str
    ) -> None:
        nonlocal passed
        with contextlib.suppress(AccessError):
            passed += gate.admit(Asked(kind, method, path, query, headers, subprotocols, address)).name == "edge"

    ask()
    assert passed, "the right key was never asked with"
