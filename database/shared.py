"""What both contexts share: checks and defaults for the engine, the set-up of each database, and the session class."""

import asyncio
import re
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from sqlite3 import OperationalError
from threading import Lock, get_ident
from time import monotonic
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, ExceptionContext, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, InvalidRequestError
from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import InsertmanyvaluesSentinelOpts

# For each database: its sync driver, its async driver, and the extra of pyproject.toml that brings both.
DRIVERS = {
    "sqlite": ("sqlite", "sqlite+aiosqlite", None),
    "postgresql": ("postgresql+psycopg", "postgresql+asyncpg", "postgres"),
    "mysql": ("mysql+pymysql", "mysql+aiomysql", "mysql"),
    "mariadb": ("mariadb+pymysql", "mariadb+aiomysql", "mysql"),
}

# "Try again": PostgreSQL's serialization failure and deadlock, MySQL's deadlock, lock wait timeout and changed row.
CONFLICTS = frozenset({"40001", "40P01", 1213, 1205, 1020})

IN_USE = (
    "This transaction has ended, or another task, thread or inner transaction is using it: "
    "each task and thread needs a transaction of its own."
)

# What a server's own message repeats: PostgreSQL's DETAIL line; MySQL's duplicate, the last but one thing in quotes.
VALUES = re.compile(r"\nDETAIL:.*|'.*'(?=[^']*'[^']*'[^']*$)", re.DOTALL)


def check_url(url: str | URL, *, is_async: bool) -> URL:
    """Return the parsed URL, which no message repeats: it holds a password.

    Raises ArgumentError if it is none or names a driver of the other kind, ModuleNotFoundError for a missing driver.
    """
    try:
        url = make_url(url)
        dialect = url.get_dialect()
        if "@" in (url.host or ""):  # the end of a password with an @ in it
            raise ArgumentError
    except (ArgumentError, ValueError):
        raise ArgumentError(
            "This is not a database URL that SQLAlchemy knows. It looks like sqlite+aiosqlite:///example.db or "
            "postgresql+asyncpg://user:password@host:5432/name, with %-escapes for special characters in the password."
        ) from None
    sync_driver, async_driver, extra = DRIVERS.get(url.get_backend_name(), (None, None, None))
    if is_async:
        dialect = dialect.get_async_dialect_cls(url)
    if dialect.is_async != is_async:
        kind, right = ("a sync", async_driver) if is_async else ("an async", sync_driver)
        raise ArgumentError(f"{url.drivername} is {kind} driver: use {right or 'one of the other kind'} here.")
    try:
        dialect.import_dbapi()
    except ImportError as error:
        advice = f"uv sync --extra {extra}, or uv add {error.name} in a project of your own" if extra else "install it"
        raise ModuleNotFoundError(f"The driver of {url.drivername} is not installed ({error}): {advice}.") from None
    return url


def engine_options(url: URL, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for create_engine: yours, and the defaults for what you left open."""
    defaults: dict[str, Any] = {"hide_parameters": True}  # salaries and tax numbers don't belong in logs
    if url.get_backend_name() == "sqlite":
        # Python's modern transaction mode: real savepoints, DDL that rolls back. A writer waits 30 s for its turn.
        patience = {} if "timeout" in url.query else {"timeout": 30}
        connect_args = {"autocommit": False, **patience, **options.get("connect_args", {})}
        options = {**options, "connect_args": connect_args}
    elif url.get_backend_name() != "postgresql":  # which has ping_if_idle
        defaults["pool_pre_ping"] = True
    return defaults | options


def read_options(url: URL, options: dict[str, Any]) -> dict[str, Any]:
    """Return the execution options for sessions that only read: PostgreSQL spends no round trips on a transaction."""
    if url.get_backend_name() == "postgresql" and "isolation_level" not in options:  # only a transaction can keep that
        return {"isolation_level": "AUTOCOMMIT"}
    return {}


def listen(engine: Engine) -> None:
    """Attach to the engine what its database needs."""
    event.listen(engine, "handle_error", hide_values)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", set_up_sqlite)
        # SQLite numbers the rows of one INSERT in their order: many rows can go in one statement and get their ids.
        engine.dialect.insertmanyvalues_implicit_sentinel = InsertmanyvaluesSentinelOpts.ANY_AUTOINCREMENT
    elif engine.dialect.name == "postgresql":
        event.listen(engine, "connect", note_use)
        event.listen(engine, "checkin", note_use)
        event.listen(engine, "checkout", partial(ping_if_idle, engine.dialect))
    else:
        event.listen(engine, "handle_error", end_lost_transaction)


def hide_values(context: ExceptionContext) -> None:
    """Do what hide_parameters can't: take personal data out of the server's own message."""
    errors: list[Any] = [context.sqlalchemy_exception, context.original_exception]
    for error in filter(None, errors):
        error.args = tuple(VALUES.sub("", arg) if isinstance(arg, str) else arg for arg in error.args)
        if isinstance(getattr(error, "detail", None), str):  # asyncpg adds it to the text
            error.detail = None
        errors.append(error.__cause__)


def set_up_sqlite(connection: DBAPIConnection, _: object) -> None:
    """Turn on foreign keys and the write-ahead log, which lets readers and a writer work at the same time."""
    cursor = connection.cursor()
    cursor.execute("COMMIT")  # pragmas are ignored inside the transaction that autocommit=False keeps open
    cursor.execute("PRAGMA foreign_keys = ON")
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except OperationalError:
            # Several processes open a new file: the pragma is refused at once instead of waiting for its turn. This
            # waits, and raises what waiting doesn't mend.
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("COMMIT")
    cursor.execute("BEGIN")
    cursor.close()


def begin_immediate(connection: Connection) -> None:
    """On SQLite, take the write lock now: a transaction that reads first can't get it once somebody else wrote."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("COMMIT")
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except DBAPIError:
            connection.invalidate()  # it has no transaction now, which its pool would try to roll back
            raise


def note_use(_: object, record: ConnectionPoolEntry) -> None:
    """Remember when the connection was last known to work."""
    record.info["used"] = monotonic()


def ping_if_idle(dialect: Dialect, connection: DBAPIConnection, record: ConnectionPoolEntry, _: object) -> None:
    """Notice a dead connection, as pool_pre_ping does, without a round trip for one that was in use a second ago."""
    driver: Any = getattr(connection, "driver_connection", connection)
    try:
        if monotonic() - record.info["used"] > 1 or has_news(driver):
            dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise DisconnectionError from error  # the pool then opens a new connection


def has_news(driver: Any) -> bool:
    """Whether the server sent something unasked: one that stops says so and hangs up."""
    # asyncpg has no fileno(), and learns of the end only when the event loop gets to it
    socket = driver if hasattr(driver, "fileno") else driver._transport.get_extra_info("socket")
    if socket.fileno() < 0:
        return True
    with DefaultSelector() as selector:
        selector.register(socket, EVENT_READ)
        return bool(selector.select(0))


def end_lost_transaction(context: ExceptionContext) -> None:
    """Give up the connection when MySQL has ended its transaction: a deadlock (1213), a cluster node cut off (1047).

    The savepoints went with it. Rolling back to one would fail with 1305 "SAVEPOINT does not exist", which would be all
    that the caller sees.
    """
    if context.original_exception.args[:1] in ((1213,), (1047,)):
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False


def can_repeat(error: DBAPIError | StaleDataError, *, committing: bool) -> bool:
    """Whether a transaction that failed like this can run again, because nothing of it was stored."""
    if isinstance(error, StaleDataError):
        return True
    codes = (getattr(error.orig, "sqlstate", None), *getattr(error.orig, "args", ())[:1])
    # a connection lost during COMMIT: it may have been stored, and only you can tell
    return not CONFLICTS.isdisjoint(codes) or (error.connection_invalidated and not committing)


def explain(error: DBAPIError | OSError, url: URL) -> str:
    """Return two lines for a person at a terminal: which database, what the driver said, and what sets the address."""
    reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
    address = str(url.database)
    if url.host:
        address += f" at {url.host}:{url.port or (5432 if url.get_backend_name() == 'postgresql' else 3306)}"
    return f"Can't use the database {address}: {reason}\nDB_CONNECTION_STRING sets the address."


class Turn:
    """Who may use the connection of a transaction: one session or inner transaction at a time."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.holder: object = None

    def take(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise InvalidRequestError(IN_USE)
        self.holder = current_task_or_thread()

    def is_taken_by_another(self) -> bool:
        return self.lock.locked() and self.holder != current_task_or_thread()


def current_task_or_thread() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        return get_ident()


class DbSession(Session):
    """A session that leaves your objects as you made them when the database refuses them.

    SQLAlchemy's own would expire them: `user.id` in your except block would raise DetachedInstanceError, and your
    changes would be gone. In a transaction, `turn` lets one session or inner transaction at a time use the connection.
    """

    def __init__(self, *args: Any, turn: Turn | None = None, **options: Any) -> None:
        if turn:
            turn.take()
        self.turn = turn
        self.unsaved: list[tuple[InstanceState[Any], dict[str, Any], dict[str, Any]]] = []
        super().__init__(*args, **options)

    def flush(self, objects: Any = None) -> None:
        states = map(instance_state, (*self.new, *self.dirty))
        self.unsaved += [(state, state.dict.copy(), state.committed_state.copy()) for state in states]
        super().flush(objects)

    def close(self) -> None:
        try:
            if self.unsaved:  # COMMIT itself failed
                self.rollback()
            super().close()
        finally:
            if self.turn:
                self.turn.lock.release()
                self.turn = None


@event.listens_for(DbSession, "after_commit")
def forget_objects(session: DbSession) -> None:
    if not session.in_nested_transaction():
        session.unsaved.clear()


@event.listens_for(DbSession, "after_rollback")
def restore_objects(session: DbSession) -> None:
    if session.in_nested_transaction():
        return
    for state, values, changes in reversed(session.unsaved):
        state.dict.clear()
        state.dict.update(values)
        state.committed_state.clear()
        state.committed_state.update(changes)
        state.modified = True
    session.unsaved.clear()
    session.expunge_all()
