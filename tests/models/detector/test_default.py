"""The default model's calibration and page, from a tiny model and made-up pairs; and what makes two precisions equal."""

import gzip
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.facts import Facts
from app.scoring import combining, fitting, sample
from app.scoring.calibration import SMOLLM2_PATH, load, save
from app.scoring.detector import detector_of
from app.scoring.sample import ScoreRow
from app.settings import smollm2
from models.detector import default, equal, evaluation


def write_pairs(folder: Path, domain: str, generator: str, letters: str, count: int = 16) -> None:
    rng = random.Random(f"{domain}{generator}")

    def text(alphabet: str) -> str:
        return " ".join("".join(rng.choices(alphabet, k=4)) for _ in range(rng.randint(30, 45)))

    lines = [
        {"domain": domain, "generator": generator, "human": text("abcdefgh"), "machine": text(letters), "group": f"{domain}{n}"}
        for n in range(count)
    ]
    with gzip.open(folder / f"{domain}_{generator}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def options_of(folder: Path, model: Path) -> list[str]:
    options = ["--data", str(folder / "data"), "--model", str(model), "--work", str(folder / "work")]
    return [*options, "--out", str(folder / "c.json"), "--page", str(folder / "page.md")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, endless_folder: Path) -> Iterator[Path]:
    """Made-up pairs, and what the command makes of them. While it is open, a few texts and draws are enough."""
    folder = tmp_path_factory.mktemp("default")
    (folder / "data/detect").mkdir(parents=True)
    for domain in ("news", "tales"):
        write_pairs(folder / "data/detect", domain, "gpt-4", "ab")
        write_pairs(folder / "data/detect", domain, "gpt2-xl", "xyz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combining, "MIN_TEXTS", 4)
        patch.setattr(fitting, "BOOTSTRAP_DRAWS", 5)
        patch.setattr(sample, "BOOTSTRAP_DRAWS", 5)
        patch.setattr(default, "TARGETS", (0.2, 0.1))
        assert default.main(options_of(folder, endless_folder)) == 0
        yield folder


@pytest.fixture
def built(made: Path, tmp_path: Path, endless_folder: Path) -> tuple[Path, list[str]]:
    """A copy of it, for one test, and the command's options there."""
    folder = shutil.copytree(made, tmp_path / "default")
    return folder, options_of(folder, endless_folder)


def test_one_command_makes_the_calibration_and_the_page(built: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, options = built
    calibration = load(folder / "c.json")
    assert calibration.combined is not None and calibration.passage_tokens == 256 and "combined" in calibration.methods
    assert [bucket.min_tokens for bucket in calibration.methods["combined"].buckets][:2] == [64, 128]
    page = (folder / "page.md").read_text()
    assert "| news, gpt-4 |" in page, [line for line in page.splitlines() if line.startswith("| ")][:9]
    assert "## What the server answers" in page and "`spread_of_surprise`" in page
    assert page.startswith("# The detector")
    recorded = (folder / "work/scores.jsonl").read_text()
    accepted = calibration.models.model_copy(update={"quantize": "int8"})
    save(calibration.model_copy(update={"equal": (accepted,)}), folder / "c.json")
    assert default.main(options) == 0 and (folder / "work/scores.jsonl").read_text() == recorded, "scored once"
    assert "abcd" not in recorded
    assert "in int8 was accepted" in capsys.readouterr().err and load(folder / "c.json") == calibration


def test_counts_are_added_to_a_calibration_without_moving_its_borders(
    built: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, options = built
    path, page = folder / "c.json", folder / "page.md"
    made = load(path)
    bucket = made.methods["combined"].buckets[0]
    assert bucket.histogram is not None and sum(bucket.histogram.human) > 0 and bucket.machine[0].found is not None
    without = json.loads(path.read_text())
    for fitted in without["methods"].values():
        for each in fitted["buckets"]:
            each["histogram"] = None
            each["machine"] = [{**threshold, "found": None} for threshold in each["machine"]]
    path.write_text(json.dumps(without))
    page.unlink()
    assert default.main([*options, "--counts"]) == 0 and load(path) == made and not page.exists()
    without["models"]["dtype"] = "float16"
    path.write_text(json.dumps(without))
    assert default.main([*options, "--counts"]) == 2 and "name it with --model" in capsys.readouterr().err


def test_another_precision_is_added_only_if_it_is_equal(
    built: tuple[Path, list[str]], endless_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = built
    options = ["--data", str(folder / "data"), "--calibration", str(folder / "c.json"), "--work", str(folder / "work"), "--accept"]
    options += ["--made-with", str(endless_folder), "--texts", "64"]
    assert equal.main([*options, "--dtype", "bfloat16"]) in {0, 1}
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == "bfloat16" and found["texts"] == 64 and found["mean_absolute_difference"] > 0
    assert [identity.dtype for identity in load(folder / "c.json").equal] == (["bfloat16"] if found["equal"] else [])
    assert equal.main([*options, "--made-with", str(endless_folder), "--dtype", "float32"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["mean_absolute_difference"] == 0 and same["verdicts_changed"] == 0


def test_equal_means_within_every_limit() -> None:
    found = {"verdicts_changed": 0.02, "fpr": 0.01, "other_fpr": 0.02, "auroc": 0.9, "other_auroc": 0.895}
    assert equal.is_equal(found)
    for change in ({"verdicts_changed": 0.021}, {"other_fpr": 0.021}, {"other_auroc": 0.88}):
        assert not equal.is_equal({**found, **change})


def test_a_set_is_judged_by_a_model_that_saw_neither_its_domain_nor_its_generator() -> None:
    row = ScoreRow(True, "g", "news", 99, {}, {}, "gpt-4")
    rows = [row, replace(row, generator="gpt2-xl"), replace(row, domain="tales"), replace(row, domain="tales", generator="gpt2-xl")]
    human = replace(row, machine=False, domain="tales", generator="")
    assert evaluation.left_out("news_gpt-4", [*rows, human]) == [rows[3], human]


def test_without_data_the_command_says_what_is_missing(tmp_path: Path, endless_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert default.main(["--data", str(tmp_path), "--model", str(endless_folder)]) == 2
    assert "has no pairs" in capsys.readouterr().err


@pytest.mark.skipif(smollm2() is None, reason="SmolLM2-135M-Instruct is not installed")
def test_the_shipped_calibration_is_that_of_the_default_model() -> None:
    settings, shipped = default.settings_of(None), load(SMOLLM2_PATH)
    facts = Facts("any", 1024, 1, "none", "bfloat16", "cpu", None, True, revision=shipped.models.revision)
    options = detector_of(settings).options(facts)
    assert options.methods == ("combined",) and options.combined is not None and options.choice.calibration == shipped
    other = replace(facts, quantize="int4")
    assert detector_of(settings).methods(other)[0] == "fast_detect"
