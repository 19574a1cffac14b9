"""The program on a tiny model: files in, calibration and report out; stopped, resumed, and refusing in sentences."""

import csv
import gzip
import hashlib
import json
import random

import pytest

from app import calibrate
from app.errors import EngineFailed, SetupError
from app.scoring import fitting, journal
from app.scoring.calibration import Models, load
from app.scoring.fitting import METHODS
from app.scoring.journal import Entry, Journal
from app.scoring.sources import Fields, Text, cut, prepared, read

MODELS = Models(performer="p", revision="1", observer=None, observer_revision=None, quantize="none", dtype="float32")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(fitting, "DRAWS", 20)


def words(seed, count=30, letters="abcdefgh"):
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(letters, k=4)) for _ in range(count))


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text, "domain": "d", "group": f"g{n // 2}"}) + "\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture
def files(tmp_path):
    return (
        write(tmp_path / "human.jsonl", [words(n) for n in range(24)]),
        write(tmp_path / "machine.jsonl", [words(n, letters="az") for n in range(100, 124)]),
    )


def run(folder, files, tmp_path, *more):
    human, machine = files
    out = tmp_path / "out" / "c.json"
    options = [
        "--model",
        str(folder),
        "--device",
        "cpu",
        "--targets",
        "0.05",
        "--buckets",
        "64",
        "--human",
        str(human),
        "--machine",
        str(machine),
    ]
    return calibrate.main([*options, "--out", str(out), *more]), out


def test_from_texts_to_a_calibration(tiny_folder, other_folder, files, tmp_path, capsys):
    code, out = run(tiny_folder, files, tmp_path, "--observer", str(other_folder))
    assert (code, capsys.readouterr().out) == (0, f"wrote {out} and {out.with_suffix('.md')}\n")
    made = load(out)
    assert set(made.methods) == set(METHODS)
    assert (made.models.performer, made.models.quantize, made.models.dtype) == (tiny_folder.name, "none", "float32")
    assert made.models.revision and made.models.observer_revision and made.models.revision != made.models.observer_revision
    bucket = made.methods["perplexity"].buckets[0]
    assert (bucket.name, bucket.n_human, bucket.n_machine) == ("64+", 24, 24)
    report = out.with_suffix(".md").read_text()
    assert all(
        part in report for part in ("## ROC", "## Reliability", "xychart-beta", "## Borders", "Brier", "| d | perplexity | 24 / 24 |")
    )
    judged = made.judge("perplexity", 100, bucket.machine[0].value * 0.99)
    assert judged.verdict in {"machine", "uncertain"} and judged.n_human == 24


def test_what_was_left_out_is_told(tiny_folder, files, tmp_path, capsys):
    human, machine = files
    human.write_text(human.read_text() + human.read_text().splitlines()[0] + "\n" + json.dumps({"text": " "}) + "\n")
    code, _ = run(tiny_folder, (human, machine), tmp_path)
    assert code == 0 and "; 2 of 50 texts were left out" in capsys.readouterr().out


def test_one_model_has_no_binoculars_and_no_text_is_kept(tiny_folder, files, tmp_path):
    code, out = run(tiny_folder, files, tmp_path)
    assert code == 0 and set(load(out).methods) == {"fast_detect", "perplexity", "log_rank"}
    kept = "".join(path.read_text() for path in out.parent.iterdir())
    assert words(0)[:9] not in kept and words(100, letters="az")[:9] not in kept


class Stopped:
    """Stands for an engine that is interrupted after so many steps."""

    def __init__(self, engine, steps):
        self.engine, self.steps = engine, steps

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def step(self):
        self.steps -= 1
        if self.steps < 0:
            raise KeyboardInterrupt
        return self.engine.step()


def test_stopped_and_gone_on_with_is_the_same(tiny_folder, files, tmp_path, monkeypatch, capsys):
    whole = run(tiny_folder, files, tmp_path / "whole")[1]
    create = calibrate.create_engine

    def stopping(settings):
        engine, facts = create(settings)
        return Stopped(engine, 6), facts

    monkeypatch.setattr(calibrate, "create_engine", stopping)
    code, out = run(tiny_folder, files, tmp_path / "parts")
    kept = out.with_suffix(".scores.jsonl").read_text()
    assert code == 130 and "the same command goes on" in capsys.readouterr().err
    assert 0 < len(kept.splitlines()) < 48 and not out.exists()
    out.with_suffix(".scores.jsonl").write_text(kept + '{"key": "torn')

    monkeypatch.setattr(calibrate, "create_engine", create)
    asked = []
    submit = journal.score
    monkeypatch.setattr(
        calibrate, "score", lambda engine, tokenizer, to, texts: asked.extend(texts) or submit(engine, tokenizer, to, texts)
    )
    assert run(tiny_folder, files, tmp_path / "parts")[0] == 0
    assert len(asked) == 48 - len(kept.splitlines()), "what was scored is not scored again"
    assert scores_of(out) == {key: pytest.approx(scores, rel=1e-4) for key, scores in scores_of(whole).items()}
    for method, scale in load(out).methods.items():
        (one,), (other,) = scale.buckets, load(whole).methods[method].buckets
        assert (one.n_human, one.n_machine) == (other.n_human, other.n_machine)
        assert [border.value for border in one.machine] == pytest.approx([border.value for border in other.machine], rel=1e-4)


def scores_of(out):
    """By digest; texts that are scored beside others differ in the last digits."""
    lines = map(json.loads, out.with_suffix(".scores.jsonl").read_text().splitlines())
    return {line["key"]: [one for one in line["scores"].values() if one is not None] for line in lines}


def test_a_score_is_on_the_disk_at_once(tmp_path):
    """Whoever kills the program leaves what was scored."""
    with Journal(tmp_path / "j.jsonl", MODELS, 128) as written:
        written.add(written.key("one"), Entry(70, {"perplexity": 2.0}))
        assert (tmp_path / "j.jsonl").read_text().endswith('{"perplexity": 2.0}}\n')


def test_nothing_is_scored_for_a_rate_that_cannot_be(tiny_folder, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "create_engine", None)
    assert run(tiny_folder, files, tmp_path, "--targets", "0.001", "0.01")[0] == 2
    assert capsys.readouterr().err == "0.1% needs 1,000 human texts; you gave 24; 1% needs 100 human texts; you gave 24\n"


def test_scores_of_other_models_are_not_taken(tmp_path):
    text = Text("one", False, "g")
    with Journal(tmp_path / "j.jsonl", MODELS, 128) as written:
        written.add(written.key("one"), Entry(70, {"perplexity": 2.0}))
    for models, context, known in ((MODELS, 128, 1), (MODELS.model_copy(update={"revision": "2"}), 128, 0), (MODELS, 64, 0)):
        with Journal(tmp_path / "j.jsonl", models, context) as written:
            assert len(written.rows([text])) == known
            assert len(written.missing([text, text])) == 1 - known


def test_a_journal_that_is_none(tmp_path):
    (tmp_path / "j.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(SetupError, match=r"j\.jsonl, line 1: not a line of scores"), Journal(tmp_path / "j.jsonl", MODELS, 128):
        pass


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--targets", "0.0001"], "0.01% needs 10,000 human texts; you gave 24"),
        (["--targets", "0.05", "0.01"], "1% needs 100 human texts; you gave 24"),
        (["--buckets", "64", "4096"], None),
        (["--buckets", "4000"], "no length has texts enough for 5%: give more, or wider --buckets."),
        (["--group", "book"], "human.jsonl:1: no field 'book', which --group names"),
        (["--text", "body"], "no field 'body' with a text; --text names another"),
        (["--model", "nowhere/at/all"], "is no folder with a config.json"),
    ],
)
def test_refusals_are_sentences(tiny_folder, files, tmp_path, capsys, more, says):
    code, out = run(tiny_folder, files, tmp_path, *more)
    err = capsys.readouterr().err
    if says is None:
        assert code == 0 and "4096+ tokens: 5% needs 20 human texts; you gave 0" in out.with_suffix(".md").read_text()
    else:
        assert code == 2 and says in err and "Traceback" not in err and not out.exists()


@pytest.mark.parametrize("more", [["--targets", "2"], ["--buckets", "128", "64"], ["--buckets", "10"], ["--quantize", "two"]])
def test_a_command_line_that_is_wrong(files, tmp_path, more):
    with pytest.raises(SystemExit) as caught:
        run("x", files, tmp_path, *more)
    assert caught.value.code == 2


def test_an_engine_that_fails_ends_the_program(tiny_folder, files, tmp_path, monkeypatch, capsys):
    def failing(*_):
        raise EngineFailed("the device ran out of memory")
        yield

    monkeypatch.setattr(calibrate, "score", failing)
    assert run(tiny_folder, files, tmp_path)[0] == 2
    assert "ran out of memory" in capsys.readouterr().err


def test_no_machine_text(tiny_folder, files, tmp_path, capsys):
    same = (files[0], write(tmp_path / "blank.jsonl", [" "]))
    assert run(tiny_folder, same, tmp_path)[0] == 2
    assert "no machine text was given" in capsys.readouterr().err


def test_every_form_of_file(tmp_path):
    pair = {"human": "h", "machine": "m", "domain": "news", "group": 7}
    (tmp_path / "pair.jsonl.gz").write_bytes(gzip.compress((json.dumps(pair) + "\n\n").encode()))
    with (tmp_path / "sheet.csv").open("w") as file:
        csv.writer(file).writerows([["body", "topic"], ["one,\ntwo", "x"], ["three", "y"]])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.txt").write_text("bee\n")
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfay"))
    (folder / "c.md").write_text("no")
    pairs = [text for machine in (False, True) for text in read([tmp_path / "pair.jsonl.gz"], machine, Fields())]
    assert pairs == [Text("h", False, "7", "news"), Text("m", True, "7", "news")]
    assert [*read([tmp_path / "sheet.csv"], True, Fields("body", "topic", "topic"))] == [
        Text("one,\ntwo", True, "x", "x"),
        Text("three", True, "y", "y"),
    ]
    assert [*read([folder], False, Fields())] == [Text("ay", False, "a.txt.gz"), Text("bee\n", False, "b.txt")]


def test_lines_without_a_group_are_their_own(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert [text.group for text in read([tmp_path / "t.jsonl"], False, Fields())] == ["t.jsonl:1", "t.jsonl:3"]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b"{", "line 1: no JSON"),
        ("a.jsonl", b"[1]", "line 1: give an object"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1: no field 'text' with a text"),
        ("a.csv", b"body\nx\n", "a.csv:2: no field 'text'"),
        ("a.txt", b"\xff\xfe", "is not UTF-8: byte 0"),
        ("a.txt.gz", b"plain", "cannot be read"),
        ("a.pdf", b"", "give .jsonl, .csv or .txt"),
        ("folder", None, "has no .txt"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, data, says):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    elif name == "folder":
        path.mkdir()
    with pytest.raises(SetupError) as caught:
        [*read([path], False, Fields())]
    assert says in str(caught.value) and name in str(caught.value)


def test_texts_as_they_are_scored():
    given = [
        Text("one\u200b two\n\nthree", False, "a"),
        Text("one two three", False, "b"),
        Text("\n ", True, "c"),
        Text("both", False, "d"),
        Text("both ", True, "e"),
        Text("four five", True, "f"),
    ]
    assert [(text.content, text.group) for text in prepared(given, collapse=True)] == [("one two three", "a"), ("four five", "f")]
    assert [text.content for text in prepared(given, collapse=False)] == ["one two\n\nthree", "one two three", "both", "both ", "four five"]
    assert [text.content for text in prepared(given, collapse=True, cut_words=2)] == ["three"]


@pytest.mark.parametrize(("count", "left"), [(0, " a b\nc  d "), (1, "b\nc  d "), (2, "c  d "), (4, ""), (9, "")])
def test_words_cut_from_the_beginning(count, left):
    assert cut(" a b\nc  d ", count) == left


def test_the_journal_names_a_text_by_a_digest_only(tmp_path):
    with Journal(tmp_path / "j.jsonl", MODELS, 128) as written:
        assert len(written.key("a")) == len(hashlib.sha256().hexdigest()) and written.key("a") != written.key("b")


def test_where_nothing_could_be_written_nothing_is_scored(tiny_folder, files, tmp_path, capsys):
    code, _ = run(tiny_folder, files, tmp_path, "--report", str(tmp_path))
    assert code == 2 and "--report" in capsys.readouterr().err
    code, out = run(tiny_folder, files, tmp_path, "--report", str(tmp_path / "new" / "folder" / "r.md"))
    assert code == 0 and out.is_file() and (tmp_path / "new" / "folder" / "r.md").is_file()
