"""How a session with PostgreSQL is set up: after which time without an answer either side takes the other for lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection

GONE_S = 15
"""Seconds after which either side takes a connection without an answer for lost, and a database for one that hangs."""
ANSWER_S = 60.0
"""Seconds after which a connection is given up on which a statement has had no answer."""
BEAT_S = 5.0
"""Seconds between two statements that a server with nothing to do sends, to see whether it still has the ledger."""
_CONNECT_S = 10
_STATEMENT_S = 45
"""Seconds that PostgreSQL spends on a statement of a server; less than ANSWER_S, so that it is the one to end it."""
_IDLE_S = 30
"""Seconds after which PostgreSQL ends the session of a server that sends nothing: several beats."""
_BETWEEN_S = 60
"""The same between two statements of a transaction, in which nothing is computed for long."""
_IDLE_SINCE = 140000
"""The first version of PostgreSQL that ends idle sessions."""

CONNECT_ARGS = {
    "application_name": "covey",
    "connect_timeout": _CONNECT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 4,
    "tcp_user_timeout": 1000 * GONE_S,
}


def prepare(connection: Any) -> None:  # noqa: ANN401 psycopg's connection
    """Let the server side notice a lost client as soon as the client side does, and read sums as numbers."""
    from psycopg.adapt import Loader  # noqa: PLC0415 only where there is such a ledger

    class Number(Loader):
        """PostgreSQL's sums and means: int, or float where there is a fraction."""

        def load(self, data: bytes | bytearray | memoryview) -> int | float:
            text = bytes(data).decode()
            return int(text) if text.lstrip("-").isdigit() else float(text)

    connection.adapters.register_loader("numeric", Number)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name, value in (
            ("tcp_keepalives_idle", "5"),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "4"),
            ("tcp_user_timeout", f"{1000 * GONE_S}"),
        ):
            cursor.execute(f"SET {name} = {value}")
    connection.autocommit = False


def guard(connection: Connection) -> None:
    """Let PostgreSQL end the session, and with it the lock, of a server that is gone or cut off, unseen by TCP.

    Not before an upgrade, which may take as long as it takes.

    Args:
        connection: that of the server that has the ledger alone, in autocommit mode.
    """
    limits = {"statement_timeout": _STATEMENT_S, "idle_in_transaction_session_timeout": _BETWEEN_S}
    if int(connection.exec_driver_sql("SHOW server_version_num").scalar_one()) >= _IDLE_SINCE:
        limits["idle_session_timeout"] = _IDLE_S
    for name, seconds in limits.items():
        connection.exec_driver_sql(f"SET {name} = '{seconds}s'")
