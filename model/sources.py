"""Where weights come from: a list of sources, tried in order, and checked against a hash.

    package:NAME/PATH     a file or folder inside an installed package (which is not imported)
    path:PATH             a file or folder
    hub:ID or hub:ID@REV  a snapshot of the Hugging Face hub; reached only where a configuration names it
    bundle:PATH           a file inside the bundle itself
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

_BLOCK = 1 << 20


class SourceError(RuntimeError):
    """No source gave the weights; the message lists each source and why it failed."""


def resolve(sources: tuple[str, ...], bundle: Path | None = None) -> Path:
    """The first source that exists.

    Raises:
        SourceError: if none does.
    """
    failures = []
    for source in sources:
        try:
            return _resolve_one(source, bundle)
        except (OSError, ValueError, ImportError) as error:
            failures.append(f"  {source}: {error}")
    raise SourceError("no source has the weights:\n" + ("\n".join(failures) or "  the list of sources is empty"))


def _resolve_one(source: str, bundle: Path | None) -> Path:
    scheme, _, rest = source.partition(":")
    if scheme == "package":
        name, _, inside = rest.partition("/")
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"the package {name!r} is not installed")
        path = Path(spec.origin).parent / inside
    elif scheme == "path":
        path = Path(rest).expanduser()
    elif scheme == "bundle":
        if bundle is None:
            raise ValueError("there is no bundle to look into")
        path = bundle / rest
    elif scheme == "hub":
        from huggingface_hub import snapshot_download  # reached only where a configuration names the hub

        repository, _, revision = rest.partition("@")
        return Path(snapshot_download(repository, revision=revision or None))
    else:
        raise ValueError("a source begins with package:, path:, hub: or bundle:")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
