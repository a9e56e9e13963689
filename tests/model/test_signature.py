import json
import shutil
import stat
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from export.cli import app
from model.bundle import read_bundle, write_manifest
from model.signature import (
    KeyFormatError,
    SignatureError,
    name_of,
    read_private_key,
    read_public_key,
    require_signature,
    sign,
    write_keys,
)
from tests.model.tiny import tiny_bundle

RFC_8032_PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""Test 1 of RFC 8032, section 7.1, and its signature of no bytes at all."""
RFC_8032_SIGNATURE = (
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_keys(tmp_path / "bundles.key")
    return tmp_path / "bundles.key"


@pytest.fixture
def signed(tmp_path: Path, key: Path) -> Path:
    folder = Path(shutil.copytree(tiny_bundle().bundle, tmp_path / "bundle"))
    sign(folder, read_private_key(key))
    return folder


def public(key: Path) -> str:
    return name_of(read_private_key(key).public_key())


def refusal(folder: Path, *trusted: str) -> str:
    with pytest.raises(SignatureError) as caught:
        require_signature(folder, trusted)
    return str(caught.value)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_signed_bundle_is_taken_with_any_form_of_its_key(signed: Path, key: Path) -> None:
    raw = bytes.fromhex(public(key))
    encoded = b64encode(raw).decode()
    other = "ab" * 32
    for trusted in (public(key), public(key).upper(), encoded, f"{key}.pub"):
        require_signature(signed, [trusted])
        require_signature(signed, [other, trusted])
    require_signature(signed, [])
    assert read_bundle(signed).manifest == read_bundle(tiny_bundle().bundle).manifest


def test_a_key_of_others_is_not_enough(signed: Path, tmp_path: Path) -> None:
    other = write_keys(tmp_path / "other.key")
    assert f"by a trusted key ({other})" in refusal(signed, other)


def test_an_unsigned_bundle_is_refused_with_the_way_forward(key: Path) -> None:
    folder = tiny_bundle().bundle
    require_signature(folder, [])
    reason = refusal(folder, public(key))
    assert f"{folder} is not signed" in reason
    assert f"medusa-export sign {folder} --key KEY" in reason


def reseal(folder: Path) -> None:
    """What anyone can do: new hashes and sums over a changed manifest, and the old signature beside them."""
    signature = (folder / "SHA256SUMS.sig").read_bytes()
    data = json.loads((folder / "manifest.json").read_text())
    manifest = read_bundle(folder).manifest
    write_manifest(folder, type(manifest).from_dict({**data, "abstain_below": 0.0}))
    (folder / "SHA256SUMS.sig").write_bytes(signature)


@pytest.mark.parametrize(
    "change",
    [
        reseal,
        lambda folder: (folder / "SHA256SUMS.sig").write_bytes(b""),
        lambda folder: (folder / "SHA256SUMS.sig").write_bytes(bytes(64)),
        lambda folder: (folder / "SHA256SUMS.sig").write_bytes((folder / "SHA256SUMS.sig").read_bytes()[:-1]),
        lambda folder: (folder / "SHA256SUMS").write_bytes((folder / "SHA256SUMS").read_bytes() + b"\n"),
    ],
)
def test_what_was_changed_after_signing_is_refused(signed: Path, key: Path, change: Callable[[Path], object]) -> None:
    change(signed)
    assert "the bundle was changed after it was signed, or signed with another key" in refusal(signed, public(key))


def test_every_flipped_bit_of_a_signature_is_refused(signed: Path, key: Path) -> None:
    signature = (signed / "SHA256SUMS.sig").read_bytes()
    for bit in range(0, 8 * len(signature), 7):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        (signed / "SHA256SUMS.sig").write_bytes(flipped)
        refusal(signed, public(key))


def test_a_folder_without_sums_is_no_bundle(tmp_path: Path, key: Path) -> None:
    assert "is no bundle: it has no SHA256SUMS" in refusal(tmp_path / "absent", public(key))


def test_the_signature_is_that_of_the_standard(tmp_path: Path) -> None:
    """64 bytes, and nothing hashed or framed before: what any program of ed25519 checks."""
    (tmp_path / "SHA256SUMS").write_bytes(b"")
    (tmp_path / "SHA256SUMS.sig").write_bytes(bytes.fromhex(RFC_8032_SIGNATURE))
    require_signature(tmp_path, [RFC_8032_PUBLIC])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to check the signature with")
def test_openssl_checks_what_docs_say(signed: Path, key: Path) -> None:
    """With the command of docs/bundle.md; and a key that openssl made signs."""
    page = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")
    command = "openssl pkeyutl -verify -pubin -inkey KEY.pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig"
    assert command in page
    words = command.replace("KEY.pub", f"{key}.pub").split()
    subprocess.run(words, cwd=signed, check=True, capture_output=True)
    (signed / "SHA256SUMS").write_bytes(b"other")
    assert subprocess.run(words, cwd=signed, check=False, capture_output=True).returncode == 1
    theirs = key.with_name("openssl.key")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", theirs], check=True, capture_output=True)
    sign(signed, read_private_key(theirs))
    require_signature(signed, [public(theirs)])


def test_a_private_key_is_for_its_owner_alone(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE KEY" in key.read_bytes()
    assert b"PRIVATE" not in Path(f"{key}.pub").read_bytes()


@pytest.mark.parametrize("taken", ["bundles.key", "bundles.key.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    result = run("keygen", tmp_path / "bundles.key")
    assert result.exit_code == 2
    assert f"{tmp_path / taken}existsalready" in "".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


def test_the_commands_make_a_key_and_sign(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle().bundle, tmp_path / "bundle"))
    made = run("keygen", tmp_path / "a.key")
    assert made.exit_code == 0, made.output
    done = run("sign", folder, "--key", tmp_path / "a.key")
    assert done.exit_code == 0, done.output
    assert made.stdout.strip() in done.output
    require_signature(folder, [made.stdout.strip()])


def test_bundle_signs_what_it_exports(tmp_path: Path, key: Path) -> None:
    """And writes it for Triton, of the same files."""
    done = run(*("bundle", tiny_bundle().checkpoint, tmp_path / "out", "--sign", key, "--triton", tmp_path / "triton"))
    assert done.exit_code == 0, done.output
    require_signature(tmp_path / "out", [public(key)])
    assert read_bundle(tmp_path / "out").id == read_bundle(tiny_bundle().bundle).id
    assert (tmp_path / "triton" / "tiny_ensemble" / "config.pbtxt").is_file()


def test_a_damaged_bundle_is_not_signed(tmp_path: Path, key: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle().bundle, tmp_path / "bundle"))
    (folder / "meta.onnx").write_bytes(b"")
    result = run("sign", folder, "--key", key)
    assert result.exit_code == 2
    assert "meta.onnxisdamaged" in "".join(result.stderr.split())
    assert not (folder / "SHA256SUMS.sig").exists()


@pytest.mark.parametrize("command", ["sign", "bundle"])
@pytest.mark.parametrize(
    ("text", "says"), [("", "is no private key in PEM"), (None, "cannot be read"), ("public", "is no private key")]
)
def test_what_is_no_key_signs_nothing(tmp_path: Path, key: Path, command: str, text: str | None, says: str) -> None:
    """Told before an export is begun."""
    file = tmp_path / "wrong.key"
    if text is not None:
        file.write_text(Path(f"{key}.pub").read_text() if text == "public" else text)
    arguments: list[str | Path] = ["sign", tiny_bundle().bundle, "--key"]
    if command == "bundle":
        arguments = ["bundle", tiny_bundle().checkpoint, tmp_path / "out", "--sign"]
    result = run(*arguments, file)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
    assert not (tiny_bundle().bundle / "SHA256SUMS.sig").exists()


def test_keys_of_another_kind_are_named(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "ec.key").write_bytes(pem)
    (tmp_path / "ec.pub").write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyFormatError, match="a key of another kind: make an ed25519 key"):
        read_private_key(tmp_path / "ec.key")
    with pytest.raises(KeyFormatError, match="a key of another kind: an ed25519 key is needed"):
        read_public_key(str(tmp_path / "ec.pub"))
    with pytest.raises(KeyFormatError, match="is no public key in PEM"):
        read_public_key(str(tmp_path / "ec.key"))


@given(st.text(max_size=90) | st.sampled_from(["~nobody-of-that-name/key", "\0", "/", "ab" * 31, "ab" * 33]))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(KeyFormatError, match="is no public key"):
        read_public_key(text)


@given(st.binary(min_size=32, max_size=32))
def test_any_32_bytes_name_a_key(raw: bytes) -> None:
    """In hexadecimal and in base64; which of them sign is another question."""
    assert name_of(read_public_key(raw.hex())) == name_of(read_public_key(b64encode(raw).decode())) == raw.hex()


@pytest.mark.parametrize("command", ["keygen", "sign", "triton", "schema"])
def test_help_shows_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: medusa-export {command}" in result.output
