"""Errors that a user can act on."""


class UserError(Exception):
    """A mistake of the user that one sentence explains; the scripts print it without a traceback."""


class DomainError(ValueError):
    """A domain that cannot be used as it is; the message says what was found and what was expected."""


class SourceError(ValueError):
    """A data set that is not laid out as its authors ship it; the message names what was found and expected."""


class ArchiveError(ValueError):
    """An archive that is damaged or not to be trusted; the message names it and the member."""


class DetectorError(RuntimeError):
    """A face detector that cannot be set up; the message says what to do."""


class WorkError(RuntimeError):
    """Work that cannot go on; the message says why and what to do."""
