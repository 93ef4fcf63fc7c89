"""What an engine is made with, how it is set up, and what its errors mean."""

from contextlib import suppress
from typing import Any

from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import ORMExecuteState, Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from database.listeners import listen

# For each driver: Python's modern transaction mode on SQLite, and how many seconds it waits for a lock or a server.
SQLITE = {"autocommit": False, "timeout": 30}
CONNECT_ARGS = {"pysqlite": SQLITE, "aiosqlite": SQLITE, "asyncpg": {"timeout": 10}, "pg8000": {}}

# "Try again": PostgreSQL's serialization failure and deadlock; MySQL's deadlock, lock wait timeout and changed row.
CONFLICTS = frozenset({"40001", "40P01", "1213", "1205", "1020"})
READING: dict[str, Any] = {"expire_on_commit": False, "autoflush": False}  # a change stays one, for a later update()
REPEATABLE = (DBAPIError, StaleDataError)


def parse_url(url: str | URL) -> URL:
    """Return the parsed URL. Raises ArgumentError for what is none, and does not repeat it: it may hold a password."""
    with suppress(ArgumentError, ValueError):
        parsed = make_url(url)
        if parsed.password is None or str(url).count("@") < 2:  # what follows an @ in a password would show as the host
            return parsed
    raise ArgumentError("This is no URL like postgresql+psycopg://user:password@host/name; an @ in a password is %40.")


def engine_options(url: str | URL, options: dict[str, Any], *, is_async: bool) -> dict[str, Any]:
    """Return the arguments for create_engine: yours, and the defaults for what you and the URL left open.

    Raises ArgumentError for what is no URL, an async driver in the sync stack, and a SQLite database in memory.
    """
    url = parse_url(url)
    name = url.database or ":memory:"
    if url.get_dialect().is_async and not is_async:
        raise ArgumentError(f"{url.drivername} is an async driver: it is for DbContextAsync.")
    in_memory = ":memory:" in name or name == "file:" or not {"memory", "memdb"}.isdisjoint(url.query.values())
    if in_memory and url.get_backend_name() == "sqlite":
        raise ArgumentError("SQLite in memory is one connection, in which tasks lose each other's work: use a file.")
    defaults = CONNECT_ARGS.get(url.get_driver_name(), {"connect_timeout": 10})
    connect_args = {key: defaults[key] for key in defaults if key not in url.query} | options.get("connect_args", {})
    return {"url": url, "hide_parameters": True, **options, "connect_args": connect_args}  # no personal data in logs


def set_up(engine: Engine, options: dict[str, Any]) -> sessionmaker[Session]:
    """Attach what the database needs; return a maker of reading sessions, on PostgreSQL without BEGIN and ROLLBACK."""
    listen(engine)
    sessions = sessionmaker(engine, **READING)
    event.listen(sessions, "after_flush_postexec", lambda session, _: session.expire_all())  # not kept, so spent
    event.listen(sessions, "after_bulk_update", lambda context: context.session.expire_all())
    if engine.dialect.name == "postgresql" and "isolation_level" not in {**options, **engine.get_execution_options()}:
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

        @event.listens_for(sessions, "do_orm_execute")
        def read_without_transaction(state: ORMExecuteState) -> None:
            if not state.is_select or {"yield_per", "stream_results"} & state.execution_options.keys():
                state.session.info["in_transaction"] = True  # SET LOCAL, and the like, holds for what is read after it
            elif "in_transaction" not in state.session.info:
                state.bind_arguments["bind"] = autocommit

    return sessions


def can_repeat(error: DBAPIError | StaleDataError, *, committing: bool) -> bool:
    """Whether to run a transaction again: not one whose connection was lost in COMMIT, which may have stored it."""
    if isinstance(error, StaleDataError):
        return True
    codes = {getattr(error.orig, "sqlstate", None), *map(str, getattr(error.orig, "args", ())[:1])}
    return bool(CONFLICTS & codes) or (error.connection_invalidated and not committing)


def explain(error: BaseException, url: str | URL) -> str:
    """Return two lines for a person at a terminal: what the driver said, and which URL, its password as ***."""
    reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or type(error).__name__
    return f"{reason}\nDatabase URL: {'***' if isinstance(error, ArgumentError) else parse_url(url).set(query={})}"
