"""The documents are true: settings, tree and commands are compared with the code. A failing test prints what should stand there."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
HEAD = ["| setting | default | environment | meaning |", "| --- | --- | --- | --- |"]


@dataclass(frozen=True)
class Setting:
    name: str
    default: str | None
    meaning: str

    @property
    def environment(self) -> str:
        return "LITMUS_" + self.name.replace(".", "__").upper()

    def row(self) -> str:
        default = "" if self.default is None else f"`{self.default}`"
        meaning = self.meaning.replace("|", "\\|")
        return f"| `{self.name}` | {default} | `{self.environment}` | {meaning} |"

    def lines(self) -> str:
        return f"# {self.meaning}\n# {self.environment}={self.default or ''}\n"


def settings() -> Iterator[Setting]:
    """Every field of every group; a list of groups is one setting."""
    for group, outer in Settings.model_fields.items():
        if outer.default == ():
            yield Setting(group, shown(outer.default), outer.description)
            continue
        for name, field in outer.annotation.model_fields.items():
            yield Setting(f"{group}.{name}", shown(field.default), field.description)


def shown(default) -> str | None:
    if isinstance(default, tuple):
        return json.dumps(default)
    if default is None or isinstance(default, bool):
        return None if default is None else str(default).lower()
    return str(default).removeprefix(f"{ROOT}/")


def section(title) -> str:
    """Text under `## title`, up to the next heading of that level."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README.read_text(), re.M | re.S)
    assert found, f"README.md has no section `## {title}`"
    return found.group(1)


def fence(text) -> list[str]:
    found = re.search(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    assert found, "no fenced block"
    return [line for line in found.group(1).splitlines() if line.strip()]


def cells(row) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_settings_have_a_meaning():
    assert all(setting.meaning for setting in settings())


def test_settings_table():
    expected = [*HEAD, *(setting.row() for setting in settings())]
    table = [line for line in section("Settings").splitlines() if line.startswith("|")]
    found = [cells(line) for index, line in enumerate(table) if index != 1]
    assert found == [cells(line) for index, line in enumerate(expected) if index != 1], "should be\n" + "\n".join(expected)


def test_env_example():
    head = "# Copy to .env and take the # away from what you change. The same names work in the environment.\n\n"
    expected = head + "\n".join(setting.lines() for setting in settings())
    assert (ROOT / ".env.example").read_text() == expected, "should be\n" + expected


def tree() -> list[str]:
    """Paths of the README's tree; each line is a path from the root and, two blanks or more behind it, a phrase."""
    lines = fence(section("Tree"))
    assert all(re.fullmatch(r"\S+ {2,}\S.*", line) for line in lines), "each line: `path  phrase`"
    return [line.split()[0] for line in lines]


def test_tree_names_what_exists():
    missing = [path for path in tree() if not (ROOT / path).exists() or path.endswith("/") != (ROOT / path).is_dir()]
    assert not missing, f"not on disk, or a folder without / behind it: {missing}"


@pytest.mark.parametrize("folder", ["app", "serve", "ui"])
def test_tree_names_every_module(folder):
    inside = sorted((ROOT / folder).iterdir())
    modules = [f"{folder}/{path.name}" for path in inside if path.suffix == ".py"]
    packages = [f"{folder}/{path.name}/" for path in inside if path.is_dir() and [*path.glob("*.py")]]
    missing = sorted({*modules, *packages} - set(tree()))
    assert not missing, f"not in the README's tree: {missing}"


def test_commands_are_make_targets():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M).group(1).split()
    text = README.read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    code = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) + re.findall(r"`([^`\n]+)`", text)
    words = [word for line in "\n".join(code).splitlines() for word in targets(line)]
    assert "run" in words, "the README says how to start it"
    assert set(words) <= set(phony), sorted(set(words) - set(phony))


def targets(line) -> list[str]:
    """`make a b X=1  # why` -> a, b. Only what starts a line of code."""
    found = re.match(r"\$? ?make((?: +[\w./=:\"'-]+)+)", line)
    return [word for word in found.group(1).split() if "=" not in word] if found else []


def test_modules_that_are_run_exist():
    for module in re.findall(r"python -m ((?:app|serve|ui|loadtest|models)[\w.]*)", README.read_text()):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text()):
        assert (ROOT / target).exists(), target


def test_tests_named_in_the_documents_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs/api.md").read_text())
    found = {path.name: path.read_text() for path in (ROOT / "tests/serve").rglob("test_*.py")}
    missing = [f"{file}::{test}" for file, test in named if not re.search(rf"^def {test}\b", found.get(file, ""), re.M)]
    assert len(named) > 30 and not missing, f"docs/api.md names tests that are not there: {missing}"


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 40
