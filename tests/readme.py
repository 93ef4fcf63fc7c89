"""A reader who does what a README says, in a folder of their own."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
INHERITED = re.compile("HOME$|PATH$|UV_|XDG_")


class Block(NamedTuple):
    """A fenced block of code. A Python block may name its file in a comment."""

    language: str
    code: str
    file: str


def page(name: str, title: str = "") -> str:
    """Return a page, or the section of it that has this title."""
    text = (ROOT / name).read_text()
    if title:
        text = text.split(f"# {title}\n")[1]
        text = re.split(r"^##+ ", text, flags=re.MULTILINE)[0]
    return text


def blocks(text: str) -> list[Block]:
    block = r"^```(\w+)\n((?:# (\S+\.py)\n)?.*?)^```$"
    return [Block(*each) for each in re.findall(block, text, re.MULTILINE | re.DOTALL)]


def as_sync(text: str) -> str:
    """Return what the README says for async code as it reads for sync code."""
    text = text.replace("sqlalchemy.ext.asyncio", "sqlalchemy.orm")
    asynchronous = r"\b(async|await) |Async|_async|\+aiosqlite| aiosqlite|\[asyncio\]"
    return re.sub(rf"{asynchronous}|import asyncio\n\n|asyncio\.run(?=\()", "", text)


class Reader:
    """Works in a folder, without a network. uv installs from its cache."""

    def __init__(self, folder: Path, **variables: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        inherited = {k: v for k, v in os.environ.items() if INHERITED.match(k)}
        self.variables = inherited | {"UV_OFFLINE": "1"} | variables

    def run(self, commands: str) -> str:
        """Return what the commands print."""
        kwargs: Any = {"cwd": self.folder, "env": self.variables, "text": True}
        done = subprocess.run(["bash", "-euc", commands], capture_output=True, **kwargs)
        assert done.returncode == 0, commands + done.stdout + done.stderr
        return str(done.stdout)

    def follow(self, *steps: Block) -> None:
        """Write the files, run the commands, and compare what they print."""
        program = printed = ""
        for block in steps:
            if block.file:
                path = self.folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.code)
                program = f"uv run {block.file}"
            elif block.language == "sh":
                printed = self.run(block.code)
                program = ""
            elif block.language == "toml":
                self.edit("pyproject.toml", r"\Z", "\n" + block.code)
            elif block.language == "text":
                if program:  # the page leaves its command out
                    printed = self.run(program)
                assert printed == block.code, printed

    def edit(self, file: str, pattern: str, replacement: str = "") -> None:
        """Replace what is found in a file, and fail if there is nothing."""
        text = (self.folder / file).read_text()
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count, f"{file} has no {pattern}"
        (self.folder / file).write_text(text)
