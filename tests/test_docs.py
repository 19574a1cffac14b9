"""The documents are true: settings, tree and commands are compared with the code. A failing test prints what should stand there."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from app.schemas.adapters import LoadAdapterRequest
from app.schemas.anthropic import MessagesRequest
from app.schemas.batches import BatchRequest
from app.schemas.embeddings import EmbeddingRequest
from app.schemas.estimate import EstimateRequest
from app.schemas.generate import GenerateRequest
from app.schemas.generation import ChatRequest, CompletionRequest
from app.schemas.responses import ResponsesRequest
from app.schemas.scoring import ScoreRequest
from app.schemas.state import ModelCard
from app.schemas.tokens import DetokenizeRequest, TokenizeRequest
from app.settings import Settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SETTINGS = ROOT / "docs/settings.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BODIES = [ChatRequest, CompletionRequest, ResponsesRequest, MessagesRequest, GenerateRequest, ScoreRequest, EmbeddingRequest]
BODIES += [TokenizeRequest, DetokenizeRequest, BatchRequest, LoadAdapterRequest, EstimateRequest]
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
    """Every field of every group, also of a group in a group; a list of groups is one setting."""
    for group, outer in Settings.model_fields.items():
        if outer.default == ():
            yield Setting(group, shown(outer.default), outer.description)
            continue
        for name, field in outer.annotation.model_fields.items():
            if not isinstance(field.default, BaseModel):
                yield Setting(f"{group}.{name}", shown(field.default), field.description)
                continue
            for inner, leaf in type(field.default).model_fields.items():
                yield Setting(f"{group}.{name}.{inner}", shown(leaf.default), f"{field.description}; {leaf.description}")


def shown(default) -> str | None:
    if isinstance(default, tuple):
        return json.dumps(default)
    if default is None or isinstance(default, bool):
        return None if default is None else str(default).lower()
    return str(default).removeprefix(f"{ROOT}/")


def cells(row) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_settings_have_a_meaning():
    assert all(setting.meaning for setting in settings())


def test_settings_table():
    expected = [*HEAD, *(setting.row() for setting in settings())]
    table = [line for line in SETTINGS.read_text().splitlines() if line.startswith("|")]
    found = [cells(line) for index, line in enumerate(table) if index != 1]
    assert found == [cells(line) for index, line in enumerate(expected) if index != 1], "should be\n" + "\n".join(expected)


def test_env_example():
    head = "# Copy to .env and take the # away from what you change. The same names work in the environment.\n\n"
    expected = head + "\n".join(setting.lines() for setting in settings())
    assert (ROOT / ".env.example").read_text() == expected, "should be\n" + expected


def tree() -> list[str]:
    """Paths of the README's tree, its last fenced block; each line is a path from the root and, two blanks or more behind it, a phrase."""
    lines = [line for line in re.findall(r"^```\w*\n(.*?)^```", README.read_text(), re.M | re.S)[-1].splitlines() if line.strip()]
    assert all(re.fullmatch(r"\S+ {2,}\S.*", line) for line in lines), "each line: `path  phrase`"
    return [line.split()[0] for line in lines]


def test_tree_names_what_exists():
    missing = [path for path in tree() if not (ROOT / path).exists() or path.endswith("/") != (ROOT / path).is_dir()]
    assert not missing, f"not on disk, or a folder without / behind it: {missing}"


@pytest.mark.parametrize("folder", [".", "app", "serve"])
def test_tree_names_every_folder_with_code(folder):
    inside = [path for path in (ROOT / folder).iterdir() if path.is_dir() and not path.name.startswith(".") and path.name != "runs"]
    packages = [f"{path.relative_to(ROOT)}/" for path in inside if [*path.glob("*.py")]]
    assert len(packages) > 2 and not set(packages) - set(tree()), f"not in the README's tree: {sorted(set(packages) - set(tree()))}"


def test_the_readme_is_short_and_names_every_page():
    text = README.read_text()
    assert len(text.splitlines()) < 150
    assert [page.name for page in PAGES if page != README and f"{page.relative_to(ROOT)})" not in text] == []


def test_the_readmes_settings_are_settings():
    names = {setting.name for setting in settings()}
    named = set(re.findall(r"`((?:model|server|queue|security|ui)\.[\w.]+)`", "".join(page.read_text() for page in PAGES)))
    named -= {"model.generate"}  # of transformers
    assert len(named) > 20 and named <= names, sorted(named - names)


def test_commands_are_make_targets():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M).group(1).split()
    text = "\n".join(page.read_text() for page in PAGES)
    code = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) + re.findall(r"`([^`\n]+)`", text)
    words = [word for line in "\n".join(code).splitlines() for word in targets(line)]
    assert "run" in words, "the README says how to start it"
    assert set(words) <= set(phony), sorted(set(words) - set(phony))


def targets(line) -> list[str]:
    """`make a b X=1  # why` -> a, b. Only what starts a line of code."""
    found = re.match(r"\$? ?make((?: +[\w./=:\"'-]+)+)", re.sub(r"\"[^\"]*\"|'[^']*'", '""', line))
    return [word for word in found.group(1).split() if "=" not in word] if found else []


def test_modules_that_are_run_exist():
    modules = re.findall(r"python -m ((?:app|serve|ui|loadtest|models)[\w.]*)", "\n".join(page.read_text() for page in PAGES))
    assert {"serve", "app.calibrate"} <= set(modules)
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_code_exist(page):
    named = re.findall(r"`((?:app|serve|ui|loadtest|models|tests|docs)/[\w./-]+\.(?:py|md|c|h|toml))`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_tests_named_in_the_documents_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs/api.md").read_text())
    found: dict[str, str] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        found[path.name] = found.get(path.name, "") + path.read_text()
    missing = [f"{file}::{test}" for file, test in named if not re.search(rf"^def {test}\b", found.get(file, ""), re.M)]
    assert len(named) > 30 and not missing, f"docs/api.md names tests that are not there: {missing}"


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_every_field_of_a_body_is_told(body):
    page = re.sub(r"^```.*?^```", "", (ROOT / "docs/api.md").read_text(), flags=re.M | re.S)
    told = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    assert not set(body.model_fields) - told


def test_the_example_of_a_model_card_has_every_field():
    (example,) = re.findall(r"^```json\n(.*?)^```", section("## Models"), re.M | re.S)
    assert set(json.loads(example)) == set(ModelCard.model_fields)


def section(head) -> str:
    """What stands under a head of docs/api.md."""
    return (ROOT / "docs/api.md").read_text().partition(f"\n{head}\n")[2].partition("\n## ")[0]


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 40
