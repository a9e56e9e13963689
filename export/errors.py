"""What can go wrong while exporting.

ExportError
|-- DestinationError   the place for what is written is taken
|-- KeyFileError       a key for signing cannot be read or written
|-- PrecisionError     (export/precision.py) a precision that is not known, or not to be had for a part
`-- ParityError        a graph does not compute what its network computes
"""


class ExportError(Exception):
    """Base of every error that exporting raises on purpose."""


class DestinationError(ExportError):
    """The place for what is written is taken."""


class KeyFileError(ExportError):
    """A key for signing cannot be read or written."""


class ParityError(ExportError):
    """A graph does not compute what its network computes; the message names the worst figure."""
