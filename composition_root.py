"""The only place where contexts and repositories are built. Everything else receives what it needs."""

import env
from database.context import DbContext
from database.context_async import DbContextAsync
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync


def create_db() -> DbContext:
    """Return the sync context; use it in a with block, which disposes it."""
    return DbContext(env.DB_SYNC_CONNECTION_STRING)


def create_db_async() -> DbContextAsync:
    """Return the async context; use it in an async with block, which disposes it."""
    return DbContextAsync(env.DB_CONNECTION_STRING)


def create_user_repository(db: DbContext) -> UserRepository:
    """Return the users of this context or transaction."""
    return UserRepository(db)


def create_user_repository_async(db: DbContextAsync) -> UserRepositoryAsync:
    """Return the users of this context or transaction."""
    return UserRepositoryAsync(db)
