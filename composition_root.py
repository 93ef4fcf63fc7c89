"""Where the program's contexts and repositories are built. Everything else gets them, or builds on a transaction."""

import env
from database.context import DbContext, DbTransaction
from database.context_async import DbContextAsync, DbTransactionAsync
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync


def create_db() -> DbContext:
    return DbContext(env.DB_SYNC_CONNECTION_STRING)


def create_db_async() -> DbContextAsync:
    return DbContextAsync(env.DB_CONNECTION_STRING)


def create_user_repository(db: DbContext | DbTransaction) -> UserRepository:
    return UserRepository(db)


def create_user_repository_async(db: DbContextAsync | DbTransactionAsync) -> UserRepositoryAsync:
    return UserRepositoryAsync(db)
