"""The exception tree: everything that soundstage raises on purpose.

    SoundstageError
    ├── RequestError (ValueError)    what the user asked for cannot be done
    ├── ConfigError (ValueError)     a configuration or recipe is malformed
    ├── CheckpointError              a weight file is missing, damaged or of another kind
    ├── MediaError                   a media file cannot be read or written
    ├── ResourceError                memory, disk or a device does not suffice
    └── Cancelled                    the user stopped the work; nothing is left behind

A message names what was given, what is allowed and the nearest right value.
"""


class SoundstageError(Exception):
    """Root of all errors raised on purpose; the CLI prints it as one line."""


class RequestError(SoundstageError, ValueError):
    """The request asks for something that is not allowed."""


class ConfigError(SoundstageError, ValueError):
    """A configuration value or key is wrong."""


class CheckpointError(SoundstageError):
    """A weight file is missing, damaged, incomplete or of the wrong kind."""


class MediaError(SoundstageError):
    """A media file cannot be read or written."""


class ResourceError(SoundstageError):
    """Memory, disk space or a device does not suffice."""


class Cancelled(SoundstageError):  # noqa: N818  it is a request, not a failure
    """The user stopped the work."""
