"""Every error that a user can cause or cure.

    NightpressError            exit code 1
    ├── SettingsError          2   params.yaml or the command line says something impossible
    ├── SourceError            3   data or a model cannot be fetched or read
    │   └── SourceAway         3   an index or a hub does not answer: a retry may help
    ├── DataRejected           4   the validation gate stopped the night
    ├── TechniqueError         5   a technique refuses, or its training failed
    ├── StoreError             6   a checkpoint is missing, tampered with, or cannot be written
    ├── ClaimLost              6   another worker has taken over this node
    ├── LedgerBroken           6   the promotion ledger was changed behind our back
    ├── PromotionRefused       10  the champion is not what was expected, or a gate says no
    ├── ExportError            7   a model cannot be exported or run in its runtime
    └── ServiceError           8   Prefect, MLflow or DVC cannot be used
        └── ServiceAway        8   it does not answer: a retry may help

A message is one line: what is wrong, where, and the cure. Exit code 9 says that the night ended
but that one or more of its variants failed.
"""


class NightpressError(Exception):
    """Base of all errors that are shown as one line, with no traceback."""

    exit_code = 1


class SettingsError(NightpressError):
    """A setting is unknown, of the wrong type, or impossible."""

    exit_code = 2


class SourceError(NightpressError):
    """A data set or a model cannot be fetched, or cannot be read."""

    exit_code = 3


class SourceAway(SourceError):
    """A package index or a hub does not answer; it may in a moment."""


class DataRejected(NightpressError):
    """The validation gate found data on which nothing should be trained."""

    exit_code = 4


class TechniqueError(NightpressError):
    """A technique refuses a model or its settings, or its training failed."""

    exit_code = 5


class StoreError(NightpressError):
    """A checkpoint is missing, differs from its manifest, or cannot be written."""

    exit_code = 6


class ClaimLost(StoreError):
    """The lease on a node lapsed and another worker has taken the node over."""


class LedgerBroken(StoreError):
    """The promotion ledger is not what was written: an entry was edited, moved, or is gone."""


class PromotionRefused(NightpressError):
    """The champion stays: another got there first, a gate says no, or the model does not answer."""

    exit_code = 10


class ExportError(NightpressError):
    """A model cannot be exported, or its exported form cannot run."""

    exit_code = 7


class ServiceError(NightpressError):
    """Prefect, MLflow or DVC cannot be reached, or refuses."""

    exit_code = 8


class ServiceAway(ServiceError):
    """Prefect, MLflow or a DVC remote does not answer; it may in a moment."""


EXIT_VARIANTS_FAILED = 9
