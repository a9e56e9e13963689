"""What can go wrong while training.

TrainError
|-- RecipeError    the recipe or the command line asks for something that cannot be
|-- CorpusError    the data folder is not what its corpus should be
|-- DeviceError    the device refuses what it is given: it has no memory left, above all
|-- LeakageError   a speaker stands on both sides of a split
|-- RunError       a run's folder lacks what a stage reads
`-- ReportError    a run's folder holds no results that this version can show
"""


class TrainError(Exception):
    """Base of every error that training raises on purpose."""


class RecipeError(TrainError):
    """The recipe asks for something that cannot be."""


class CorpusError(TrainError):
    """The data folder is not what its corpus should be."""


class DeviceError(TrainError):
    """The device refuses what it is given."""


class LeakageError(TrainError):
    """A speaker stands on both sides of a split."""


class ReportError(TrainError):
    """A run's folder holds no results that this version can show."""


class RunError(TrainError):
    """The run's folder lacks what a stage reads; the message names it and the command that makes it."""
