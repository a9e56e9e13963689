"""Who made a bundle: an optional ed25519 signature of SHA256SUMS, which holds the hash of every file.

    SHA256SUMS.sig     the 64 bytes of the signature of SHA256SUMS, as RFC 8032 has them

By hand: `openssl pkeyutl -verify -pubin -inkey KEY.pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig`.

Source: RFC 8032 (EdDSA), RFC 8410 (its keys in PEM).
"""

import base64
import errno
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from model.bundle import SIGNATURE, SUMS, BundleError

_KEY_BYTES: Final = 32
_OWNER_ONLY: Final = 0o600
_ALL_READ: Final = 0o644


class KeyFormatError(ValueError):
    """A key that cannot be read or is of another kind; the message says what would be right."""


class SignatureError(BundleError):
    """A bundle that no trusted key has signed."""


def write_keys(path: Path) -> str:
    """Makes a key pair: the private key to `path`, for its owner's eyes only, the public one to `path`.pub.

    Returns:
        The public key in hexadecimal.

    Raises:
        FileExistsError: if one of the files exists.
        OSError: if they cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    public = _public_file(path)
    if public.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(public))
    _write_new(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), _OWNER_ONLY)
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write_new(public, pem, _ALL_READ)
    return name_of(private.public_key())


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """A private key in PEM without a password, as `write_keys` and `openssl genpkey -algorithm ed25519` write it.

    Raises:
        KeyFormatError: if the file holds no such key.
        OSError: if it cannot be read.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:  # TypeError: there is a password
        raise KeyFormatError(f"{path} is no private key in PEM without a password: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFormatError(f"{path} holds a key of another kind: make an ed25519 key with `medusa-export keygen`")
    return key


def read_public_key(text: str) -> Ed25519PublicKey:
    """A public key: its 32 bytes in hexadecimal or base64, or the path of a PEM file.

    Raises:
        KeyFormatError: if it is none of these.
    """
    raw = _raw(text)
    if raw is not None:
        return Ed25519PublicKey.from_public_bytes(raw)
    try:
        key = load_pem_public_key(Path(text).expanduser().read_bytes())
    except (OSError, RuntimeError) as error:  # RuntimeError: "~name" of nobody
        raise KeyFormatError(
            f"{text!r} is no public key: give 64 hexadecimal digits, 44 characters of base64, or a PEM file ({error})"
        ) from error
    except ValueError as error:
        raise KeyFormatError(f"{text!r} is no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFormatError(f"{text!r} holds a key of another kind: an ed25519 key is needed")
    return key


def name_of(key: Ed25519PublicKey) -> str:
    """A public key in hexadecimal, 64 digits."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def sign(folder: Path, key: Ed25519PrivateKey) -> None:
    """Signs the sums of a bundle; a signature that is there is replaced.

    Raises:
        OSError: if there are no sums, or the signature cannot be written.
    """
    (folder / SIGNATURE).write_bytes(key.sign((folder / SUMS).read_bytes()))


def signed_by(folder: Path, keys: Iterable[Ed25519PublicKey]) -> Ed25519PublicKey | None:
    """Which of `keys` has signed a bundle, None where it is not signed or by another key.

    Raises:
        SignatureError: if the bundle has no sums.
    """
    if not (folder / SUMS).is_file():
        raise SignatureError(f"{folder} is no bundle: it has no {SUMS}")
    if not (folder / SIGNATURE).is_file():
        return None
    sums, signature = (folder / SUMS).read_bytes(), (folder / SIGNATURE).read_bytes()
    for key in keys:
        try:
            key.verify(signature, sums)
        except InvalidSignature:
            continue
        return key
    return None


def require_signature(folder: Path, trusted: Iterable[str]) -> None:
    """Refuses a bundle that none of the trusted keys has signed; without trusted keys everything passes.

    That its files are those of the signed sums is what `read_bundle` checks.

    Args:
        folder: of the bundle.
        trusted: public keys as `read_public_key` takes them.

    Raises:
        KeyFormatError: if one of them is no key.
        SignatureError: if the bundle is unsigned, or signed by another key, or its sums were changed since.
    """
    keys = [read_public_key(text) for text in trusted]
    if not keys or signed_by(folder, keys) is not None:
        return
    named = ", ".join(map(name_of, keys))
    if not (folder / SIGNATURE).is_file():
        raise SignatureError(
            f"{folder} is not signed, and only bundles signed by {named} may be served: sign it with "
            f"`medusa-export sign {folder} --key KEY`, or leave models.trusted_keys empty"
        )
    raise SignatureError(
        f"{folder / SIGNATURE} is no signature of {SUMS} by a trusted key ({named}): the bundle was changed "
        "after it was signed, or signed with another key"
    )


def _raw(text: str) -> bytes | None:
    """The 32 bytes of a key in hexadecimal or base64, None where `text` is neither."""
    for decode in (bytes.fromhex, partial(base64.b64decode, validate=True)):
        try:
            raw = decode(text)
        except ValueError:
            continue
        if len(raw) == _KEY_BYTES:
            return raw
    return None


def _public_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Writes a file that must not exist, and that no other may read in between."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
