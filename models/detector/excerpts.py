"""Passages of the validation books, and the bundled model's own stories of the same lengths: what its detector is measured on.

    python -m models.detector          (which calls this)

A story is asked for with the words of a passage, so both sides of a book are about the same things. Both are cut to whole sentences by
the same rule. Stories are written down one by one; a second run goes on where the first one stopped.
"""

import gzip
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from app.engine.engine import Engine
from app.engine.request import Delta, Failed, Generate, Sampling
from app.scoring.journal import mended
from app.tokenizer import Tokenizer
from models.train import corpus
from models.train.corpus import SENTENCE_END, Passage

GOALS = (100, 200, 400)  # tokens at most; at least SHORTEST of it
SHORTEST = 0.8
SETTINGS = {
    "T=1": Sampling(temperature=1.0),
    "T=0.7": Sampling(temperature=0.7),
    "T=0.7, top_p=0.9": Sampling(temperature=0.7, top_p=0.9),
    "T=1, top_p=0.9": Sampling(temperature=1.0, top_p=0.9),
}
SERVED = frozenset(["T=0.7, top_p=0.9", "T=1, top_p=0.9"])  # with top_p as the model's own defaults have it; for the middle length only


@dataclass(frozen=True, slots=True)
class Piece:
    """A text of about `goal` tokens. `kind` is "human" or a key of `SETTINGS`; `group` a chapter of a book."""

    id: str
    kind: str
    book: str
    group: str
    goal: int
    text: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A story still to be told, of which `piece` has no text yet."""

    piece: Piece
    job: Generate


def cut(text: str, goal: int, tokenizer: Tokenizer) -> str | None:
    """The longest run of whole sentences from the beginning with at most `goal` tokens; None where it is much shorter."""
    ends = [match.start() + len(match.group().rstrip()) for match in SENTENCE_END.finditer(text)]
    if text.rstrip().endswith((".", "!", "?", '"')):
        ends.append(len(text.rstrip()))
    last = [end for _, end in tokenizer.read(text, "text").offsets if end]  # characters up to each token's end
    fits = [(end, tokens) for end in ends if (tokens := sum(1 for one in last if one <= end)) <= goal]
    return text[: fits[-1][0]] if fits and fits[-1][1] >= SHORTEST * goal else None


def passages(folder: Path, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Runs of whole sentences that begin where a paragraph does, one after another through each chapter, the goals in turn."""
    for file in sorted(folder.glob("*.txt.gz")):
        book, turn = file.name.removesuffix(".txt.gz"), 0
        chapters = gzip.decompress(file.read_bytes()).decode().strip().split("\n\n")
        for number, chapter in enumerate(chapters):
            paragraphs = chapter.split("\n")
            while paragraphs:
                goal = GOALS[turn % len(GOALS)]
                text = cut(_run(paragraphs, goal, tokenizer), goal, tokenizer)
                turn += 1
                if text:
                    yield Piece(f"{book}/{turn}", "human", book, f"{book}/{number}", goal, text)


def _run(paragraphs: list[str], goal: int, tokenizer: Tokenizer) -> str:
    """Takes paragraphs off the front until they have more than `goal` tokens."""
    taken, tokens = [], 0
    while paragraphs and tokens <= goal:
        taken.append(paragraphs.pop(0))
        tokens += len(tokenizer.encode(taken[-1], "text", special=False))
    return "\n".join(taken)


def request(piece: Piece) -> str:
    """For a story about the nouns of the passage, or for one that goes on from its first sentences."""
    rng, passage = random.Random(piece.id), Passage(piece.text, "")
    rules = [corpus.about, corpus.proceed]
    rng.shuffle(rules)
    found = next((made for rule in rules if (made := rule(passage, rng))), None)
    return found[0]["content"] if found else "Tell me a story."


def wanted(humans: Sequence[Piece], tokenizer: Tokenizer) -> Iterator[Wanted]:
    """One story a passage and setting. The end is held back until the length is reached, or few would reach 400 tokens."""
    for piece in humans:
        prompt = tokenizer.chat([{"role": "user", "content": request(piece)}])
        for kind, sampling in SETTINGS.items():
            if kind in SERVED and piece.goal != GOALS[1]:
                continue
            told = Piece(f"{piece.id}/{kind}", kind, piece.book, piece.group, piece.goal, "")
            drawn = Sampling(sampling.temperature, top_p=sampling.top_p, seed=_seed(told.id), min_tokens=piece.goal + 8)
            yield Wanted(told, Generate(told.id, prompt, piece.goal + 16, drawn))


def _seed(id: str) -> int:
    return random.Random(id).getrandbits(62)


def tell(engine: Engine, stories: Sequence[Wanted]) -> Iterator[tuple[Wanted, str]]:
    """Each with its whole text, as they end."""
    waiting = iter(stories)
    flying: dict[str, Wanted] = {}
    texts: dict[str, str] = {}
    while True:
        while len(flying) < engine.limits.slots and (one := next(waiting, None)):
            engine.submit(one.job)
            flying[one.piece.id], texts[one.piece.id] = one, ""
        if not flying:
            return
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Delta):
                texts[event.id] += event.text
                if event.finish:
                    yield flying.pop(event.id), texts.pop(event.id)


def stories(engine: Engine, tokenizer: Tokenizer, humans: Sequence[Piece], path: Path) -> list[Piece]:
    """Those whose whole sentences are long enough. `path` keeps all of them as they come, JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [Piece(**json.loads(line)) for line in mended(path).splitlines()]
    done = {piece.id for piece in known}
    left = [one for one in wanted(humans, tokenizer) if one.piece.id not in done]
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(done) + len(left), initial=len(done), desc="tell", file=sys.stderr) as bar,
    ):
        for one, text in tell(engine, left):
            known.append(Piece(**{**asdict(one.piece), "text": text.strip()}))
            file.write(json.dumps(asdict(known[-1])) + "\n")
            file.flush()
            bar.update()
    shortened = ((piece, cut(piece.text, piece.goal, tokenizer)) for piece in known)
    return [Piece(**{**asdict(piece), "text": text}) for piece, text in shortened if text]
