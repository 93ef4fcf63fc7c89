"""Bring the database schema to head, then run the demo."""

import asyncio
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import SQLAlchemyError

import application
import composition_root
import env
from database.engine import explain


async def run() -> None:
    async with composition_root.create_db_async() as db:
        try:
            async with db.engine.connect():
                print(f"Database {db.engine.url.set(query={})}: schema at head")  # the password prints as ***
        except Exception as error:  # whatever the driver raises: some have exceptions of their own
            sys.exit(explain(error, db.engine.url))
        await application.run(composition_root.create_user_repository_async(db))


if __name__ == "__main__":
    try:
        command.upgrade(Config(Path(__file__).with_name("alembic.ini")), "head")
        asyncio.run(run())
    except (SQLAlchemyError, OSError, ImportError) as error:  # which URL of the two: the database is the same
        sys.exit(explain(error, env.DB_CONNECTION_STRING))
