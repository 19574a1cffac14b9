"""The texts that the bundled detector is measured on: passages of the validation books, and stories of the bundled model.

The prompt of a story uses words of a passage, so that human and machine texts of a book share their topics. Both are cut to whole sentences
by the same rule. Each story is recorded at once, so a second run resumes where the first one stopped.
"""

import gzip
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from app.engine.engine import Engine
from app.engine.events import Delta, Failed
from app.engine.request import Generate, SamplingParams
from app.scoring.journal import read_complete_lines
from app.tokenizer import Tokenizer
from models.train import corpus
from models.train.corpus import SENTENCE_END, Passage

GOAL_TOKENS = (100, 200, 400)  # most tokens of an excerpt
MIDDLE_GOAL = GOAL_TOKENS[1]
MIN_SHARE_OF_GOAL = 0.8  # an excerpt with fewer tokens is left out
SAMPLING = {
    "T=1": SamplingParams(temperature=1.0),
    "T=0.7": SamplingParams(temperature=0.7),
    "T=0.7, top_p=0.9": SamplingParams(temperature=0.7, top_p=0.9),
    "T=1, top_p=0.9": SamplingParams(temperature=1.0, top_p=0.9),
}
MIDDLE_GOAL_ONLY = frozenset(["T=0.7, top_p=0.9", "T=1, top_p=0.9"])  # kinds with the model's default top_p


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A text of about `goal` tokens. `kind` is "human" or a key of `SAMPLING`, `group` a chapter of the book. The keys of stories.jsonl."""

    id: str
    kind: str
    book: str
    group: str
    goal: int
    text: str


@dataclass(frozen=True, slots=True)
class StoryRequest:
    """A story to generate: `excerpt` has its place and an empty text, `job` is the engine's request."""

    excerpt: Excerpt
    job: Generate


def cut_to_sentences(text: str, goal: int, tokenizer: Tokenizer) -> str | None:
    """The longest run of whole sentences from the beginning with at most `goal` tokens; None if it has too few tokens."""
    ends = [match.start() + len(match.group().rstrip()) for match in SENTENCE_END.finditer(text)]
    if text.rstrip().endswith((".", "!", "?", '"')):
        ends.append(len(text.rstrip()))
    token_ends = [end for _, end in tokenizer.encode_with_offsets(text, "text").offsets if end]  # characters up to each token's end
    fitting = [(end, tokens) for end in ends if (tokens := sum(1 for token_end in token_ends if token_end <= end)) <= goal]
    return text[: fitting[-1][0]] if fitting and fitting[-1][1] >= MIN_SHARE_OF_GOAL * goal else None


def passages(folder: Path, tokenizer: Tokenizer) -> Iterator[Excerpt]:
    """Runs of whole sentences from each chapter, one after another, each from the start of a paragraph; the goals take turns."""
    for file in sorted(folder.glob("*.txt.gz")):
        book, number = file.name.removesuffix(".txt.gz"), 0
        chapters = gzip.decompress(file.read_bytes()).decode().strip().split("\n\n")
        for chapter_number, chapter in enumerate(chapters):
            paragraphs = chapter.split("\n")
            while paragraphs:
                goal = GOAL_TOKENS[number % len(GOAL_TOKENS)]
                text = cut_to_sentences(_take_paragraphs(paragraphs, goal, tokenizer), goal, tokenizer)
                number += 1
                if text:
                    yield Excerpt(f"{book}/{number}", "human", book, f"{book}/{chapter_number}", goal, text)


def _take_paragraphs(paragraphs: list[str], goal: int, tokenizer: Tokenizer) -> str:
    """Removes paragraphs from the front of the list until they have more than `goal` tokens, and returns them joined."""
    taken, tokens = [], 0
    while paragraphs and tokens <= goal:
        taken.append(paragraphs.pop(0))
        tokens += len(tokenizer.encode(taken[-1], "text", add_special_tokens=False))
    return "\n".join(taken)


def story_prompt(passage: Excerpt) -> str:
    """Asks for a story about nouns of the passage, or for one that continues its first sentences. The same for the same id."""
    rng, source = random.Random(passage.id), Passage(passage.text, "")
    rules = [corpus.story, corpus.continuation]
    rng.shuffle(rules)
    dialogue = next((dialogue for rule in rules if (dialogue := rule(source, rng))), None)
    return dialogue[0]["content"] if dialogue else "Tell me a story."


def story_requests(humans: Sequence[Excerpt], tokenizer: Tokenizer) -> Iterator[StoryRequest]:
    """A story for each passage and kind of sampling. `min_tokens` prevents an early end; few stories would reach 400 tokens without."""
    for passage in humans:
        prompt = tokenizer.encode_chat([{"role": "user", "content": story_prompt(passage)}])
        for kind, sampling in SAMPLING.items():
            if kind in MIDDLE_GOAL_ONLY and passage.goal != MIDDLE_GOAL:
                continue
            story = replace(passage, id=f"{passage.id}/{kind}", kind=kind, text="")
            params = replace(sampling, seed=_seed_of(story.id), min_tokens=passage.goal + 8)
            yield StoryRequest(story, Generate(story.id, prompt, passage.goal + 16, params))


def _seed_of(id: str) -> int:
    return random.Random(id).getrandbits(62)


def generate_stories(engine: Engine, requests: Sequence[StoryRequest]) -> Iterator[Excerpt]:
    """Yields each story with its text, in the order in which they finish. Raises the error of one that fails."""
    waiting = iter(requests)
    in_flight: dict[str, StoryRequest] = {}
    texts: dict[str, str] = {}
    while True:
        while len(in_flight) < engine.limits.slots and (request := next(waiting, None)):
            engine.submit(request.job)
            in_flight[request.job.id], texts[request.job.id] = request, ""
        if not in_flight:
            return
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Delta):
                texts[event.id] += event.text
                if event.finish:
                    yield replace(in_flight.pop(event.id).excerpt, text=texts.pop(event.id).strip())


def load_or_generate_stories(engine: Engine, tokenizer: Tokenizer, humans: Sequence[Excerpt], path: Path) -> list[Excerpt]:
    """The stories whose whole sentences are long enough. `path` (JSON lines) records every story; only missing ones are generated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stories = [Excerpt(**json.loads(line)) for line in read_complete_lines(path).splitlines()]
    done = {story.id for story in stories}
    missing = [request for request in story_requests(humans, tokenizer) if request.excerpt.id not in done]
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(done) + len(missing), initial=len(done), desc="generate stories", file=sys.stderr) as progress,
    ):
        for story in generate_stories(engine, missing):
            stories.append(story)
            file.write(json.dumps(asdict(story)) + "\n")
            file.flush()
            progress.update()
    return cut_all(stories, tokenizer)


def cut_all(excerpts: Sequence[Excerpt], tokenizer: Tokenizer) -> list[Excerpt]:
    """Cuts each to whole sentences; leaves out those that are too short then."""
    texts = ((excerpt, cut_to_sentences(excerpt.text, excerpt.goal, tokenizer)) for excerpt in excerpts)
    return [replace(excerpt, text=text) for excerpt, text in texts if text]
