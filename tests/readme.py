"""The README's blocks of code, and a way to run them as typed."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.conftest import missing

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


class Block(NamedTuple):
    section: str
    language: str
    code: str


def blocks() -> list[Block]:
    found, section = [], ""
    for heading, language, code in re.findall(r"^#+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        section = heading or section
        if code:
            found.append(Block(section, language, code))
    return found


BLOCKS = blocks()
used: set[Block] = set()


def block(section: str, language: str, number: int = 0) -> str:
    chosen = [block for block in BLOCKS if block[:2] == (section, language)][number]
    used.add(chosen)
    return chosen.code


def need_uv() -> None:
    if not shutil.which("uv"):
        missing("the README's commands need uv")


def run(command: str | list[str], folder: Path, **variables: str) -> str:
    """Run as typed and return what it prints; fail with its output if it fails."""
    # as on a person's machine
    hidden = ("VIRTUAL_ENV", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = ["bash", "-ec", command] if isinstance(command, str) else command
    done = subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(code: str, folder: Path, **variables: str) -> str:
    (folder / "snippet.py").write_text(code)
    return run([".venv/bin/python", "-W", "error", "snippet.py"], folder, **variables)
