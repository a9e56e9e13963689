"""Anyone's own data: one table, CSV or JSONL, a row per recording.

Layout: `labels.csv` or `labels.jsonl` in the corpus' folder. Columns, names in any case:

- `audio`: the file, relative to the folder. `speaker`: a name, or "unknown" for a voice that nobody named.
- what was heard: `label`, one emotion; or one column per class (`angry`, `sad`, ...) and optionally `other`, with the number of
  annotators (or their share) who heard it; or both, `label` being what they agreed on, empty where they did not. Without
  that column they agreed on the class that has most votes, if one has.
- nothing of what was heard, for calls that nobody has labelled: adaptation reads such rows, training leaves them out.
- optional: `id`, `arousal`, `valence`, `dominance` (on the scale that the options declare), `split` (train, dev, test),
  `transcript`, `language`, `gender` (female, male), `session` (the call or recording that the clip was cut from).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from model.labels import ATTRIBUTES, CLASSES
from train.corpora.label_maps import LABEL_MAPS, Dropped
from train.corpora.options import CorpusOptions
from train.corpora.tables import GENDERS, SPLITS, Problems, Row, read_csv, read_jsonl
from train.errors import CorpusError, RecipeError
from train.manifest import Clip, Manifest, dominant, rescale, unknown_speaker

_NAMES: Final = ("labels.csv", "labels.jsonl")
_COLUMNS: Final = ("audio", "speaker")
_DROPPED_BY_RECIPE: Final = Dropped("the recipe's label_map drops it")
_NOTHING: Final = ("no label and no votes", "votes only for other emotions")
_NO_SCALE: Final = (1.0, 7.0)


def read_table(root: Path, options: CorpusOptions, *, unlabelled: bool = False) -> Manifest:
    """Reads a corpus from its table.

    Args:
        root: the folder; its name is the corpus' name.
        options: `labels`, `scale`, `label_map`, `language`.
        unlabelled: keep rows that say nothing of emotion: clips without votes, which cannot be a training target.

    Raises:
        CorpusError: if the table is missing or says nothing of emotion, or rows are wrong: all are named, with file, line,
            column and value.
        RecipeError: if the table rates attributes and the options declare no scale.
    """
    path = _table(root, options)
    problems = Problems()
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    clips: dict[str, Clip] = {}
    for row in _rows(path, problems):
        _check_columns(row, options, unlabelled)
        votes, other, consensus, reason = _heard(row, options)
        clip = _clip(row, root, options, votes, other, consensus)
        if clip.id in clips:
            row.wrong("id" if row.get("id") else "audio", "listed once")
        elif reason and not unlabelled:
            dropped[reason] += 1
        else:
            clips[clip.id] = clip
            notes["clip of an unknown speaker"] += not clip.speaker_known
            notes["clip without agreement (XO)"] += consensus is None and not reason
            notes["clip without a label"] += bool(reason)
    problems.refuse()
    if not clips:
        raise CorpusError(f"{path} labels no recording; left out: {dict(dropped)}")
    return Manifest(tuple(clips[name] for name in sorted(clips)), dict(dropped), dict(+notes))


def _table(root: Path, options: CorpusOptions) -> Path:
    names = (options.labels,) if options.labels else _NAMES
    for name in names:
        if (root / name).is_file():
            return root / name
    raise CorpusError(f"{root} holds no table of labels: expected {' or '.join(names)}")


def _rows(path: Path, problems: Problems) -> Iterator[Row]:
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return read_jsonl(path, _COLUMNS, problems)
    return read_csv(path, _COLUMNS, problems, lower=True)


def _check_columns(row: Row, options: CorpusOptions, unlabelled: bool) -> None:
    if options.scale is None and any(row.get(name) for name in ATTRIBUTES):
        raise RecipeError(f"{row.path} rates {', '.join(ATTRIBUTES)}: declare the scale, such as scale = [1, 5]")
    if not unlabelled and "label" not in row.values and not any(name in row.values for name in CLASSES):
        raise CorpusError(
            f"{row.path}:{row.line}: says nothing of emotion: give a column label, or one a class "
            f"({', '.join(CLASSES)}) with votes; it has {list(row.values)}"
        )


def _heard(row: Row, options: CorpusOptions) -> tuple[tuple[float, ...], float, str | None, str]:
    """Votes per class and for anything else, the agreed class, and why the row is left out ("" where it is not)."""
    votes = np.nan_to_num([row.number(name, 0.0) for name in CLASSES])
    other = float(np.nan_to_num(row.number("other", 0.0)))
    consensus, reason = _label(row, options)
    if not votes.any():
        if consensus is None:
            return tuple(votes), other, None, reason or _NOTHING[other > 0]
        votes = np.array([float(consensus == name) for name in CLASSES])
    elif "label" not in row.values:
        best = dominant(np.append(votes, other))
        consensus = CLASSES[best] if best is not None and best < len(CLASSES) else None
    return tuple(votes.tolist()), other, consensus, ""


def _label(row: Row, options: CorpusOptions) -> tuple[str | None, str]:
    label = row.get("label")
    if not label:
        return None, ""
    own = {name.lower(): found or _DROPPED_BY_RECIPE for name, found in options.label_map.items()}
    known = {**LABEL_MAPS["table"], **own}
    found = known.get(label.lower())
    if found is None:
        row.wrong("label", f"one of {', '.join(known)} (or name it in label_map)")
        return None, ""
    if isinstance(found, Dropped):
        return None, f"label {label.lower()}: {found.reason}"
    return found, ""


def _clip(
    row: Row, root: Path, options: CorpusOptions, votes: tuple[float, ...], other: float, consensus: str | None
) -> Clip:
    audio, speaker, session = row.required("audio"), row.required("speaker"), row.get("session")
    if audio and not (root / audio).is_file():
        row.wrong("audio", f"a file in {root}")
    name = row.get("id") or Path(audio).with_suffix("").as_posix()
    known = speaker.lower() != "unknown"
    low, high = options.scale or _NO_SCALE
    arousal, valence, dominance = (rescale(row.number(column, low, high), low, high) for column in ATTRIBUTES)
    return Clip(
        id=name,
        corpus=root.name,
        audio=root / audio,
        speaker=f"{root.name}-{speaker}" if known else unknown_speaker(root.name, session or name),
        speaker_known=known,
        votes=votes,
        other_votes=other,
        consensus=consensus,
        attributes=(arousal, valence, dominance),
        gender=row.choice("gender", GENDERS),
        language=row.get("language") or options.language,
        split=row.choice("split", SPLITS) if row.get("split") else "",
        transcript=row.get("transcript") or None,
        session=session,
    )
