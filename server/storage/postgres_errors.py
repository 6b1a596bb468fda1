"""What PostgreSQL's errors mean for whoever runs the server: each becomes a StorageError with what to do about it."""

from __future__ import annotations

from edge_runtime.errors import StorageError

_FULL = ("53100",)
_NOT_ALLOWED = ("28000", "28P01", "42501", "3D000", "25006")
_FOR_A_WHILE = ("starting up", "shutting down", "recovery", "too many", "terminating")
"""Words of refusals that end by themselves."""


def damaged(place: str, cause: str) -> StorageError:
    """Return the error of a ledger whose content is not what Covey writes."""
    return StorageError(
        f"the ledger {place} is damaged: {cause}", "restore it from a copy (pg_restore), or use another one"
    )


def failed(place: str, error: BaseException | None, verb: str) -> StorageError:
    """Return the error of a statement, or of a connection, that failed.

    Args:
        place: the ledger's address without what is secret.
        error: psycopg's.
        verb: what was to be done with the ledger.
    """
    code, text = _code(error), " ".join(str(error).split())
    what = f"cannot {verb} the ledger {place}: {text}"
    if code in _FULL:
        return StorageError(what, "free some space on the database's machine and start again; nothing was lost")
    if is_refusal(error):
        return StorageError(what, "check user, password (~/.pgpass), name of the database, and its permissions")
    if code is None or code[:2] in ("08", "57"):
        return StorageError(what, "check that the database runs and can be reached; nothing was lost")
    return damaged(place, text)


def is_refusal(error: BaseException | None) -> bool:
    """Whether the database has answered that it does not let this user in; a connection's error has no code."""
    code, text = _code(error), str(error)
    if code is not None:
        return code in _NOT_ALLOWED
    return "FATAL" in text and not any(word in text for word in _FOR_A_WHILE)


def _code(error: BaseException | None) -> str | None:
    """Return PostgreSQL's code of an error; None: the database has not answered."""
    code = getattr(error, "sqlstate", None)
    return None if code is None else str(code)


def cannot_use(place: str, error: Exception) -> StorageError:
    """Return the error of an address that cannot be used here."""
    if isinstance(error, ImportError):
        return StorageError(
            f"the ledger {place} needs psycopg, which is not installed", "pip install 'covey[postgres]'"
        )
    return StorageError(f"{place} is no address of a PostgreSQL database", "postgresql://user@host/database")
