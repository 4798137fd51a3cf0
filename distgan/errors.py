"""What can go wrong for a user, by exit code. A message says what, where, and the way out."""


class DistganError(Exception):
    """Base of the errors whose message is enough: the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(DistganError):
    """A config, command line or batch plan that cannot run. Raised before a process group or GPU is touched."""

    exit_code = 2


class DataError(DistganError):
    """Shards, indexes or images that cannot be used as asked."""

    exit_code = 3


class DivergedError(DistganError):
    """Training produced a value that is not finite."""

    exit_code = 4


class MachineError(DistganError):
    """The machine is in the way: disk full, a folder in use, ranks that are not what the launcher promised."""

    exit_code = 5
