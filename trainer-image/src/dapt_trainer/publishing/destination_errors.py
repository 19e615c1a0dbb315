"""Tells whose fault a failed request to a destination is: the user's, who corrects it, or the network's, which passes.

Object stores and the hub raise exceptions of many libraries. Those are known by their standard bases (OSError), by the
status of an HTTP answer, and else by the names of their classes, so that no library needs to be imported for it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from dapt_trainer.data.input_problems import first_line
from dapt_trainer.errors import InfrastructureError, InputError, StageError

FIELD: Final = "output.destination"
_PASSING_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
_PASSING_NAMES = (
    "Timeout",
    "ConnectionError",
    "ConnectError",
    "EndpointConnection",
    "ProtocolError",
    "HTTPClientError",
)
_PASSING_STATUSES = (408, 429)
_SERVER_ERRORS = 500


def stage_error(place: str, action: str, error: BaseException) -> StageError | None:
    """Return the error of the stage for what a library has raised; None for a fault of this program.

    Args:
        place: field and URI.
        action: completes "cannot be ...": read, written.
        error: of the library.
    """
    reason = f"{type(error).__name__}: {first_line(error)}"
    if _passes(error):
        return InfrastructureError(f"{place} cannot be {action} ({reason})")
    if type(error).__module__ == "builtins" and not isinstance(error, OSError):
        return None
    return InputError(
        f"{place} cannot be {action} ({reason}); check that the place exists and that the credentials of use `write` "
        "may write there"
    )


def _passes(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status in _PASSING_STATUSES or status >= _SERVER_ERRORS
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    names = [base.__name__ for base in type(error).__mro__]
    if any(part in name for name in names for part in _PASSING_NAMES):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNOS


@contextlib.contextmanager
def errors_as_sentences(uri: str, action: str) -> Iterator[None]:
    """Turn what a library raises in the block into an error of the stage; `action` completes 'cannot be ...'."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:  # every store raises exceptions of its own
        failure = stage_error(f"{FIELD} {uri}", action, error)
        if failure is None:
            raise
        raise failure from error
