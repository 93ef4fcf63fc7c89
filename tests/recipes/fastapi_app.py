"""A FastAPI application on the template.

Run it in the folder of alembic.ini: uv run uvicorn tests.recipes.fastapi_app:app
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, NoReturn

from alembic import command
from alembic.config import Config
from fastapi import FastAPI, HTTPException, Path, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

import composition_root
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync

Id = Annotated[int, Path(lt=2**63)]


class NewUser(BaseModel):
    name: str = Field(min_length=1, max_length=100)
    email: str = Field(min_length=3, max_length=254)


class EditForm(NewUser):
    version_id: int  # of the user that the form shows


class ShownUser(EditForm, from_attributes=True):
    id: int


# All requests share one context. It connects when it is used first.
db = composition_root.create_db_async()
# Each call of this repository is a transaction of its own.
users = composition_root.create_user_repository_async(db)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    # Workers that start together wait for each other here. Remove this line if your
    # deployment runs the migrations.
    await asyncio.to_thread(command.upgrade, Config("alembic.ini"), "head")
    async with db:
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(IntegrityError)
@app.exception_handler(StaleDataError)
async def answer_conflict(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "It exists already, or somebody changed it."}, 409)


@app.get("/health")
async def check_health() -> str:
    # If the database can't be reached, the answer is 500.
    async with db.read_session() as session:
        await session.execute(text("SELECT 1"))
    return "ok"


@app.get("/users", response_model=list[ShownUser])
async def list_users(after_id: int = 0) -> Sequence[UserDb]:
    return await users.get_page(after_id=after_id)


@app.get("/users/{id}", response_model=ShownUser)
async def get_user(id: Id) -> UserDb:
    return await users.get_by_id(id) or not_found()


@app.post("/users", status_code=201, response_model=list[ShownUser])
async def create_users(forms: list[NewUser]) -> list[UserDb]:
    # One transaction: all of the users are stored, or none. It commits before the
    # response is sent. By default, a dependency with `yield` would commit after that.
    async with db.transaction() as session:
        users = UserRepositoryAsync(session)
        return [await users.create(UserDb(**form.model_dump())) for form in forms]


@app.put("/users/{id}", response_model=ShownUser)
async def edit_user(id: Id, form: EditForm) -> UserDb:
    user = await users.get_by_id(id) or not_found()
    if user.version_id != form.version_id:
        raise StaleDataError("the form shows an older version")
    user.name, user.email = form.name, form.email
    return await users.update(user)  # a StaleDataError if another request was faster


@app.delete("/users/{id}", status_code=204)
async def delete_user(id: Id) -> None:
    if not await users.delete(id):
        not_found()


def not_found() -> NoReturn:
    raise HTTPException(404)
