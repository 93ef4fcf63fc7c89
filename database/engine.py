"""What an engine is made with, the sessions that only read, and what its errors mean."""

from typing import Any

from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import ORMExecuteState, Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

# For each driver: Python's modern transaction mode on SQLite, and how many seconds it waits for a lock or a server.
SQLITE = {"autocommit": False, "timeout": 30}
SERVER = {"connect_timeout": 10}
CONNECT_ARGS = {"pysqlite": SQLITE, "aiosqlite": SQLITE, "asyncpg": {"timeout": 10}, "pg8000": {"timeout": 10}}

# "Try again": PostgreSQL's serialization failure and deadlock; MySQL's deadlock, lock wait timeout and changed row.
CONFLICTS = frozenset({"40001", "40P01", 1213, 1205, 1020})


def parse_url(url: str | URL) -> URL:
    """Return the parsed URL. Raises ArgumentError for what is none, and does not repeat it: it may hold a password."""
    try:
        url = make_url(url)
        # the end of a password with an @ in it, which SQLAlchemy takes for the host, and a driver would show
        if url.password is None or "@" not in f"{url.host}{url.database}":
            return url
    except (ArgumentError, ValueError):
        pass  # told below, without the URL
    raise ArgumentError(
        "This is no URL like postgresql+psycopg://user:password@host/name. Write @ in a password as %40."
    )


def engine_options(url: str | URL, options: dict[str, Any], *, is_async: bool) -> dict[str, Any]:
    """Return the arguments for create_engine: yours, and the defaults for what you and the URL left open.

    Raises ArgumentError for what is no URL, an async driver in the sync stack, and a SQLite database in memory.
    """
    url = parse_url(url)
    name = url.database or ":memory:"
    if url.get_dialect().is_async and not is_async:
        raise ArgumentError(f"{url.drivername} is an async driver: it is for DbContextAsync.")
    if url.get_backend_name() == "sqlite" and (
        ":memory:" in name or name == "file:" or not {"memory", "memdb"}.isdisjoint(url.query.values())
    ):
        raise ArgumentError("SQLite in memory is one connection, in which tasks lose each other's work: use a file.")
    defaults = CONNECT_ARGS.get(url.get_driver_name(), SERVER)
    connect_args = {key: value for key, value in defaults.items() if key not in url.query}
    connect_args |= options.get("connect_args", {})
    return {"url": url, "hide_parameters": True, **options, "connect_args": connect_args}  # no personal data in logs


def read_sessions(engine: Engine, options: dict[str, Any]) -> sessionmaker[Session]:
    """Return a maker of sessions for reading; on PostgreSQL without BEGIN and ROLLBACK, one round trip a query."""
    # autoflush=False: what is changed in such a session stays a change, for an update() later
    sessions = sessionmaker(engine, expire_on_commit=False, autoflush=False)
    if engine.dialect.name == "postgresql" and "isolation_level" not in options:  # only a transaction can keep that
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

        @event.listens_for(sessions, "do_orm_execute")
        def read_without_transaction(state: ORMExecuteState) -> None:
            if state.is_select:
                state.bind_arguments["bind"] = autocommit

    return sessions


def can_repeat(error: DBAPIError | StaleDataError, *, committing: bool) -> bool:
    """Whether a transaction that failed like this can run again, because nothing of it was stored."""
    if isinstance(error, StaleDataError):
        return True
    codes = {getattr(error.orig, "sqlstate", None), *getattr(error.orig, "args", ())[:1]}
    # a connection lost during COMMIT: it may have been stored, and only you can tell
    return bool(CONFLICTS & codes) or (error.connection_invalidated and not committing)


def explain(error: BaseException, url: str | URL) -> str:
    """Return two lines for a person at a terminal: what the driver said, and which URL, its password as ***."""
    reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or type(error).__name__
    is_url = not isinstance(error, ArgumentError)
    return f"{reason}\nDatabase URL: {parse_url(url).set(query={}) if is_url else 'not shown, it may hold a password'}"
