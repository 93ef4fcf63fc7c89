"""The two stacks say the same, and imports run one way."""

import re
from pathlib import Path

import pytest

from tests.twins import synchronous

ROOT = Path(__file__).parents[1]
TWINS = ["database/context", "repositories/repository", "repositories/user_repository"]
OUTSIDE = {
    "database": "env|main|application|composition_root|repositories|tests",
    "repositories": "env|main|application|composition_root|tests",
}


def words(code: str) -> str:
    """Return the code after its imports, without what ruff adds to break a line."""
    return re.sub(r"[\s(),]", "", code.partition("\nclass ")[2])


@pytest.mark.parametrize("path", TWINS)
def test_only_async_and_await_differ(path: str) -> None:
    twin = synchronous((ROOT / f"{path}_async.py").read_text())
    assert words(twin) == words((ROOT / f"{path}.py").read_text())


@pytest.mark.parametrize("folder", OUTSIDE)
def test_a_folder_imports_nothing_from_outside(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        imports = rf"^\s*(from|import) ({OUTSIDE[folder]})\b"
        assert not re.search(imports, path.read_text(), re.MULTILINE), path
