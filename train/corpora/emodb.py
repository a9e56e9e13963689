"""EMO-DB: ten German actors, ten sentences, seven emotions; what the actor was asked for is the label.

Source: Burkhardt et al. (2005), "A Database of German Emotional Speech", doi:10.21437/Interspeech.2005-446.

Layout: `03a01Fa.wav` in the folder or in `wav/`: speaker 03, sentence a01, emotion F, version a. Recordings that listeners
recognised badly were left out by the publishers, so the intended emotion is also what was heard.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Final

from model.labels import CLASSES
from train.corpora.label_maps import LABEL_MAPS, canonical, why_dropped
from train.corpora.recordings import recordings
from train.errors import CorpusError
from train.manifest import Clip, Manifest

_NAME: Final = re.compile(r"(\d\d)([ab]\d\d)([A-Z])([a-z]?)")
_WOMEN: Final = frozenset({"08", "09", "13", "14", "16"})
_MEN: Final = frozenset({"03", "10", "11", "12", "15"})
_SENTENCES: Final = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def read_emodb(root: Path) -> Manifest:
    """Reads the corpus from its folder.

    Raises:
        CorpusError: if the folder holds no clip, or a clip has an emotion that the corpus does not have.
    """
    clips: list[Clip] = []
    dropped: Counter[str] = Counter()
    for path in recordings(root / "wav" if (root / "wav").is_dir() else root):
        match = _NAME.fullmatch(path.stem)
        if not match:
            dropped["not named as a clip"] += 1
            continue
        speaker, sentence, letter, _ = match.groups()
        if letter not in LABEL_MAPS["emodb"]:
            raise CorpusError(f"{path}: the emotion must be one of {' '.join(LABEL_MAPS['emodb'])}, got {letter!r}")
        name = canonical("emodb", letter)
        if name is None:
            dropped[f"label {letter}: {why_dropped('emodb', letter)}"] += 1
            continue
        clips.append(
            Clip(
                id=path.stem,
                corpus="emodb",
                audio=path,
                speaker=f"emodb-{speaker}",
                votes=tuple(float(name == other) for other in CLASSES),
                intended=name,
                gender="female" if speaker in _WOMEN else "male" if speaker in _MEN else "",
                language="de",
                transcript=_SENTENCES.get(sentence),
            )
        )
    if not clips:
        raise CorpusError(f"{root} holds no EMO-DB clip: expected files such as wav/03a01Fa.wav")
    return Manifest(tuple(clips), dict(dropped))
