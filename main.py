"""Bring the database schema to head, then run the demo."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

import application
import composition_root
import env
from database.engine import explain


async def run() -> None:
    try:
        db = composition_root.create_db_async()
        async with db.engine.connect():
            print(f"Database {db.engine.url.set(query={})}: schema at head")  # the password prints as ***
    except Exception as error:  # whatever the driver raises: some have exceptions of their own
        raise SystemExit(explain(error, env.DB_CONNECTION_STRING)) from None
    async with db:
        await application.run(composition_root.create_user_repository_async(db))


if __name__ == "__main__":
    try:
        command.upgrade(Config(Path(__file__).with_name("alembic.ini")), "head")
        asyncio.run(run())
    except (DBAPIError, OSError) as error:
        raise SystemExit(explain(error, env.DB_CONNECTION_STRING)) from None
