"""The two stacks say the same, word for word: what is done to one is done to the other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TWINS = ["database/context", "repositories/repository", "repositories/user_repository"]
REPLACED = "models.py versions user_repository.py user_repository_async.py __pycache__"  # by the reader's own
# async, and what stands in its place in the sync twin
WORDS = [
    (r"\b(async|await) ", ""),
    (r"\b(\w+)Async\b", r"\1"),
    (r"\b(Abstract)?Async(ContextManager|Iterator|Session)\b", r"\1\2"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\bAwaitable\[T\]", "T"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bconnection\.run_sync\(([\w.]+)\)", r"\1(connection)"),
    (r"\breaders = (.*)\.sync_engine(.*)\s+(self\.read_session = ).*", r"\3\1\2"),
    (r"\b(create_)?async_(engine|sessionmaker)\b", r"\1\2"),
    (r"\bis_async=True\b", "is_async=False"),
    (r"\bsqlite\+aiosqlite\b", "sqlite"),
    (r"\b(one|all) task(s?)\b", r"\1 thread\2"),
]


def body(path: str) -> str:
    """The file without its first lines, which say what it is and what it imports."""
    return re.split(r"^(?=class |[A-Z_]+ =)", (ROOT / path).read_text(), maxsplit=1, flags=re.MULTILINE)[1]


@pytest.mark.parametrize("path", TWINS)
def test_only_async_and_await_differ(path: str) -> None:
    text = body(f"{path}_async.py")
    for word, twin in WORDS:
        text = re.sub(word, twin, text)
    assert text.split() == body(f"{path}.py").split()


def test_every_word_of_the_translation_is_used() -> None:
    text = "".join(body(f"{path}_async.py") for path in TWINS)
    assert [word for word, _ in WORDS if not re.search(word, text)] == []


def test_imports_run_one_way() -> None:
    """So that both folders can be copied; the environment of Alembic, which reads env.py, is copied with it."""
    outside = {"database": "env|main|application|composition_root|repositories|tests"}
    outside["repositories"] = outside["database"].replace("repositories|", "")
    for folder, modules in outside.items():
        for path in (ROOT / folder).glob("*.py"):
            assert not re.search(rf"^\s*(from|import) ({modules})\b", path.read_text(), re.MULTILINE), path


def test_what_is_copied_unchanged_says_nothing_of_the_demo() -> None:
    files = [path for folder in ("database", "repositories") for path in (ROOT / folder).rglob("*.*")]
    copied = [path for path in files if set(path.relative_to(ROOT).parts).isdisjoint(REPLACED.split())]
    assert len(copied) > 10
    for path in copied:
        text = path.read_text().replace("user:password@", "")
        assert not re.search(r"\busers?\b|userdb|userrepo|salar|tax.?acc", text, re.IGNORECASE), path
