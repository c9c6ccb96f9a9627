"""What the README promises is there: its files, commands, options and extras. `test_demo.py` runs its lines of Python."""

import re
import tomllib
from pathlib import Path

import pytest

from jaxq import cli

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines() if line.startswith("jaxq ")]


def test_the_first_block_is_ten_lines_of_python_at_most():
    kind, block = BLOCKS[0]
    lines = [line for line in block.splitlines() if line.strip()]
    assert kind == "python"
    assert len(lines) <= 10
    assert "jaxq.quantize" in block


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_every_link_leads_somewhere(target):
    assert target.startswith("https://") or (REPOSITORY / target).exists()


def test_there_are_commands():
    assert COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_exists(command, capsys):
    name, *words = command.partition("#")[0].split()[1:]
    assert cli.main([name, "--help"]) == 0
    known = re.findall(r"(?m)^ +(-\w)?,? *(--[\w-]+)", capsys.readouterr().out)
    options = {word for word in words if word.startswith("-")}
    assert options <= {option for each in known for option in each}


@pytest.mark.parametrize("target", re.findall(r"(?m)^make (\w+)", README))
def test_every_make_target_exists(target):
    assert re.search(rf"(?m)^{target}:", (REPOSITORY / "Makefile").read_text())


def test_the_extras_in_the_table_are_those_of_the_package():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    table = README[README.index("| extra |") : README.index("## What the data can be")]
    rows = re.findall(r"(?m)^\| (`.*?) \|", table)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(project["optional-dependencies"])
