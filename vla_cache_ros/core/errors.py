"""The one root of the project's errors; messages say what was wrong, what is valid, what to do."""

from collections.abc import Iterable


class VlaCacheError(Exception):
    """Root of every error that this project raises on purpose."""


class ObservationError(VlaCacheError):
    """An observation cannot be used: wrong shape, type, encoding, NaN, or a missing camera."""


class InstructionError(ObservationError):
    """The instruction is empty or longer than the model's text span."""


class FrameError(ObservationError):
    """A message from the network is not what its protocol says."""


class ServingError(VlaCacheError):
    """A server cannot do what a client asks for: no session is free, or the policy failed."""


class ConfigError(VlaCacheError):
    """A configuration value is out of its range or contradicts another one."""


class CheckpointError(VlaCacheError):
    """A checkpoint is missing, truncated, or does not fit the architecture."""


class EngineError(VlaCacheError):
    """An engine is missing, damaged, or was built for something else than what is to run."""


class DatasetError(VlaCacheError):
    """A demonstration dataset is missing, truncated, or not in the expected layout."""


class RecordingError(VlaCacheError):
    """A recording cannot be written or read."""


class CameraError(VlaCacheError):
    """A camera, video file or image folder cannot be opened or has stopped giving frames."""


class PictureError(CameraError):
    """One picture of a source is damaged; the next one may not be."""


class RobotError(VlaCacheError):
    """A robot's description or state cannot be used: no such joint or link, out of reach."""


class SimulatorError(VlaCacheError):
    """A simulator failed or is not installed. Never to be counted as a policy's failure."""


class EvaluationError(VlaCacheError):
    """An evaluation stopped; the episodes that it had finished are stored."""


class UnknownNameError(ConfigError):
    """A name (task, suite, camera, preset, backend) is not among the valid ones."""

    def __init__(self, kind: str, name: object, valid: Iterable[object], hint: str = '') -> None:
        """Build the message from what was asked for and what would have been valid.

        Args:
            kind: What the name stands for, e.g. 'suite'.
            name: The name that was given.
            valid: The names that would have been accepted.
            hint: What to do, appended to the message.
        """
        choices = ', '.join(str(choice) for choice in valid)
        super().__init__(f'unknown {kind} {name!r}; valid: {choices}.{" " + hint if hint else ""}')
