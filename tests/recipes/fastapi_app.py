"""A FastAPI application on the template, with async and sync endpoints.

Where alembic.ini lies: uv run uvicorn tests.recipes.fastapi_app:app
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from alembic import command
from alembic.config import Config
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

import composition_root
from database.context import DbContext
from database.context_async import DbContextAsync, DbTransactionAsync
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync


class NewUser(BaseModel):
    name: str
    email: str


class EditForm(NewUser):
    version: int  # of the user whom the form shows


class ShownUser(EditForm):
    id: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Workers that start together do this one after the other. Leave it out if your deployment does it.
    await asyncio.to_thread(command.upgrade, Config("alembic.ini"), "head")
    with composition_root.create_db() as app.state.db:
        async with composition_root.create_db_async() as app.state.db_async:
            yield


async def get_db(request: Request) -> DbContext:
    db: DbContext = request.app.state.db
    return db


async def get_db_async(request: Request) -> DbContextAsync:
    db: DbContextAsync = request.app.state.db_async
    return db


Db = Annotated[DbContext, Depends(get_db)]
DbAsync = Annotated[DbContextAsync, Depends(get_db_async)]


async def get_users(db: DbAsync) -> UserRepositoryAsync:
    """For reading: each call is a transaction of its own."""
    return composition_root.create_user_repository_async(db)


async def get_users_in_transaction(db: DbAsync) -> AsyncIterator[UserRepositoryAsync]:
    """For writing: one request is one transaction, which any exception undoes."""
    async with db.transaction() as tx:
        yield composition_root.create_user_repository_async(tx)


Users = Annotated[UserRepositoryAsync, Depends(get_users)]
# scope="function" commits before the answer is sent. Else a commit that fails would have been answered with success.
UsersInTransaction = Annotated[
    UserRepositoryAsync, Depends(get_users_in_transaction, scope="function")
]

app = FastAPI(lifespan=lifespan)


@app.exception_handler(IntegrityError)
@app.exception_handler(StaleDataError)
async def conflict(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse(
        {"detail": "There is one already, or somebody was faster."}, 409
    )


def fill(user: UserDb, form: NewUser) -> UserDb:
    try:
        user.name, user.email = form.name, form.email
    except ValueError as error:  # the model knows what it can't hold
        raise HTTPException(422, str(error)) from error
    return user


def show(user: UserDb) -> ShownUser:
    return ShownUser.model_validate(user, from_attributes=True)


@app.get("/users")
def list_users(
    db: Db, after_id: int = 0
) -> list[ShownUser]:  # a sync endpoint, on the sync stack
    return [
        show(user)
        for user in composition_root.create_user_repository(db).get_page(
            after_id=after_id
        )
    ]


@app.post("/users", status_code=201)
async def create_users(
    new: list[NewUser], users: UsersInTransaction
) -> list[ShownUser]:
    return [show(await users.create(fill(UserDb(), one))) for one in new]


@app.get("/users/{id}")
async def get_user(id: int, users: Users) -> ShownUser:
    if user := await users.get_by_id(id):
        return show(user)
    raise HTTPException(404)


@app.put("/users/{id}")
async def edit_user(id: int, form: EditForm, db: DbAsync) -> ShownUser:
    async def edit(tx: DbTransactionAsync) -> ShownUser:
        users = composition_root.create_user_repository_async(tx)
        user = await users.get_by_id(id)
        if user is None:
            raise HTTPException(404)
        if user.version != form.version:
            raise HTTPException(409, "Somebody was faster: load the form again.")
        return show(await users.update(fill(user, form)))

    return await db.run(
        edit
    )  # when two save at the same moment, the second runs again, and finds another version


@app.delete("/users/{id}", status_code=204)
def delete_user(id: int, db: Db) -> None:
    with (
        db.transaction() as tx
    ):  # a block in the endpoint commits before the answer, too
        if not composition_root.create_user_repository(tx).delete(id):
            raise HTTPException(404)
