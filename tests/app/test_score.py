"""`app.score` on a tiny model: files to results, the numbers of the server, interrupted runs, and refusals."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from inprocess import LocalServer
from tinymodels import CONTEXT

from app import score
from app.errors import SetupError
from app.schemas import Method
from app.scoring import batch, results
from app.scoring.batch import create_scorer
from app.scoring.calibration import SMOLLM2_PATH, Calibration, identity_of, save
from app.scoring.commands import EXIT_FAILED
from app.scoring.results import COLUMNS, ResultFile
from app.scoring.thresholds import Bucket, MethodCalibration, Threshold
from app.settings import ModelSettings

TEXTS = [f"The {word} went to the town and came back when it was dark, and nobody asked why. " * 3 for word in ("fox", "crow", "king")]


@pytest.fixture
def essays(tmp_path: Path) -> Path:
    folder = tmp_path / "essays"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXTS[0])
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS[1:], "", None]))
    return folder


def run(folder: Path, essays: Path, out: Path, *more: str) -> int:
    return score.main([str(essays), "--out", str(out), "--model", str(folder), "--device", "cpu", *more])


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(newline="")))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_one_line_for_each_text_and_none_of_the_text(tiny_folder: Path, essays: Path, tmp_path: Path, name: str, capsys: Any) -> None:
    out = tmp_path / name
    assert run(tiny_folder, essays, out) == EXIT_FAILED
    rows = rows_of(out)
    assert [row["source"].removeprefix(f"{essays}/") for row in rows] == ["a.txt", *(f"b.jsonl:{n}" for n in (1, 2, 3, 4))]
    assert [row["verdict"] or None for row in rows] == ["uncalibrated"] * 3 + ["insufficient", None]
    assert rows[-1]["error"] == "this line has no text" and all(set(row) == set(COLUMNS) for row in rows)
    assert float(rows[0]["perplexity"]) > 1 and rows[0]["method"] == "fast_detect" and rows[0]["model"] == tiny_folder.name
    assert "nobody" not in out.read_text()
    said = capsys.readouterr().out
    assert "5 texts (0 of them from before). uncalibrated: 3, insufficient: 1, failed: 1. Uncalibrated: there is no calibration for" in said


def test_a_length_that_the_calibration_lacks_is_told(tiny_folder: Path, essays: Path, tmp_path: Path, capsys: Any) -> None:
    """And the exit code is 0 where every text has a score."""
    (essays / "b.jsonl").unlink()
    settings = ModelSettings(path=str(tiny_folder), device="cpu", slots=1)
    bucket = Bucket(min_tokens=64, max_tokens=96, n_human=9, n_machine=9, machine=(Threshold(value=0.9),), human=(), chance=None)
    methods: dict[Method, MethodCalibration] = {"fast_detect": MethodCalibration(direction="higher", buckets=(bucket,))}
    models = identity_of(settings, create_scorer(settings).facts)
    save(Calibration(made="x", source="s", models=models, collapse=False, methods=methods), tmp_path / "c.json")
    assert run(tiny_folder, essays, tmp_path / "r.csv", "--calibration", str(tmp_path / "c.json")) == 0
    said = capsys.readouterr().out
    assert (
        "uncalibrated: 1. Uncalibrated: the calibration does not cover fast_detect for texts of this length; it covers 64-96 scored" in said
    )


def test_the_numbers_are_those_of_the_server(tiny_folder: Path, essays: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    run(tiny_folder, essays, out, "--methods", "log_rank")
    with LocalServer({"tiny": ModelSettings(path=str(tiny_folder), name="tiny", device="cpu")}).run() as server:
        server.model("tiny")
        answer = server.http.post("/v1/score", json={"texts": TEXTS, "methods": ["log_rank"]}).json()
    assert [row["score"] for row in rows_of(out)[:3]] == pytest.approx([item["scores"]["log_rank"] for item in answer["data"]], abs=1e-5)


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_an_interrupted_run_goes_on_where_it_stopped(
    tiny_folder: Path, essays: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole, out = tmp_path / f"whole-{name}", tmp_path / name
    run(tiny_folder, essays, whole)
    build = batch.build_score

    def interrupted(index: int, *rest: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return build(index, *rest)

    monkeypatch.setattr(batch, "build_score", interrupted)
    assert run(tiny_folder, essays, out) == 130 and "the same command" in capsys.readouterr().err
    assert len(rows_of(out)) == 2
    with out.open("a") as file:
        file.write('{"source": "torn')
    monkeypatch.setattr(batch, "build_score", build)
    assert run(tiny_folder, essays, out) == EXIT_FAILED
    assert out.read_text() == whole.read_text()
    assert run(tiny_folder, essays, out) == EXIT_FAILED and "5 of them from before" in capsys.readouterr().out


def test_results_of_other_texts_or_another_model_are_not_gone_on_with(
    tiny_folder: Path, other_folder: Path, essays: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "r.csv"
    run(tiny_folder, essays, out)
    out.write_bytes(torn := out.read_bytes() + b'"an unfinished li')
    assert run(other_folder, essays, out) == 2 and "another model" in capsys.readouterr().err
    assert out.read_bytes() == torn, "a refusal leaves the file as it is"
    (essays / "a.txt").write_text("changed")
    assert run(tiny_folder, essays, out) == 2
    assert f"other texts, removed or changed since (line 2: {essays}/a.txt)" in capsys.readouterr().err
    out.write_text("a,b\n1,2\n")
    assert run(tiny_folder, essays, out) == 2 and "holds no results" in capsys.readouterr().err
    out.write_text("a,b\n")
    assert run(tiny_folder, essays, out) == 2 and "holds no results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("r.jsonl", each) for each in (b'{"a": 1}\n{"b": 2}', b"my notes", b'{"text": "mine', b"\n")),
        *(("r.csv", each) for each in (b"my notes", b"a,b\r\n1,2", b"source,digest,verdict,mine", b"\n")),
    ],
)
def test_a_file_of_ones_own_is_left_as_it_is(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SetupError, match="holds no results of this version"), ResultFile(tmp_path / name, None):  # type: ignore[arg-type]
        pass
    assert (tmp_path / name).read_bytes() == content


def test_a_file_to_score_is_never_written(tmp_path: Path, capsys: Any) -> None:
    """By whatever name."""
    same, hard, soft = (tmp_path / f"{name}.jsonl" for name in ("same", "hard", "soft"))
    same.write_text('{"text": "one"}\n{"text": "two"}')
    hard.hardlink_to(same)
    soft.symlink_to(same)
    for out in (same, hard, soft):
        assert score.main([str(same), "--out", str(out)]) == 2
        assert f"--out: {out} is one of the files to read" in capsys.readouterr().err
    assert same.read_text() == '{"text": "one"}\n{"text": "two"}'


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_results_with_other_options_are_not_gone_on_with(tiny_folder: Path, essays: Path, tmp_path: Path, name: str, capsys: Any) -> None:
    out = tmp_path / name
    run(tiny_folder, essays, out)
    for more, reason in (
        (("--methods", "perplexity"), "methods=fast_detect, now perplexity"),
        (("--methods", "fast_detect", "perplexity"), "methods=fast_detect, now fast_detect+perplexity"),
        (("--text-window", "64", "--dtype", "bfloat16"), f"dtype=float32, now bfloat16; --text-window={CONTEXT}, now 64"),
        (("--quantize", "int8"), "quantize=none, now int8"),
    ):
        assert run(tiny_folder, essays, out, *more) == 2
        said, line = capsys.readouterr().err, 2 if name == "r.csv" else 1
        assert f"other options: {reason}" in said and f"(line {line}: {essays}/a.txt); give the same, name another --out" in said
    assert len(rows_of(out)) == 5


def test_a_window_that_is_cut_to_what_the_model_holds_is_told(tiny_folder: Path, essays: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(tiny_folder, essays, tmp_path / "r.csv") == EXIT_FAILED and "--text-window" not in capsys.readouterr().err
    assert run(tiny_folder, essays, tmp_path / "r.csv", "--text-window", "4096") == EXIT_FAILED
    assert capsys.readouterr().err.count(f"--text-window 4096: {tiny_folder.name} holds {CONTEXT} tokens, so longer texts") == 1


def test_new_files_are_scored_and_old_rows_kept(tiny_folder: Path, essays: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "r.csv"
    run(tiny_folder, essays, out)
    before = out.read_text()
    (essays / "0.txt").write_text(TEXTS[0])  # the text of a.txt once more
    (essays / "b.jsonl").rename(essays / "c.jsonl")
    assert run(tiny_folder, essays, out) == EXIT_FAILED and "6 texts (4 of them from before)" in capsys.readouterr().out
    texts = before[: before.rindex(f"{essays}/b.jsonl:4")]  # the last line has no text
    assert out.read_bytes().decode().replace("\r\n", "\n").startswith(texts)
    assert [row["source"] for row in rows_of(out)[4:]] == [f"{essays}/0.txt", f"{essays}/c.jsonl:4"]


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_a_file_that_is_repaired_is_scored_and_its_error_is_removed(
    tiny_folder: Path, essays: Path, tmp_path: Path, name: str, capsys: Any
) -> None:
    out, broken = tmp_path / name, essays / "b.jsonl"
    broken.write_bytes(b"\xff")
    run(tiny_folder, essays, out)
    broken.write_text("not JSON")
    (essays / "empty.txt").write_text("")
    assert run(tiny_folder, essays, out) == EXIT_FAILED and "3 texts (1 of them from before)" in capsys.readouterr().out
    assert [row["source"] for row in rows_of(out)[1:]] == [str(broken), f"{essays}/empty.txt"] and "not JSON" in rows_of(out)[1]["error"]
    broken.write_text(json.dumps({"text": TEXTS[1]}))
    assert run(tiny_folder, essays, out) == 0 and "3 texts (2 of them from before)" in capsys.readouterr().out
    assert [row["source"] for row in rows_of(out)] == [f"{essays}/{file}" for file in ("a.txt", "empty.txt", "b.jsonl:1")]
    assert not any(row["error"] for row in rows_of(out)) and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_a_name_may_have_any_character(tiny_folder: Path, essays: Path, tmp_path: Path, name: str, capsys: Any) -> None:
    out, odd = tmp_path / name, ["1\u2028.txt", "2\x85.txt", "3\x0b.txt", "4\n.txt", "5\r.txt", "bad\udcff.txt", "x.b\udcff"]
    for file in odd:
        (essays / file).write_text(TEXTS[0])
    (essays / "worse\udcff.txt").write_bytes(b"\xff\xff\x81")
    for before in (0, 12):
        assert run(tiny_folder, essays, out) == EXIT_FAILED
        assert f"12 texts ({before} of them from before)" in (said := capsys.readouterr().out) and said.endswith(r".b\udcff 1" + "\n")
    rows = {row["source"].removeprefix(f"{essays}/"): row for row in rows_of(out)}
    assert (
        len(rows) == 12 and {*odd[:5], r"bad\udcff.txt"} <= rows.keys() and r"worse\udcff.txt cannot" in rows[r"worse\udcff.txt"]["error"]
    )


def test_no_name_is_a_formula_in_a_table_program(tiny_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run goes on by the name as it is. Numbers below 0 stay numbers."""
    monkeypatch.chdir(tmp_path)
    names = ['=HYPERLINK("x").txt', "+1.txt", "-1.txt", "@a.txt", "\tb.txt", "'=c.txt", "'d.txt"]
    for number, name in enumerate(names):
        (tmp_path / name).write_text(f"{TEXTS[0]} {number}")
    (tmp_path / "=gone.txt").write_bytes(b"\xff")
    for before in (0, 1 + len(names)):
        assert run(tiny_folder, Path(), Path("r.csv"), "--methods", "fast_detect") == EXIT_FAILED
        assert f"8 texts ({before} of them from before)" in capsys.readouterr().out
    rows = rows_of(tmp_path / "r.csv")
    assert {row["source"] for row in rows} == {*(f"'{name}" for name in [*names[:-1], "=gone.txt"]), "'d.txt"}
    assert not any(row[name].startswith(tuple("=+-@\t\r")) for row in rows for name in ("source", "error", "model", "options"))
    assert next(row["error"] for row in rows if row["error"]).startswith("'=gone.txt cannot")
    scores = {row["source"]: row["score"] for row in rows if row["score"]}
    assert all(float(value) for value in scores.values()) and any(value.startswith("-") for value in scores.values())
    (tmp_path / "=gone.txt").unlink()  # which rewrites the file
    assert run(tiny_folder, Path(), Path("r.csv"), "--methods", "fast_detect") == 0
    assert {row["source"]: row["score"] for row in rows_of(tmp_path / "r.csv")} == scores


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl"])
def test_a_row_that_lacks_values_is_refused(tiny_folder: Path, essays: Path, tmp_path: Path, name: str, capsys: Any) -> None:
    out = tmp_path / name
    run(tiny_folder, essays, out)
    with out.open("a") as file:
        file.write("a.txt,0123\n" if name == "r.csv" else json.dumps(dict.fromkeys(COLUMNS)) + "\n")
    assert run(tiny_folder, essays, out) == 2 and "result 6 is incomplete, it lacks values; remove its line" in capsys.readouterr().err
    out.write_bytes(b"\xff\n")
    assert run(tiny_folder, essays, out) == 2 and "holds no results" in capsys.readouterr().err


def test_what_cannot_be_done_is_refused_before_scoring(tiny_folder: Path, essays: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(tiny_folder, essays, tmp_path / "r.csv", "--methods", "combined") == 2
    assert "combined needs a calibration: there is no calibration" in capsys.readouterr().err
    assert run(tiny_folder, essays, tmp_path / "r.csv", "--target-fpr", "0.01") == 2
    assert run(tiny_folder, tmp_path / "gone.txt", tmp_path / "r.csv") == 2 and "gone.txt" in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists()
    with pytest.raises(SystemExit):
        run(tiny_folder, essays, tmp_path / "r.csv", "--text-window", "10")
    assert "argument --text-window: 10 is too few; give 32 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tiny_folder, essays, tmp_path / "r.xlsx")
    with pytest.raises(SystemExit):
        run(tiny_folder, essays, tmp_path / "none/r.csv")
    assert "there is no folder" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_named_calibration_of_another_model_is_refused(tiny_folder: Path, essays: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(tiny_folder, essays, tmp_path / "r.csv", "--calibration", str(SMOLLM2_PATH)) == 2
    said = capsys.readouterr().err
    assert f"{SMOLLM2_PATH} does not apply" in said and f".gguf, but {tiny_folder.name} is served" in said
    assert not (tmp_path / "r.csv").exists()


def test_a_long_text_moves_the_bar_and_is_named(
    tiny_folder: Path, essays: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "SHOW_S", 0)
    (essays / "a-long.txt").write_text(TEXTS[0] * 40)
    assert run(tiny_folder, essays, tmp_path / "r.csv", "--text-window", "64") == EXIT_FAILED
    states = capsys.readouterr().err.split("\r")
    at_long = [state.split("|")[2].split("/")[0] for state in states if "0/6 texts, a-long.txt" in state]
    assert len(set(at_long)) > 5 and "6/6 texts" in states[-1] and "100%" in states[-1]


def test_the_bar_goes_on_where_it_stopped(tiny_folder: Path, essays: Path, tmp_path: Path, capsys: Any) -> None:
    run(tiny_folder, essays, tmp_path / "r.csv")
    capsys.readouterr()
    (essays / "c.txt").write_text("new")
    run(tiny_folder, essays, tmp_path / "r.csv")
    assert "5/6 texts, c.txt" in (said := capsys.readouterr().err) and "100%" in said.split("\r")[-1] and "6/6 texts" in said


def test_interrupted_before_the_first_text_it_names_no_results(
    tiny_folder: Path, essays: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "create_scorer", interrupted)
    assert run(tiny_folder, essays, tmp_path / "r.csv") == 130
    assert capsys.readouterr().err == "stopped; nothing was scored yet\n"


def test_a_full_disk_ends_the_command_with_a_sentence(
    tiny_folder: Path, essays: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.csv").symlink_to("/dev/full")
    monkeypatch.setattr(results, "split_lines", lambda path: (b"", b""))  # reading /dev/full never ends
    assert run(tiny_folder, essays, tmp_path / "r.csv") == 2
    assert "r.csv cannot be written (No space left on device); put that right, and the same command goes on" in capsys.readouterr().err


def test_a_broken_file_and_the_results_in_the_folder_stop_nothing(tiny_folder: Path, essays: Path, capsys: Any) -> None:
    (essays / "b.jsonl").write_bytes(b"\xff")
    (essays / "c.pdf").write_bytes(b"x")
    for _ in range(2):
        assert run(tiny_folder, essays, essays / "r.csv") == EXIT_FAILED
        said = capsys.readouterr()
        assert said.err.startswith("1 file left out: .pdf 1\n") and said.out.endswith(". 1 file left out: .pdf 1\n")
        rows = rows_of(essays / "r.csv")
        assert [row["verdict"] for row in rows] == ["uncalibrated", ""] and "encoded cannot be told" in rows[1]["error"]


def test_a_frame_keeps_its_index(tiny_folder: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"essay": [TEXTS[0], None, TEXTS[1]]}, index=["x", "y", "z"])
    scorer = create_scorer(ModelSettings(path=str(tiny_folder), device="cpu", slots=1))
    scored = score.score_frame(frame, scorer, "essay")
    assert list(scored.index) == ["x", "y", "z"] and list(scored["verdict"].fillna("")) == ["uncalibrated", "", "uncalibrated"]
    assert scored.loc["y", "error"] == "this line has no text"
    joined = frame.join(scored)
    assert set(COLUMNS) - {"source"} <= set(joined.columns)


def test_more_texts_than_fit_in_flight_come_in_order(tiny_folder: Path) -> None:
    scorer = create_scorer(ModelSettings(path=str(tiny_folder), device="cpu", slots=1))
    texts = ["" if n % 7 == 0 else "word " * (1 + 37 * n % 90) for n in range(40)]
    scores = list(scorer.score(texts))
    assert [item.index for item in scores] == list(range(40))
    alone = [next(iter(scorer.score([text]))) for text in texts]
    assert [item.scored_tokens for item in scores] == [item.scored_tokens for item in alone]
