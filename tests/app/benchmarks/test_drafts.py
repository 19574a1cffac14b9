"""Rounds with drafts and without on a tiny model."""

import json

import pytest
from drafting import free_rows

from app.benchmarks import drafts
from app.benchmarks.engine import BenchFailed
from app.models.loading import create_engine
from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from models import synthetic

TINY = synthetic.Shape(hidden=64, layers=2, heads=4, kv_heads=2, ff=128, vocabulary=700, context=2048)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.save(TINY, tmp_path_factory.mktemp("bench"), 0)


def test_each_kind_of_answers_is_measured(folder, capsys):
    with free_rows():
        assert drafts.main(["--model", str(folder), "--at-once", "2", "--rounds", "1", "--what", "copy", "form"]) == 0
    copy, form = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert (copy["what"], form["what"], copy["at_once"], len(copy["rounds"])) == ("copy", "form", 2, 1)
    (round_,) = form["rounds"]
    assert form["ratio"] == round_["drafts_per_s"] / round_["plain_per_s"]
    assert round_["accepted"] > 100, "most of the form's tokens are certain"


def test_a_draft_model_is_compared(folder, capsys):
    arguments = ["--model", str(folder), "--draft", str(folder), "--at-once", "1", "--rounds", "1", "--what", "prose"]
    assert drafts.main(arguments) == 0
    (result,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert result["ratio"] > 0


def test_other_tokens_with_drafts_are_an_error(folder, monkeypatch):
    engine, _ = create_engine(ModelSettings(path=str(folder), slots=1, context=1024))
    step = engine.step

    def changed():
        events = step()
        if engine.drafter.is_on:
            for slot in engine.scheduler.slots:
                slot.tokens[-1:] = [5] if slot.request else []
        return events

    monkeypatch.setattr(engine, "step", changed)
    with pytest.raises(BenchFailed, match="prose, 1 at once"):
        drafts.compare(engine, Tokenizer(str(folder)), "prose", 1, 0)
