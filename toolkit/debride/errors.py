"""Every way debride can fail: one base class, one class per way.

A message names the file (or node, or flag) at fault and the mend; the command line prints it and exits with
`exit_code`.
"""


class DebrideError(Exception):
    """Base of all errors that debride raises on purpose."""

    exit_code = 3


class UsageError(DebrideError):
    """The call itself is wrong: flags that contradict each other, an output that exists."""

    exit_code = 2


class ModelError(DebrideError):
    """The model file cannot be read, breaks a limit or is no image classifier."""


class UnsupportedOpError(ModelError):
    """The graph holds an operator that the proxy has no exact implementation of."""


class ImagesError(DebrideError):
    """The clean images cannot be read or do not fit the model."""


class SpecError(DebrideError):
    """The input convention (layout, range, mean, std) is contradictory or unknown."""


class ParityError(DebrideError):
    """The differentiable proxy and onnxruntime disagree: nothing computed with it can be trusted."""


class SurgeryError(DebrideError):
    """A graph could not be cut as planned, or the cut graph failed its checks."""


class RuntimeMissingError(DebrideError):
    """No onnxruntime, or none of the execution providers asked for, is installed."""


class ReportError(DebrideError):
    """A report, trigger or side-car file cannot be read or has another schema version."""
