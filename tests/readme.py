"""Somebody who follows the README to the letter, in a folder of their own and without a network."""

import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from tests.commands import clean_environment
from tests.conftest import missing

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
TEMPORARY = (".git", ".venv*", "build", "*.egg-info", ".*_cache", "__pycache__", "*.db*", "uv.lock")


class Block(NamedTuple):
    language: str
    code: str


def read(section: str) -> str:
    return re.split(r"\n## |\Z", TEXT.partition(f"\n## {section}\n")[2])[0]


def blocks(section: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", read(section), re.MULTILINE | re.DOTALL)]


def found(pattern: str, section: str) -> str:
    """What the pattern's group is in the section, once."""
    [text] = re.findall(pattern, read(section))
    return str(text)


class Reader:
    def __init__(self, folder: Path, environment: Path = Path(sys.prefix), **variables: str) -> None:
        if not shutil.which("uv"):
            missing("the README's commands need uv")
        self.folder = folder
        uv = {"UV_PROJECT_ENVIRONMENT": str(environment), "UV_OFFLINE": "1"}
        ours = ("VIRTUAL_ENV", "PYTHONPATH")
        self.variables = {key: value for key, value in clean_environment().items() if key not in ours} | uv | variables

    def clone(self) -> "Reader":
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*TEMPORARY))
        return self

    def run(self, commands: str) -> str:
        """What the commands print; those that fail are a failure."""
        words = ["bash", "-euc", commands]
        as_it_is = {"UV_FROZEN" if "uv add" in commands else "UV_NO_SYNC": "1"}  # neither resolves nor installs
        done = subprocess.run(words, cwd=self.folder, env=self.variables | as_it_is, capture_output=True, text=True)
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def do(self, block: Block) -> str:
        """Run commands or a program; or write a file, if its first line says which."""
        if block.language == "sh":
            return self.run(block.code)
        if path := re.match(r"# (\S+\.py)\n", block.code):
            (self.folder / path[1]).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path[1]).write_text(block.code)
            return ""
        (self.folder / "snippet.py").write_text(block.code)
        return self.run("PYTHONWARNINGS=error uv run snippet.py")


def environment(folder: Path, packages: list[str]) -> Path:
    """An environment that holds these packages and what they require: links to those that are installed here."""
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    wanted, seen = [Requirement(package) for package in packages], set[str]()
    while wanted:
        package = wanted.pop()
        installed = distribution(package.name)
        extras = [{"extra": extra} for extra in package.extras or {""}]
        needed = [Requirement(text) for text in installed.requires or ()]
        new = [one for one in needed if not one.marker or any(map(one.marker.evaluate, extras))]
        wanted += [one for one in new if str(one) not in seen]
        seen |= {str(one) for one in new}
        for name in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(installed.locate_file(name))))
        for script in installed.entry_points.select(group="console_scripts"):
            program = folder / "bin" / script.name
            program.write_text(f"#!{folder}/bin/python\nfrom {script.module} import {script.attr} as main\nmain()\n")
            program.chmod(0o755)
    return folder
