"""`app.calibrate` on a tiny model: from files to calibration and report, interrupted and resumed runs, and refusals."""

import hashlib
import json
import random
from dataclasses import replace

import pytest
from tinymodels import CONTEXT

from app import calibrate
from app.errors import EngineFailed, SetupError
from app.scoring import combining, fitting, journal
from app.scoring.calibration import ModelIdentity, load
from app.scoring.journal import Journal, JournalEntry
from app.scoring.methods import FORMULAS
from app.scoring.prepare import Preparation
from app.scoring.sources import LabelledText

MODELS = ModelIdentity(performer="p", revision="1", observer=None, observer_revision=None, quantize="none", dtype="float32")
PREPARATION = Preparation(tokenizer=None, context=128, collapse=False, passage_tokens=64)


@pytest.fixture(autouse=True)
def few_bootstrap_draws(monkeypatch):
    monkeypatch.setattr(fitting, "BOOTSTRAP_DRAWS", 20)


def random_text(seed, count=30, letters="abcdefgh"):
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(letters, k=4)) for _ in range(count))


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text, "domain": "d", "group": f"g{n // 2}"}) + "\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture
def files(tmp_path):
    return (
        write(tmp_path / "human.jsonl", [random_text(n) for n in range(24)]),
        write(tmp_path / "machine.jsonl", [random_text(n, letters="az") for n in range(100, 124)]),
    )


def run(folder, files, tmp_path, *more_options):
    human, machine = files
    out = tmp_path / "out" / "c.json"
    options = ["--model", str(folder), "--device", "cpu", "--targets", "0.05", "--buckets", "64"]
    options += ["--human", str(human), "--machine", str(machine)]
    return calibrate.main([*options, "--out", str(out), *more_options]), out


def test_from_texts_to_a_calibration(tiny_folder, other_folder, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(combining, "MIN_TEXTS", 10)
    code, out = run(tiny_folder, files, tmp_path, "--observer", str(other_folder))
    assert (code, capsys.readouterr().out) == (0, f"wrote {out} and {out.with_suffix('.md')}\n")
    calibration = load(out)
    assert set(calibration.methods) == {"combined", *FORMULAS} and calibration.combined.needs_observer
    assert [calibration.needs_observer(method) for method in ("combined", "binoculars", "log_rank")] == [True, True, False]
    assert (calibration.models.performer, calibration.models.quantize, calibration.models.dtype) == (tiny_folder.name, "none", "float32")
    assert (
        calibration.models.revision
        and calibration.models.observer_revision
        and calibration.models.revision != calibration.models.observer_revision
    )
    bucket = calibration.methods["perplexity"].buckets[0]
    assert (bucket.name, bucket.n_human, bucket.n_machine) == ("64+", 24, 24)
    report = out.with_suffix(".md").read_text()
    assert all(
        part in report for part in ("## ROC", "## Reliability", "xychart-beta", "## Thresholds", "Brier", "| d | perplexity | 24 / 24 |")
    )
    judgement = calibration.judge("perplexity", 100, bucket.machine[0].value * 0.99)
    assert judgement.verdict in {"machine", "uncertain"} and judgement.n_human == 24


def test_the_report_tells_texts_from_their_beginnings(tiny_folder, tmp_path):
    files = (
        write(tmp_path / "human.jsonl", [random_text(n, 60) for n in range(24)]),
        write(tmp_path / "machine.jsonl", [random_text(n, 60, "az") for n in range(100, 124)]),
    )
    code, out = run(tiny_folder, files, tmp_path, "--buckets", "64", "128")
    report, calibration = out.with_suffix(".md").read_text(), load(out)
    assert code == 0 and [bucket.n_human for bucket in calibration.methods["perplexity"].buckets] == [24, 24]
    assert "The texts are 24 human and 24 machine texts from 12 groups. 0 of them" in report
    assert "24 beginnings of the human texts and 24 of the machine texts are taken for shorter texts" in report
    assert "| d | perplexity | 24 / 24 |" in report and report.count("| perplexity | 128+ | 24 / 24 |") == 1
    bins = report.split("## Reliability")[1].split("## Not supported")[0].splitlines()
    assert sum(int(line.split("|")[2]) for line in bins if line.startswith("| 0.")) == 48


def test_the_number_of_texts_left_out_is_reported(tiny_folder, files, tmp_path, capsys):
    human, machine = files
    human.write_text(human.read_text() + human.read_text().splitlines()[0] + "\n" + json.dumps({"text": " "}) + "\n")
    code, _ = run(tiny_folder, (human, machine), tmp_path)
    assert code == 0 and "; 2 of 50 texts were left out" in capsys.readouterr().out


def test_a_model_without_observer_has_no_binoculars_and_no_text_is_stored(tiny_folder, files, tmp_path):
    code, out = run(tiny_folder, files, tmp_path)
    assert code == 0 and set(load(out).methods) == {"fast_detect", "perplexity", "log_rank"}
    stored = "".join(path.read_text() for path in out.parent.iterdir())
    assert random_text(0)[:9] not in stored and random_text(100, letters="az")[:9] not in stored


class InterruptedEngine:
    """An engine that raises KeyboardInterrupt after so many steps."""

    def __init__(self, engine, steps):
        self.engine, self.steps = engine, steps

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def step(self):
        self.steps -= 1
        if self.steps < 0:
            raise KeyboardInterrupt
        return self.engine.step()


def test_a_resumed_run_gives_the_same_result(tiny_folder, files, tmp_path, monkeypatch, capsys):
    whole = run(tiny_folder, files, tmp_path / "whole")[1]
    create = calibrate.create_engine

    def create_interrupted(settings):
        engine, facts = create(settings)
        return InterruptedEngine(engine, 6), facts

    monkeypatch.setattr(calibrate, "create_engine", create_interrupted)
    code, out = run(tiny_folder, files, tmp_path / "parts")
    recorded = out.with_suffix(".scores.jsonl").read_text()
    assert code == 130 and "run the same command to resume" in capsys.readouterr().err
    assert 0 < len(recorded.splitlines()) < 48 and not out.exists()
    out.with_suffix(".scores.jsonl").write_text(recorded + '{"key": "torn')

    monkeypatch.setattr(calibrate, "create_engine", create)
    scored = []
    score_texts = journal.score_texts
    monkeypatch.setattr(calibrate, "score_texts", lambda engine, to, texts: scored.extend(texts) or score_texts(engine, to, texts))
    assert run(tiny_folder, files, tmp_path / "parts")[0] == 0
    assert len(scored) == 48 - len(recorded.splitlines()), "recorded texts are not scored again"
    assert scores_of(out) == {key: pytest.approx(scores, rel=1e-4) for key, scores in scores_of(whole).items()}
    for method, resumed in load(out).methods.items():
        (bucket,), (expected,) = resumed.buckets, load(whole).methods[method].buckets
        assert (bucket.n_human, bucket.n_machine) == (expected.n_human, expected.n_machine)
        values, expected_values = ([threshold.value for threshold in each.machine] for each in (bucket, expected))
        assert values == pytest.approx(expected_values, rel=1e-4)


def test_scores_of_another_version_of_the_program_are_refused(tiny_folder, files, tmp_path, capsys):
    """Other arithmetic scores the same weights differently: thresholds from a mixture of both would suit neither."""
    _, out = run(tiny_folder, files, tmp_path)
    recorded = out.with_suffix(".scores.jsonl")
    lines = [json.loads(line) for line in recorded.read_text().splitlines()]
    for line in lines:
        line["scores"]["perplexity"] *= 1.01
    recorded.write_text("".join(f"{json.dumps(line)}\n" for line in lines[:40]))
    assert run(tiny_folder, files, tmp_path)[0] == 2
    assert "these scores are of another version of Litmus" in capsys.readouterr().err
    assert len(recorded.read_text().splitlines()) == 40, "nothing was added to them"


def scores_of(out):
    """The recorded scores by digest. They depend in the last digits on which texts share a step."""
    lines = map(json.loads, out.with_suffix(".scores.jsonl").read_text().splitlines())
    return {line["key"]: [score for score in line["scores"].values() if score is not None] for line in lines}


def test_a_score_is_on_disk_at_once(tmp_path):
    """A killed process loses no recorded score."""
    with Journal(tmp_path / "j.jsonl", MODELS, PREPARATION) as opened:
        opened.add(opened.key("one"), JournalEntry(70, {"perplexity": 2.0}))
        assert (tmp_path / "j.jsonl").read_text().endswith('{"perplexity": 2.0}, "values": {}, "shorter": []}\n')


def test_an_unsupported_rate_is_refused_before_scoring(tiny_folder, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "create_engine", None)
    assert run(tiny_folder, files, tmp_path, "--targets", "0.001", "0.01")[0] == 2
    assert capsys.readouterr().err == "0.1% needs at least 1,000 human texts, got 24; 1% needs at least 100 human texts, got 24\n"


def test_scores_of_other_models_are_ignored(tmp_path):
    text = LabelledText("one", False, "g")
    with Journal(tmp_path / "j.jsonl", MODELS, PREPARATION) as opened:
        opened.add(opened.key("one"), JournalEntry(70, {"perplexity": 2.0}))
    other = MODELS.model_copy(update={"revision": "2"})
    changed = [replace(PREPARATION, context=64), replace(PREPARATION, passage_tokens=None)]
    for models, preparation, count in ((MODELS, PREPARATION, 1), (other, PREPARATION, 0), *((MODELS, each, 0) for each in changed)):
        with Journal(tmp_path / "j.jsonl", models, preparation) as opened:
            assert len(opened.rows([text])) == count
            assert len(opened.missing([text, text])) == 1 - count


def test_a_file_that_is_not_a_journal(tmp_path):
    (tmp_path / "j.jsonl").write_text('{"key": 1}\n')
    with (
        pytest.raises(SetupError, match=r"j\.jsonl, line 1: not a line of a score journal"),
        Journal(tmp_path / "j.jsonl", MODELS, PREPARATION),
    ):
        pass


@pytest.mark.parametrize("content", [b'{"text": "one"}\nnot a whole line', b"notes", b'{"key": 1}', b"\xff\n"])
def test_a_file_that_is_not_a_journal_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(SetupError, match="not a line of a score journal"), Journal(path, MODELS, PREPARATION):
        pass
    assert path.read_bytes() == content


def test_a_journal_loses_its_unfinished_line_only_to_another(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"key": "torn')
    with Journal(path, MODELS, PREPARATION) as opened:
        assert path.read_text() == '{"key": "torn'
        opened.add("k", JournalEntry(70, {}))
        opened.add("l", JournalEntry(70, {}))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["k", "l"]


@pytest.mark.parametrize("option", ["--out", "--report", "--journal"])
def test_a_file_with_texts_is_never_written(files, tmp_path, capsys, option):
    """By whatever name: its own, a link, or as a file of a folder that is named."""
    human, machine = files
    folder = tmp_path / "essays"
    folder.mkdir()
    (folder / "a.txt").write_text("mine")
    (tmp_path / "hard.jsonl").hardlink_to(human)
    (tmp_path / "soft.jsonl").symlink_to(machine)
    contents = [path.read_bytes() for path in (human, machine, folder / "a.txt")]
    for output in (human, tmp_path / "hard.jsonl", tmp_path / "soft.jsonl", folder / "a.txt"):
        args = ["--human", str(human), str(folder), "--machine", str(machine), "--out", str(tmp_path / "c.json"), option, str(output)]
        assert calibrate.main(args) == 2
        assert f"{option}: {output} is one of the files to read; name another file to write" in capsys.readouterr().err
    assert [path.read_bytes() for path in (human, machine, folder / "a.txt")] == contents


def test_two_outputs_are_never_one_file(files, tmp_path, capsys):
    human, machine = map(str, files)
    assert calibrate.main(["--human", human, "--machine", machine, "--out", str(tmp_path / "c.md")]) == 2
    assert "--report: " in (said := capsys.readouterr().err) and "c.md is the file of --out, too" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--targets", "0.0001"], "0.01% needs at least 10,000 human texts, got 24"),
        (["--targets", "0.05", "0.01"], "1% needs at least 100 human texts, got 24"),
        (["--buckets", "64", "4096"], None),
        (["--buckets", "4000"], "no length bucket has enough texts for 5%: add texts or choose wider --buckets."),
        (["--group", "book"], "human.jsonl:1: no field 'book', which --group names"),
        (["--text", "body"], "no field 'body' with a text; name the field with --text"),
        (["--model", "nowhere/at/all"], "is neither a folder with a config.json nor a GGUF file"),
    ],
)
def test_refusals_are_sentences(tiny_folder, files, tmp_path, capsys, options, message):
    code, out = run(tiny_folder, files, tmp_path, *options)
    err = capsys.readouterr().err
    if message is None:
        assert code == 0 and "4096+ tokens: 5% needs at least 20 human texts, got 0" in out.with_suffix(".md").read_text()
    else:
        assert code == 2 and message in err and "Traceback" not in err and not out.exists()


def test_lengths_without_a_threshold_are_told(tiny_folder, tmp_path, capsys):
    files = (
        write(tmp_path / "human.jsonl", [random_text(n) for n in range(24)] + [random_text(50, 90)]),
        write(tmp_path / "machine.jsonl", [random_text(n, letters="az") for n in range(100, 124)]),
    )
    assert run(tiny_folder, files, tmp_path, "--buckets", "64", "200", "--no-shorter")[0] == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "no verdict on texts of 200+ tokens: 5% needs at least 20 human texts, got 1; 5% needs at least 20 machine texts, got 0"
    ]


@pytest.mark.parametrize(
    "options",
    [
        *(["--targets", "2"], ["--buckets", "128", "64"], ["--buckets", "10"], ["--quantize", "two"]),
        *(["--text-window", "31"], ["--text-window", "0"], ["--passage-tokens", "0"]),
    ],
)
def test_an_invalid_command_line(files, tmp_path, options):
    with pytest.raises(SystemExit) as caught:
        run("x", files, tmp_path, *options)
    assert caught.value.code == 2


def test_a_window_that_is_cut_to_what_the_model_holds_is_told(tiny_folder, files, tmp_path, capsys):
    assert run(tiny_folder, files, tmp_path)[0] == 0
    assert "--text-window" not in capsys.readouterr().err
    assert run(tiny_folder, files, tmp_path, "--text-window", "99999999")[0] == 0
    said = f"--text-window 99999999: {tiny_folder.name} holds {CONTEXT} tokens, so longer texts are read in windows of {CONTEXT}\n"
    assert capsys.readouterr().err.count(said) == 1


def test_an_engine_that_fails_ends_the_program(tiny_folder, files, tmp_path, monkeypatch, capsys):
    def failing(*_):
        raise EngineFailed("the device ran out of memory")
        yield

    monkeypatch.setattr(calibrate, "score_texts", failing)
    assert run(tiny_folder, files, tmp_path)[0] == 2
    assert "ran out of memory" in capsys.readouterr().err


def test_no_machine_text(tiny_folder, files, tmp_path, capsys):
    same = (files[0], write(tmp_path / "blank.jsonl", [" "]))
    assert run(tiny_folder, same, tmp_path)[0] == 2
    assert "there is no machine text" in capsys.readouterr().err


def test_the_journal_identifies_a_text_by_a_digest_only(tmp_path):
    with Journal(tmp_path / "j.jsonl", MODELS, PREPARATION) as opened:
        assert len(opened.key("a")) == len(hashlib.sha256().hexdigest()) and opened.key("a") != opened.key("b")


def test_output_paths_are_checked_before_scoring(tiny_folder, files, tmp_path, capsys):
    code, _ = run(tiny_folder, files, tmp_path, "--report", str(tmp_path))
    assert code == 2 and "--report" in capsys.readouterr().err
    code, out = run(tiny_folder, files, tmp_path, "--report", str(tmp_path / "new" / "folder" / "r.md"))
    assert code == 0 and out.is_file() and (tmp_path / "new" / "folder" / "r.md").is_file()
