"""What a worker says about its models, so that a gateway can answer its clients without having them."""

import json
from dataclasses import asdict, dataclass

from daemon.fleet.wire import WireError


@dataclass(frozen=True, slots=True)
class Card:
    """The models of a bundle, as far as a gateway must know them.

    Attributes:
        languages: ISO 639-1 codes that a stream may ask for.
    """

    languages: tuple[str, ...]


def write_card(card: Card) -> bytes:
    """As it is kept in Redis."""
    return json.dumps(asdict(card)).encode()


def read_card(data: bytes) -> Card:
    """What was written; fields of a later version are left out.

    Raises:
        WireError: if it is no card.
    """
    try:
        match json.loads(data):
            case {"languages": [*languages]} if all(isinstance(code, str) for code in languages):
                return Card(tuple(languages))
    except ValueError as error:
        raise WireError(f"a worker's card is JSON: {error}") from error
    raise WireError('a worker\'s card is an object with "languages", a list of text')
