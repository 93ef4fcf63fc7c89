"""Bring the database schema to head, then run the demo."""

import asyncio
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import ArgumentError, DBAPIError

import application
import composition_root
from database.context_async import DbContextAsync
from database.shared import explain


async def run(db: DbContextAsync) -> None:
    async with db:
        try:
            async with db.engine.connect():
                print(f"Database {db.engine.url.set(query={})}: schema at head")  # the password prints as ***
        except (DBAPIError, OSError) as error:
            sys.exit(explain(error, db.engine.url))
        await application.run(composition_root.create_user_repository_async(db))


def main() -> None:
    try:
        db = composition_root.create_db_async()
    except (ArgumentError, ModuleNotFoundError) as error:
        sys.exit(f"DB_CONNECTION_STRING: {error}")
    command.upgrade(Config(Path(__file__).with_name("alembic.ini")), "head")
    asyncio.run(run(db))


if __name__ == "__main__":
    main()
