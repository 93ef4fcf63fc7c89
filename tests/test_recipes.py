"""The recipes for FastAPI and Flask, each behind its real server, asked by a real client."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from database.context import DbContext
from tests.servers import Server, free_port

ROOT = Path(__file__).parents[1]
RECIPES = {
    "fastapi": "uvicorn tests.recipes.fastapi_app:app --port",
    "flask": "flask --app tests.recipes.flask_app run --port",
}
DRIVERS = ["sqlite+aiosqlite", "postgresql+psycopg"]
ADA, EVA = ({"name": name, "email": f"{name}@example.com"} for name in ("Ada", "Eva"))


@pytest.fixture(scope="module", params=DRIVERS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param.startswith("sqlite"):
        return f"{request.param}:///{tmp_path_factory.mktemp('recipes')}/test.db"
    postgres: Server = request.getfixturevalue("postgres")
    return postgres.url(request.param, postgres.create_database())


@pytest.fixture(scope="module", params=RECIPES)
def server(
    request: pytest.FixtureRequest, url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of the recipe's server, which starts on a database without a schema."""
    port, log = str(free_port()), tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-W", "error", "-m", *RECIPES[request.param].split(), port]
    with log.open("w") as output:
        variables = os.environ | {"DB_CONNECTION_STRING": url}
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=output)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=None) as client:
            while not answers(client):
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
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


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/users").is_success
    except httpx.ConnectError:
        return False


def create(client: httpx.Client, *users: Any) -> list[Any]:
    answer = client.post("/users", json=users)
    assert answer.status_code == 201, answer.text
    return list(answer.json())


def test_one_request_is_one_transaction(client: httpx.Client) -> None:
    [ada] = create(client, ADA)
    assert ada == {"id": ada["id"], "version": 1, "name": "Ada", "email": "ada@example.com"}
    assert client.post("/users", json=[EVA, ADA]).status_code == 409
    assert client.post("/users", json=[EVA, {"name": "", "email": "x@example.com"}]).status_code == 422
    assert client.post("/users", json=[EVA, {"name": "Ida"}]).status_code == 422
    assert client.get("/users").json() == [ada]
    [eva] = create(client, EVA)
    assert client.get("/users", params={"after_id": ada["id"]}).json() == [eva]


def test_what_is_not_there_is_404(client: httpx.Client) -> None:
    [ada] = create(client, ADA)
    page = f"/users/{ada['id']}"
    assert client.delete(page).status_code == 204
    form = ADA | {"version": 1}
    for answer in (client.get(page), client.put(page, json=form), client.delete(page), client.get(f"/users/{10**30}")):
        assert answer.status_code == 404


def test_the_edit_form(client: httpx.Client) -> None:
    ada, _ = create(client, ADA, EVA)
    page = f"/users/{ada['id']}"
    form = client.get(page).json()
    saved = client.put(page, json=form | {"name": "Ada King"})
    assert (saved.status_code, saved.json()["version"]) == (200, 2)
    assert client.put(page, json=form | {"name": "Too Late"}).status_code == 409
    assert client.put(page, json=saved.json() | {"email": EVA["email"]}).status_code == 409
    assert client.put(page, json=saved.json() | {"name": ""}).status_code == 422
    assert client.get(page).json() == saved.json()


def test_of_many_who_save_at_once_one_wins(client: httpx.Client) -> None:
    [ada] = create(client, ADA)
    with ThreadPoolExecutor(8) as pool:
        forms = [ada | {"name": f"Ada {number}"} for number in range(8)]
        answers = list(pool.map(lambda form: client.put(f"/users/{ada['id']}", json=form), forms))
    assert sorted(answer.status_code for answer in answers) == [200] + 7 * [409]
    [saved] = [answer.json() for answer in answers if answer.is_success]
    assert client.get(f"/users/{ada['id']}").json() == saved


@pytest.mark.parametrize("url", DRIVERS[:1], indirect=True)
def test_the_commit_comes_before_the_answer(client: httpx.Client, url: str) -> None:
    """One that fails is told: here a foreign key that is looked at in COMMIT alone points to nobody."""
    with DbContext(url.replace("+aiosqlite", "")) as db:
        with db.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE late (id INTEGER REFERENCES users DEFERRABLE INITIALLY DEFERRED)")
            connection.exec_driver_sql("CREATE TRIGGER t INSERT ON users BEGIN INSERT INTO late VALUES (-1); END")
        assert client.post("/users", json=[ADA]).status_code == 409
        assert client.get("/users").json() == []
        with db.engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER t")
            connection.exec_driver_sql("DROP TABLE late")
