"""Texts that are no running prose, and prose that only looks unusual."""

from pathlib import Path

import pytest

from app.scoring.kinds import kind_of

PROSE = (
    'The old king sat by the fire (it was late) and looked at the snow; nobody spoke. "What shall I do?" he said. In 1843 he had sold\n'
    "the mill for 300 crowns - a good price - and since then the geese, the cook & the cat were all that he had. He put on his boots.\n"
    "Then he went out. The wind had turned, and the road was white as far as the bridge. He thought of his sons, and of the sea.\n"
    "Nobody answered him when he called, so he called again and again until the dogs of the town began to answer one another."
)
VERSE = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance or nature's changing course untrimm'd;"""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (PROSE, None),
        (PROSE.replace("\n", " "), None),
        ("\n".join(PROSE.replace("\n", " ").split(". ")), None),
        ("", None),
        (Path(__file__).read_text(), "code"),
        ("#include <stdio.h>\nint main(void) {\n    printf(\"hello\");\n    return 0;\n}\n", "code"),
        ("{\"a\": [1, 2, {\"b\": null}], \"c\": {\"d\": \"e\"}, \"f\": [[[]]]}", "code"),
        (VERSE, "verse"),
        (VERSE.lower(), None),
        ("- bread\n- milk and honey\n* eggs, if there are any\n- flour\n", "list"),
        ("1. Heat the oven.\n2. Mix the flour.\n3. Wait an hour.\n4) Bake it.", "list"),
        ("name | age | town\n--- | --- | ---\nAnn | 31 | Rome\nBob | 42 | Bath\n", "table"),
        ("year\tsold\n1998\t23\n1999\t42\n2000\t57\n", "table"),
    ],
)  # fmt: skip
def test_the_kind_of_a_text(text: str, kind: str | None) -> None:
    assert kind_of(text) == kind


def test_a_megabyte_takes_no_time_to_speak_of() -> None:
    assert kind_of("a(" * 500_000) == "code"
    assert kind_of(" " * 1_000_000) is None
    assert kind_of("a\n" * 500_000) is None
    assert kind_of(("a(" * 100_000 + "\n") * 5) == "code"
    assert kind_of(("a(" * 190 + "\n") * 2_000) == "code"
