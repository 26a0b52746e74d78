"""The errors that undiffuse raises for trouble that a user can mend.

Wrong arguments are plain `ValueError` / `TypeError`. Everything here says what was given, what was
expected and what to do; the command prints it as one line.
"""


class UndiffuseError(Exception):
    """Base of all errors below."""


class CheckpointError(UndiffuseError):
    """A model or checkpoint on disk is missing, damaged, of another shape, or of a newer schema."""


class DataError(UndiffuseError):
    """The data set cannot be read or does not fit the model."""


class PlanError(UndiffuseError):
    """A solver, grid and process cannot be combined as asked."""


class ConfigError(UndiffuseError):
    """A recipe or option is unknown, of the wrong type, or out of range."""


class TrainingError(UndiffuseError):
    """A training run cannot start or cannot go on."""


class NotFiniteError(UndiffuseError):
    """Samples are not finite, or tokens beyond the vocabulary: the network's output overflowed."""


class PeerError(TrainingError):
    """Another process of the same command failed.

    Args:
        message: For people.
        told: Whether that process says why, so that this one need not speak.
    """

    def __init__(self, message: str, told: bool = True) -> None:
        super().__init__(message)
        self.told = told
