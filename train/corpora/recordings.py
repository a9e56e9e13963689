"""Which files of a corpus' folder are recordings."""

from pathlib import Path
from typing import Final

AUDIO_SUFFIXES: Final = (".opus", ".wav", ".flac", ".mp3", ".mp4", ".m4a", ".ogg")
"""What PyAV decodes and corpora come in; MELD's clips are videos."""

NO_RECORDING: Final = "label without a recording"
"""The reason under which readers count rows whose file is not there."""


def recordings(folder: Path) -> list[Path]:
    """Recordings directly in a folder, in the order of their names; none if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES and path.name[0] != ".")


def recordings_below(folder: Path) -> dict[str, Path]:
    """Recordings anywhere below a folder by their name without suffix."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES)
    return {path.stem: path for path in found if path.name[0] != "."}
