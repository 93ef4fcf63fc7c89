"""Turns asynchronous code into its synchronous twin.

The tests in tests/stacks/ are written once, for the async stack. When pytest starts, it
copies them to tests/stacks_sync/ with the words below replaced, so that each test runs
in both stacks. test_twins.py compares the template's own twins in the same way.
"""

import re
from pathlib import Path

TESTS = Path(__file__).parent
# What async code says, and what stands in its place in sync code.
WORDS = [
    (r"\ban AsyncSession\b", "a Session"),
    (r"\b(async|await) ", ""),
    (r"\b([A-Z]\w+)Async\b", r"\1"),
    (r"\b(\w+)_(async|ASYNC)\b", r"\1"),
    (r"\bAsync(Iterator|Session|Engine)\b", r"\1"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\bsqlalchemy\.ext\.asyncio\b", "sqlalchemy.orm"),
    (r"\basyncio\b", "time"),
    (r"\b(\w+)\.run_sync\(([\w.]+)((, \w+)?)\)", r"\2(\1\3)"),
    (r"\b(\w+)\.run_sync\((lambda .*)\)$", r"(\2)(\1)"),
    (r"\basync_sessionmaker\b", "sessionmaker"),
    (r"\bcreate_async_engine\b", "create_engine"),
    (r"\.sync_engine\b", ""),
    (r"\bsqlite\+aiosqlite\b", "sqlite"),
    (r"\btests\.stacks\b", "tests.stacks_sync"),
]


def synchronous(code: str) -> str:
    for word, replacement in WORDS:
        code = re.sub(word, replacement, code, flags=re.MULTILINE)
    return code


def write_synchronous_tests() -> None:
    """Write the twins. Delete their folder after you have renamed a file."""
    folder = TESTS / "stacks_sync"
    folder.mkdir(exist_ok=True)
    for path in (TESTS / "stacks").glob("*.py"):
        twin, code = folder / path.name, synchronous(path.read_text())
        # Another pytest may be running the tests that are there.
        is_outdated = not twin.exists() or twin.read_text() != code
        if is_outdated and "_async" not in path.name:
            twin.write_text(code)
