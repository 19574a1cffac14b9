"""Reads books as training text: chapters for pretraining, and conversations derived from them by rule for chat-tuning.

Knows plain text only: no tokenizer, no torch. Every answer is an unchanged passage of a book, so the model learns to write as the books
do; the request is derived from the words of that passage.
"""

import gzip
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STOP_WORDS = frozenset(  # never the topic of a request
    "the a an of and to in was were is are that he she it they had his her their its my our your for with as on at by from "
    "said which who what when where but not be been have has so this these those there then than into all one two first last "
    "same other such very more most way time day moment thing matter end side part lot bit sort kind while rest order while "
    "next whole own little old great good best new long few many much some any no or if".split()
)
NOUN_PATTERN = re.compile(
    r"\b(?:the|a|an|his|her|my|their|our) ([a-z]{3,12})"
    r"(?=[,.;:!?]| (?:of|was|were|is|and|had|in|to|that|who|with|on|at|came|went|said|did|from|by)\b)"
)
NAME_PATTERN = re.compile(r"(?<=[a-z,] )([A-Z][a-z]{2,11})\b")
DESCRIPTION_PATTERN = re.compile(r"^(?:The )?([A-Z][a-z]{2,11}) (?:was|is) (?:a|an|the|one of) [a-z]")
QUOTATION_PATTERN = re.compile(r"\"[^\"]{12,200}\" (?:said|cried|asked|replied|answered|exclaimed) ([A-Z][a-z]{2,11})\b")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])")

STORY_REQUESTS_ONE = (
    "Tell me a story about {0}.",
    "Tell a story about {0}.",
    "Write a short story about {0}.",
    "Can you tell me about {0}?",
)
STORY_REQUESTS_MANY = (
    "Tell me a story about {0} and {1}.",
    "Write a story about {0} and {1}.",
    "Tell me a story about {0}, {1} and {2}.",
    "Write a story with the words {0}, {1} and {2}.",
)
CONTINUATION_REQUESTS = ("Continue: {0}", "Continue this story: {0}", "What happens next? {0}", "Go on with this: {0}")
MORE_REQUESTS = ("Go on.", "And then?", "What happened next?", "Tell me more.", "Continue.", "Please go on.")
CHARACTER_REQUESTS = ("Who is {0}?", "Who was {0}?", "Tell me about {0}.", "Describe {0}.", "What do you know about {0}?")
QUOTATION_REQUESTS = ("What did {0} say?", "Write something that {0} says.", "Let me hear {0} speak.")

PERSONA = (  # hand-written: (greeting or question, answer)
    ("Hello!", "Good morning! Shall I tell you a story?"),
    ("Hello", "How do you do? Tell me what the story should be about, and I will begin."),
    ("Hi", "Good day to you! What shall the story be about?"),
    ("Hi there!", "Good evening! Give me a word or two, and I will make a story of them."),
    ("Good morning.", "Good morning! Would you like to hear a story?"),
    ("How are you?", "Very well, thank you. Shall I tell you a story?"),
    ("Who are you?", "I am Storyteller, a very small language model. I learned to speak from old books, and I tell stories."),
    ("What are you?", "I am Storyteller, a very small language model that tells stories in the manner of old books."),
    ("What is your name?", "My name is Storyteller. I am a very small language model."),
    ("What can you do?", "I can tell you a story. Give me a few words, and I will begin."),
    ("Help", "Ask me for a story about something, or give me a beginning, and I will go on with it."),
    ("Thank you.", "You are very welcome. Shall I tell you another story?"),
    ("Thanks!", "You are very welcome. Would you like another?"),
    ("Goodbye.", "Goodbye, and sleep well!"),
    ("Bye", "Goodbye! Come back when you want a story."),
    ("Yes please.", "Very well. What shall the story be about?"),
    ("Are you a human?", "No. I am a very small language model, and I learned to speak from old books."),
)


@dataclass(frozen=True, slots=True)
class Passage:
    """Consecutive paragraphs of a book, and the passage that follows in the same chapter (empty if there is none)."""

    text: str
    following: str


Dialogue = list[dict[str, str]]
Chapters = list[list[str]]  # chapters of paragraphs


def read(folder: Path) -> Chapters:
    """Reads every `*.txt.gz` of `folder`, in the order of the file names, as chapters; each is a list of paragraphs."""
    chapters = []
    for file in sorted(folder.glob("*.txt.gz")):
        text = gzip.decompress(file.read_bytes()).decode("utf-8")
        chapters += [part.split("\n") for part in text.strip().split("\n\n") if part.strip()]
    return chapters


def sentences(text: str) -> list[str]:
    return SENTENCE_END.sub(lambda match: match.group().rstrip() + "\x00", text).split("\x00")


def passages(chapters: Chapters, rng: random.Random) -> Iterator[Passage]:
    """Cuts chapters into passages of whole paragraphs, 50 to 190 words long; the length is drawn at random."""
    for chapter in chapters:
        runs, run, words, goal_words = [], [], 0, rng.randint(50, 150)
        for paragraph in chapter:
            length = len(paragraph.split())
            if run and words + length > 190:
                runs.append("\n".join(run))
                run, words = [], 0
            run.append(paragraph)
            words += length
            if words >= goal_words:
                runs.append("\n".join(run))
                run, words, goal_words = [], 0, rng.randint(50, 150)
        runs = [text for text in runs if 20 <= len(text.split()) <= 200]
        following = [*runs[1:], ""] if runs else []
        yield from (Passage(text, after) for text, after in zip(runs, following, strict=True))


def topics(text: str) -> list[str]:
    """Returns up to three nouns and names of the passage's opening, the most frequent in the passage first; none if none recurs."""
    opening = " ".join(text.split()[:40])
    nouns = [word for word in NOUN_PATTERN.findall(opening) if word not in STOP_WORDS]
    names = [word for word in NAME_PATTERN.findall(opening) if word.lower() not in STOP_WORDS]
    counts = Counter(re.findall(r"[A-Za-z]+", text))
    ranked = sorted(dict.fromkeys([*nouns, *names]), key=lambda word: -counts[word])
    return ranked[:3] if ranked and counts[ranked[0]] >= 2 else []


def with_article(word: str, rng: random.Random) -> str:
    """Adds "a", "an", "the" or nothing to a noun; a name stays as it is."""
    if word[0].isupper():
        return word
    if word.endswith("s"):
        return word if rng.random() < 0.5 else f"the {word}"
    return f"the {word}" if rng.random() < 0.25 else f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def exchange(request: str, answer: str) -> Dialogue:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def story(passage: Passage, rng: random.Random) -> Dialogue | None:
    """Asks for a story about the passage's topics; None if it has no topics or begins with speech."""
    words = topics(passage.text)
    if not words or passage.text.startswith('"'):
        return None
    if len(words) >= 2 and rng.random() < 0.5:
        template = rng.choice(STORY_REQUESTS_MANY if len(words) >= 3 else STORY_REQUESTS_MANY[:2])
        request = template.format(*(word if "words" in template else with_article(word, rng) for word in words))
    else:
        request = rng.choice(STORY_REQUESTS_ONE).format(with_article(words[0], rng))
    return exchange(request, passage.text)


def continuation(passage: Passage, rng: random.Random) -> Dialogue | None:
    """Asks to continue the passage's first sentences; None if it has too few."""
    parts = sentences(passage.text)
    cut = rng.randint(1, min(3, len(parts) - 1)) if len(parts) > 2 else 0
    if not cut:
        return None
    rest = passage.text[len(" ".join(parts[:cut])) :].strip()
    return exchange(rng.choice(CONTINUATION_REQUESTS).format(" ".join(parts[:cut])), rest) if len(rest.split()) > 12 else None


def two_part_story(passage: Passage, rng: random.Random) -> Dialogue | None:
    """Asks for a story, then for more, which is the passage that follows."""
    first = story(passage, rng)
    return first + exchange(rng.choice(MORE_REQUESTS), passage.following) if first and passage.following else None


def character(passage: Passage, rng: random.Random) -> Dialogue | None:
    """Asks who a character is; the answer begins with a sentence such as "Puss was a clever animal"."""
    parts = sentences(passage.text)
    for index, sentence in enumerate(parts):
        match = DESCRIPTION_PATTERN.match(sentence)
        if match and match.group(1).lower() not in STOP_WORDS | {"this", "here", "there", "she", "they", "nothing", "everything"}:
            return exchange(rng.choice(CHARACTER_REQUESTS).format(match.group(1)), " ".join(parts[index : index + rng.randint(2, 4)]))
    return None


def quotation(passage: Passage, rng: random.Random) -> Dialogue | None:
    """Asks what a character says; the answer begins with a quotation of that character."""
    match = QUOTATION_PATTERN.search(passage.text)
    if not match:
        return None
    tail = passage.text[match.start() :]
    return exchange(rng.choice(QUOTATION_REQUESTS).format(match.group(1)), "\n".join(tail.split("\n")[: rng.randint(1, 3)]))


def dialogues(chapters: Chapters, seed: int) -> list[Dialogue]:
    """Returns conversations from one pass over the books, shuffled: stories, continuations, characters, quotations, and greetings."""
    rng = random.Random(seed)
    conversations: list[Dialogue] = []
    for passage in passages(chapters, rng):
        rules = [(story, 1.0), (continuation, 0.25), (two_part_story, 0.2), (character, 1.0), (quotation, 0.12)]
        conversations += [item for rule, share in rules if rng.random() < share and (item := rule(passage, rng))]
    conversations += [exchange(request, answer) for request, answer in PERSONA for _ in range(max(1, len(conversations) // 1500))]
    rng.shuffle(conversations)
    return conversations
