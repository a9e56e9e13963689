"""What can go wrong while exporting.

ExportError
|-- DestinationError   the place for the bundle is taken
`-- ParityError        a graph does not compute what its network computes
"""


class ExportError(Exception):
    """Base of every error that exporting raises on purpose."""


class DestinationError(ExportError):
    """The place for the bundle is taken."""


class ParityError(ExportError):
    """A graph does not compute what its network computes; the message names the worst figure."""
