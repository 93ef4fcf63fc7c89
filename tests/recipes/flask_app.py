"""A Flask application on the template.

Where alembic.ini lies: uv run flask --app tests.recipes.flask_app run
"""

from typing import Any

from alembic import command
from alembic.config import Config
from flask import Blueprint, Flask, abort, request
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

import composition_root
from database.context import DbTransaction
from database.models import UserDb

db = composition_root.create_db()  # all threads share it; it connects when first used
pages = Blueprint("users", __name__)


def create_app() -> Flask:
    # Processes that start together do this one after the other. Leave it out if your deployment does it.
    command.upgrade(Config("alembic.ini"), "head")
    app = Flask(__name__)
    app.register_blueprint(pages)
    return app


@pages.app_errorhandler(IntegrityError)
@pages.app_errorhandler(StaleDataError)
def conflict(_error: Exception) -> tuple[str, int]:
    return "There is one already, or somebody was faster.", 409


def fill(user: UserDb, form: Any) -> UserDb:
    try:
        user.name, user.email = form["name"], form["email"]
    except (
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # the model knows what it can't hold
        abort(422, str(error))
    return user


def show(user: UserDb) -> dict[str, object]:
    return {
        "id": user.id,
        "version": user.version,
        "name": user.name,
        "email": user.email,
    }


@pages.get("/users")
def list_users() -> list[dict[str, object]]:
    after_id = request.args.get("after_id", 0, int)
    return [
        show(user)
        for user in composition_root.create_user_repository(db).get_page(
            after_id=after_id
        )
    ]


@pages.post("/users")
def create_users() -> tuple[list[dict[str, object]], int]:
    with (
        db.transaction() as tx
    ):  # one request, one transaction; it commits before the answer
        users = composition_root.create_user_repository(tx)
        return [
            show(users.create(fill(UserDb(), new))) for new in request.get_json()
        ], 201


@pages.get("/users/<int:id>")
def get_user(id: int) -> dict[str, object]:
    return show(composition_root.create_user_repository(db).get_by_id(id) or abort(404))


@pages.put("/users/<int:id>")
def edit_user(id: int) -> dict[str, object]:
    form = request.get_json()

    def edit(tx: DbTransaction) -> dict[str, object]:
        users = composition_root.create_user_repository(tx)
        user = users.get_by_id(id) or abort(404)
        if user.version != form.get("version"):
            abort(409, "Somebody was faster: load the form again.")
        return show(users.update(fill(user, form)))

    return db.run(
        edit
    )  # when two save at the same moment, the second runs again, and finds another version


@pages.delete("/users/<int:id>")
def delete_user(id: int) -> tuple[str, int]:
    return (
        ("", 204)
        if composition_root.create_user_repository(db).delete(id)
        else abort(404)
    )
