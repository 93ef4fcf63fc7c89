"""The recipes for FastAPI and Flask, each behind its own server."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from tests.commands import ROOT
from tests.conftest import NewUrl
from tests.servers import free_port

RECIPES = {
    "uvicorn tests.recipes.fastapi_app:app --port": "postgresql+asyncpg",
    "flask --app tests.recipes.flask_app run --port": "sqlite+aiosqlite",
}
ADA = {"name": "Ada", "email": "ada@example.com"}
EVA = {"name": "Eva", "email": "eva@example.com"}


@pytest.fixture(scope="module", params=RECIPES, ids=["fastapi", "flask"])
def recipe(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def url(recipe: str, new_url: NewUrl) -> str:
    return new_url(RECIPES[recipe])


@pytest.fixture(scope="module")
def server(recipe: str, url: str, tmp_path_factory: Any) -> Iterator[httpx.Client]:
    """Start the application on a database without tables, and yield a client."""
    port, log = free_port(), tmp_path_factory.mktemp("log") / "server.log"
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "error", "-m", *recipe.split(), str(port)]
    env = os.environ | {"DB_CONNECTION_STRING": url}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)
    try:
        while address not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait()
    assert "Traceback" not in log.read_text()


@pytest.fixture
def client(server: httpx.Client) -> httpx.Client:
    for user in server.get("/users").json():
        server.delete(f"/users/{user['id']}")
    return server


def test_a_request_is_one_transaction(client: httpx.Client) -> None:
    answer = client.post("/users", json=[ADA])
    [ada] = answer.json()
    assert answer.status_code == 201
    assert ada == ADA | {"id": ada["id"], "version_id": 1}
    assert client.post("/users", json=[EVA, ADA]).status_code == 409
    assert client.post("/users", json=[EVA, {"name": "Ida"}]).status_code == 422
    assert client.get("/users").json() == [ada]
    assert client.get("/users", params={"after_id": ada["id"]}).json() == []
    assert client.get("/health").is_success


def test_a_user_that_does_not_exist_is_404(client: httpx.Client) -> None:
    [ada] = client.post("/users", json=[ADA]).json()
    page = f"/users/{ada['id']}"
    assert client.delete(page).status_code == 204
    assert client.get(page).status_code == 404
    assert client.get(f"/users/{2**63}").status_code in (404, 422)
    assert client.put(page, json=ada).status_code == 404
    assert client.delete(page).status_code == 404


def test_an_old_edit_form_overwrites_nothing(client: httpx.Client) -> None:
    [ada, _] = client.post("/users", json=[ADA, EVA]).json()
    page = f"/users/{ada['id']}"
    saved = client.put(page, json=ada | {"name": "Ada King"}).json()
    assert (saved["name"], saved["version_id"]) == ("Ada King", 2)
    assert client.put(page, json=ada | {"name": "Too Late"}).status_code == 409
    assert client.put(page, json=saved | {"email": EVA["email"]}).status_code == 409
    assert client.get(page).json() == saved


@pytest.mark.parametrize("recipe", [*RECIPES][:1], indirect=True)
def test_a_commit_that_fails_is_an_error(client: httpx.Client, url: str) -> None:
    # PostgreSQL checks this constraint at COMMIT.
    late = "ADD CONSTRAINT late UNIQUE (name) DEFERRABLE INITIALLY DEFERRED"
    with psycopg.connect(url.replace("+asyncpg", "")) as connection:
        connection.execute(f"ALTER TABLE users {late}")
    namesake = ADA | {"email": EVA["email"]}
    assert client.post("/users", json=[ADA, namesake]).status_code == 409
    assert client.get("/users").json() == []
