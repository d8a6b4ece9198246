"""Errors that name the offending object, its shape and the remedy.

Everything featalign raises on bad input derives from `FeatalignError`, itself a `ValueError`; the command line prints
the message in one line and exits with status 2.
"""


class FeatalignError(ValueError):
    """Base of every error raised on bad input."""


class UnknownName(FeatalignError):
    """A name that no registry knows; the message lists the choices."""


class SpaceMismatch(FeatalignError):
    """Spaces of two clients (or a space and a tensor) whose sizes do not allow the operation."""


class ArchitectureMismatch(FeatalignError):
    """Clients that do not share one architecture."""


class NotFinite(FeatalignError):
    """NaN or infinity in weights, activations, costs or masses."""


class ProbeError(FeatalignError):
    """A probe set that is empty, too small or of the wrong shape."""


class TaskError(FeatalignError):
    """Outputs, targets or metrics that do not fit the task; the message says which task would."""


class DataUnavailable(FeatalignError):
    """A data set that could not be had; the message says what was tried and how to proceed."""


class CorruptFile(FeatalignError):
    """A file that is missing, truncated, fails its checksum or has the wrong format."""


class StorageError(FeatalignError):
    """A file or folder that cannot be written: no space, no permission, an impossible path."""


class FolderInUse(StorageError):
    """An output folder that another running process is writing."""


class FolderExists(FeatalignError):
    """An output folder that exists already."""


class BadOption(FeatalignError):
    """An option outside its range."""


class TransportError(FeatalignError):
    """A transport problem that is ill-posed or that a solver could not solve; never a silent zero plan."""


class InfeasibleError(TransportError):
    """Masses and mask that no coupling satisfies."""


class TraceError(FeatalignError):
    """A module whose spaces could not be traced; the message names the node and the way out."""


class DictionaryError(FeatalignError):
    """A dictionary that does not fit its space, or data that cannot support one."""
