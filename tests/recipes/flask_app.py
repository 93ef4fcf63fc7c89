"""A Flask application on the template.

Run it in the folder of alembic.ini: uv run flask --app tests.recipes.flask_app run
"""

from typing import Any

from alembic import command
from alembic.config import Config
from flask import Flask, abort, request
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

import composition_root
from database.models import UserDb
from repositories.user_repository import UserRepository

Json = dict[str, Any]

# Workers that start together wait for each other here. Remove this line if your
# deployment runs the migrations.
command.upgrade(Config("alembic.ini"), "head")

# All requests share one context. It connects when it is used first.
db = composition_root.create_db()
# Each call of this repository is a transaction of its own.
users = composition_root.create_user_repository(db)
app = Flask(__name__)


@app.errorhandler(IntegrityError)
@app.errorhandler(StaleDataError)
def answer_conflict(_error: Exception) -> tuple[str, int]:
    return "It exists already, or somebody changed it.", 409


@app.get("/health")
def check_health() -> str:
    # If the database can't be reached, the answer is 500.
    with db.read_session() as session:
        session.execute(text("SELECT 1"))
    return "ok"


@app.get("/users")
def list_users() -> list[Json]:
    after_id = request.args.get("after_id", 0, int)
    return [show(user) for user in users.get_page(after_id=after_id)]


@app.get("/users/<int(max=9223372036854775807):id>")
def get_user(id: int) -> Json:
    return show(users.get_by_id(id) or abort(404))


@app.post("/users")
def create_users() -> tuple[list[Json], int]:
    # One transaction: all of the users are stored, or none. It commits before the
    # response is sent.
    with db.transaction() as session:
        users = UserRepository(session)
        new = [users.create(fill(UserDb(), form)) for form in request.get_json()]
    return [show(user) for user in new], 201


@app.put("/users/<int(max=9223372036854775807):id>")
def edit_user(id: int) -> Json:
    form = request.get_json()
    user = users.get_by_id(id) or abort(404)
    if user.version_id != form.get("version_id"):
        raise StaleDataError("the form shows an older version")
    # A StaleDataError if another request was faster.
    return show(users.update(fill(user, form)))


@app.delete("/users/<int(max=9223372036854775807):id>")
def delete_user(id: int) -> tuple[str, int]:
    return ("", 204) if users.delete(id) else abort(404)


def fill(user: UserDb, form: Json) -> UserDb:
    if not form.get("name") or not form.get("email"):
        abort(422, "A user needs a name and an e-mail address.")
    user.name, user.email = form["name"], form["email"]
    return user


def show(user: UserDb) -> Json:
    return {key: getattr(user, key) for key in ("id", "version_id", "name", "email")}
