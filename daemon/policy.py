"""What of a call is analysed, and what of its words leaves the engine: decided here, in one place. Sans-IO.

Audio of a role that is not analysed is dropped before anything looks at it: it is not cut, transcribed or scored. Words are
withheld or redacted behind the models, which need them, and in front of everything else: before there is an event.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from model.transcript import Transcript

Transcripts = Literal["full", "redacted", "off"]

NUMBER: Final = "[number]"
EMAIL: Final = "[email]"

# What a pattern may begin behind keeps it from trying again inside of what it just refused.
_DOMAIN: Final = r"[\w-]+(?:(?:\.|\s+dot\s+)[\w-]+)*(?:\.|\s+dot\s+)[^\W\d_]{2,}"
_EMAIL: Final = re.compile(r"(?<![^\s@,;:<>()\"])[^\s@,;:<>()\"]+\s?@\s?[\w.@-]*\w")
_SPOKEN_EMAIL: Final = re.compile(
    rf"(?<![\w.+-])[\w.+-]+(?:\s+(?:dot|dash|underscore|plus)\s+[\w-]+)*\s+at\s+{_DOMAIN}", re.IGNORECASE
)
_SIGNS: Final = r"(?:(?<![+#$€£¥])[+#$€£¥]+)?"
_FIGURE: Final = r"[A-Za-z]*\d[\dA-Za-z]*"
_FIGURES: Final = re.compile(
    rf"{_SIGNS}(?<![A-Za-z]){_FIGURE}(?:[\s.,:;/\\()\-–+'’*#]{{1,3}}{_FIGURE})*(?:\s?[%€$£¥])?"
)

_ENGLISH: Final = (
    "zero nought oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million double triple "
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth thirtieth"
)
_SPOKEN: Final = {
    "en": _ENGLISH,
    "de": "null eins ein zwei zwo drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "es": "cero uno un dos tres cuatro cinco seis siete ocho nueve diez once doce",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf dix onze douze",
    "it": "zero uno un due tre quattro cinque sei sette otto nove dieci undici dodici",
    "nl": "nul een één twee drie vier vijf zes zeven acht negen tien elf twaalf",
    "pt": "zero um dois duas três quatro cinco seis meia sete oito nove dez onze doze",
}
"""Words for numbers by ISO 639-1 code; in languages that are not here, only figures are found."""


def _run_of(words: str) -> re.Pattern[str]:
    """At least two words for numbers in a row, or one beside a number that was found already."""
    word = rf"(?:{'|'.join(sorted(words.split(), key=len, reverse=True))}|{re.escape(NUMBER)})"
    between = r"(?:[\s,.\-–]+(?:and\s+)?)"
    return re.compile(rf"(?<!\w){word}(?:{between}{word})+(?!\w)", re.IGNORECASE)


_RUNS: Final = {language: _run_of(words) for language, words in _SPOKEN.items()}


def redacted(text: str, language: str) -> str:
    """The text without e-mail addresses and numbers, whatever they are numbers of; names stay, nobody finds those reliably.

    Every figure goes, with the letters that touch it (`4pm`, `AB12CD`). Of numbers in words those go that have at least two
    words, in the languages that are known here: one alone is too often no number (`one of us`, `a second`).

    Args:
        text: what was said.
        language: ISO 639-1 code of it.
    """
    text = _SPOKEN_EMAIL.sub(EMAIL, _EMAIL.sub(EMAIL, text))
    text = _FIGURES.sub(NUMBER, text)
    return _RUNS.get(language, _RUNS["en"]).sub(NUMBER, text)


def shown(transcript: Transcript | None, transcripts: Transcripts) -> Transcript | None:
    """The transcript as it may leave the engine."""
    if transcript is None or transcripts == "full":
        return transcript
    return replace(transcript, text="" if transcripts == "off" else redacted(transcript.text, transcript.language))


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator decided.

    Attributes:
        analyze: roles whose audio is analysed; empty for all.
        transcripts: what of the words leaves the engine.
    """

    analyze: tuple[str, ...] = ()
    transcripts: Transcripts = "full"

    def analyzed(self, roles: Iterable[str]) -> tuple[str, ...]:
        """Those of the roles that are analysed, in their order. A role counts as written: `Agent` is not `agent`."""
        return tuple(role for role in roles if not self.analyze or role in self.analyze)


EVERYTHING: Final = Policy()
