"""What can go wrong while exporting.

    ExportError
    `-- ParityError    an exported graph does not compute what its network computes: no bundle is written
"""


class ExportError(Exception):
    """Base of every error that export raises on purpose."""


class ParityError(ExportError):
    """An exported graph does not compute what its network computes."""
