"""The two stacks say the same, word for word: what is done to one is done to the other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAIRS = [
    ("database/context_async.py", "database/context.py"),
    ("repositories/user_repository_async.py", "repositories/user_repository.py"),
]
# async, and what stands in its place in the sync twin
WORDS = [
    (r"await connection\.run_sync\(([\w.]+)\)", r"\1(connection)"),
    (r"\(await (session\.scalars\(.*?\))\)(?=[.)])", r"\1"),
    (r"\bawait asyncio\.to_thread\(([\w.]+), ", r"\1("),
    (r"\b(async|await) ", ""),
    (r"Awaitable\[T\]", "T"),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\b(create_)?async_(engine|sessionmaker)\b", r"\1\2"),
    (r"\bAsync(Connection|Engine|Iterator|Session)\b", r"\1"),
    (r"\b(DbContext|UserRepository)Async\b", r"\1"),
    (r"\bsync_session_class\b", "class_"),
    (r"\bself\.engine\.sync_engine\b", "self.engine"),
    (r"\bis_async=True\b", "is_async=False"),
    (r"\bsqlite\+aiosqlite\b", "sqlite"),
    (r"\ba sync driver\b", "an async driver"),
    (r"\b(one|all) task(s?)\b", r"\1 thread\2"),
]


def body(path: str) -> str:
    """The file without its first lines, which say what it is and what it imports."""
    return re.split(r"^(?=class |# Made once)", (ROOT / path).read_text(), maxsplit=1, flags=re.MULTILINE)[1]


@pytest.mark.parametrize(("asynchronous", "sync"), PAIRS)
def test_only_async_and_await_differ(asynchronous: str, sync: str) -> None:
    translated = body(asynchronous)
    for word, twin in WORDS:
        translated = re.sub(word, twin, translated)
    assert "".join(translated.split()) == "".join(body(sync).split())


def test_every_word_of_the_translation_is_used() -> None:
    both = "".join(body(asynchronous) for asynchronous, _ in PAIRS)
    assert [word for word, _ in WORDS if not re.search(word, both)] == []


def test_database_and_repositories_import_nothing_from_outside() -> None:
    """So that they can be copied; database/migrations, which reads env.py, is copied with it."""
    for path in [*ROOT.glob("database/*.py"), *ROOT.glob("repositories/*.py")]:
        allowed = "database" if path.parent.name == "database" else "database|repositories"
        own = r"env|main|application|composition_root|database|repositories|tests"
        for module in re.findall(rf"^(?:from|import) ({own})\b", path.read_text(), re.MULTILINE):
            assert re.fullmatch(allowed, module), f"{path} imports {module}"
