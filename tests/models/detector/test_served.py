"""The table of what a server answers: verdicts with and without warnings, from recorded scores; and answers to measure."""

import json
from pathlib import Path

import pytest

from app.scoring.calibration import SMOLLM2_PATH, load
from app.scoring.sources import LabelledText
from models.detector import answers, default, served
from models.detector.served import Record, key_of


def text(content: str, machine: bool = False, domain: str = "news") -> LabelledText:
    return LabelledText(content, machine, "", domain)


def test_a_warning_takes_the_verdict_and_short_texts_do_not_count() -> None:
    calibration = load(SMOLLM2_PATH)
    beyond = {target: calibration.methods["combined"].buckets[0].threshold(target).value + 0.01 for target in (0.01, 0.05)}
    records = {
        key_of("a"): Record(100, beyond[0.01]),
        key_of("b"): Record(100, beyond[0.01], ("memorised", "short")),
        key_of("c"): Record(100, beyond[0.05], ("short",)),
        key_of("d"): Record(100, -7.0, ("list",)),
        key_of("e"): Record(20, 9.0),
    }
    kinds = {"news, human": [text(letter) for letter in "abcdef"]}
    assert list(served.rows_of(kinds, records, calibration)) == [["news, human", "4", "50.0%", "25.0%", "50.0%", "0.0%", "25.0%", "25.0%"]]


def test_kinds_are_people_first_and_of_limited_size() -> None:
    texts = [*[text(f"m{n}", True) for n in range(5)], *[text(f"h{n}") for n in range(5)]]
    kinds = served.by_kind(texts, 3)
    assert list(kinds) == ["news, human", "news, machine"] and [len(found) for found in kinds.values()] == [3, 3]
    assert served.by_kind(texts, 3) == kinds and [len(found) for found in served.by_kind(texts, None).values()] == [5, 5]


def test_a_model_without_a_calibration_has_no_table(endless_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "abcd " * 40, "domain": "news", "machine": False}) + "\n")
    options = ["--texts", str(tmp_path / "t.jsonl"), "--model", str(endless_folder), "--work", str(tmp_path)]
    assert served.main(options) == 2 and "needs a calibration" in capsys.readouterr().err


def test_the_famous_texts_are_people_s() -> None:
    famous = served.texts_of([Path(served.__file__).with_name("famous.jsonl.gz")])
    assert len(famous) > 60 and not any(each.machine for each in famous)
    assert any(each.content.startswith("In the beginning God created") for each in famous)


def test_answers_are_labelled_by_how_they_were_sampled(endless_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MIN_TOKENS", 3)
    monkeypatch.setattr(answers, "MAX_TOKENS", 4)
    (tmp_path / "prompts.txt").write_text("ab\ncd\n")
    monkeypatch.setattr(answers, "PROMPTS", tmp_path / "prompts.txt")
    out = tmp_path / "runs/answers.jsonl"
    assert answers.main(["--model", str(endless_folder), "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["domain"] for line in lines] == [f"own answers, {kind}" for kind in answers.SAMPLING for _ in range(2)]
    assert all(line["machine"] and line["text"] for line in lines)
    assert default.settings_of(str(endless_folder)).context == 1024
