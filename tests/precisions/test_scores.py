"""`POST /v1/score` in every precision: every method and granularity, with and without the observer, against transformers' own numbers."""

import json
import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from inprocess import TEXT, LocalModel, LocalServer
from reference import Reference

from app import calibrate
from app.scoring import fitting
from app.scoring.calibration import Calibration, identity_of
from app.scoring.combined import CombinedModel, Question, Term
from app.scoring.detector import Detector, detector_of
from app.scoring.thresholds import Bucket, MethodCalibration, Threshold
from app.scoring.windows import windows

PATH = "/v1/score"
METHODS = ["binoculars", "likelihood_ratio", "fast_detect", "perplexity", "log_rank"]
STORY = (
    "The old king sat by the fire and looked at the snow. He had three sons, and none of them would stay at home! One went to sea; "
    "one went to the wars. The youngest kept the geese, and “what shall I do?” said the king."
)


def plain(text: str) -> str:
    """Quotes as the scorer normalises them."""
    return text.replace("“", '"').replace("”", '"')


def score(model: LocalModel, text: str, **fields: Any) -> dict[str, Any]:
    (item,) = model.post(PATH, text=text, **fields)["data"]
    assert item["object"] == "score", item
    return dict(item)


def test_every_method_is_its_formula(model: LocalModel, reference: Reference, observer_reference: Reference) -> None:
    item = score(model, STORY, methods=METHODS)
    ids = model.encode(plain(STORY))
    log_p, log_q = (each.logits(ids)[:-1].log_softmax(-1) for each in (reference, observer_reference))
    targets = torch.tensor(ids[1:])[:, None]
    surprise = -float(log_p.gather(-1, targets).mean())
    mean = (log_p.exp() * log_p).sum(-1)
    variance = (log_p.exp() * log_p.square()).sum(-1) - mean.square()
    crossed = -float((log_q.exp() * log_p).sum(-1).mean())
    ranks = (log_p > log_p.gather(-1, targets)).sum(-1) + 1
    expected = {
        "binoculars": surprise / crossed,
        "likelihood_ratio": -surprise - float(log_q.gather(-1, targets).mean()),
        "fast_detect": float((log_p.gather(-1, targets)[:, 0] - mean).sum() / variance.sum().sqrt()),
        "perplexity": math.exp(surprise),
        "log_rank": float(ranks.float().log().mean()),
    }
    assert list(item["scores"]) == METHODS and item["scored_tokens"] == len(ids) - 1
    for method, value in item["scores"].items():
        assert value == pytest.approx(expected[method], rel=reference.tolerance / 5, abs=reference.tolerance / 2), method
    statistics = item["statistics"]
    assert statistics["cross_entropy"] == pytest.approx(crossed, abs=reference.tolerance / 2)
    assert statistics["mean_entropy"] == pytest.approx(-float(mean.mean()), abs=reference.tolerance / 2)
    assert item["scores"]["binoculars"] == pytest.approx(statistics["log_perplexity"] / statistics["cross_entropy"])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_alone_is_the_method_among_others(model: LocalModel, method: str) -> None:
    """A method that needs no observer is computed without one."""
    together, alone = score(model, STORY, methods=METHODS), score(model, STORY, methods=[method])
    assert list(alone["scores"]) == [method] and math.isfinite(alone["scores"][method])
    assert alone["scores"][method] == pytest.approx(together["scores"][method], rel=1e-4)
    assert (alone["statistics"]["cross_entropy"] is None) == (method not in METHODS[:2])


@pytest.mark.parametrize("granularity", ["none", "sentence", "token"])
def test_every_granularity_covers_the_text(model: LocalModel, granularity: str) -> None:
    item = score(model, STORY, methods=["perplexity"], granularity=granularity)
    assert (item["sentences"] is not None, item["tokens"] is not None) == (granularity != "none", granularity == "token")
    if granularity == "none":
        return
    assert [STORY[each["start"] : each["end"]].strip()[-1] for each in item["sentences"]] == list(".!.") + [STORY[-1]]
    assert sum(each["tokens"] for each in item["sentences"]) == item["scored_tokens"]
    mean = sum(each["logprob"] * each["tokens"] for each in item["sentences"]) / item["scored_tokens"]
    assert math.exp(-mean) == pytest.approx(item["scores"]["perplexity"], rel=1e-4)
    for each in item["sentences"]:
        assert each["score"] == pytest.approx(math.exp(-each["logprob"]), rel=1e-4)
    if granularity == "token":
        check_tokens(item, len(model.tokenizer))


def check_tokens(item: dict[str, Any], vocabulary: int) -> None:
    assert len(item["tokens"]) == item["scored_tokens"]
    for token in item["tokens"]:
        assert isinstance(token["rank"], int) and 1 <= token["rank"] <= vocabulary
        assert token["logprob"] <= 0 and 0 <= token["entropy"] <= math.log(vocabulary) + 1e-3
        assert token["text"] == plain(STORY[token["start"] : token["end"]])
        assert (token["rank"] == 1) <= (token["logprob"] >= -math.log(vocabulary) - 1e-3)
    mean_log_rank = sum(math.log(token["rank"]) for token in item["tokens"]) / len(item["tokens"])
    assert mean_log_rank == pytest.approx(item["statistics"]["mean_log_rank"], rel=1e-4)


def test_a_text_longer_than_the_window_is_scored_in_windows(model: LocalModel, reference: Reference) -> None:
    rng = random.Random(3)
    text = " ".join(rng.choice(STORY.split()) for _ in range(320))
    ids = model.encode(plain(text))
    assert len(ids) > 2 * model.facts.text_window
    item = score(model, text, granularity="token")
    assert item["windows"] == len(windows(len(ids), model.facts.text_window)) > 2 and not item["truncated"]
    expected = []
    for window in windows(len(ids), model.facts.text_window):
        expected += reference.logprobs(ids[window.start : window.end])[window.scored_from - window.start - 1 :]
    assert [token["logprob"] for token in item["tokens"]] == pytest.approx(expected, abs=reference.tolerance)


def test_scores_do_not_depend_on_the_company(steady: LocalModel) -> None:
    rng = random.Random(4)
    texts = [" ".join(rng.choice(STORY.split()) for _ in range(length)) for length in (2, 30, 90, 30, 2, 90)]
    alone = [score(steady, text, methods=METHODS)["scores"] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        chats = [pool.submit(steady.complete, STORY, seed=seed, max_tokens=40, temperature=1) for seed in range(4)]
        answer = steady.post(PATH, texts=texts, methods=METHODS)
        assert all(chat.result(60)["text"] for chat in chats)
    assert [item["index"] for item in answer["data"]] == list(range(6))
    for item, scores in zip(answer["data"], alone, strict=True):
        assert item["scores"] == pytest.approx(scores, rel=1e-4, abs=1e-4)
    assert len({item["scores"]["binoculars"] for item in answer["data"]}) == 6


@pytest.mark.parametrize("text", ["", " \n", "a", "猫"])
def test_next_to_nothing_is_insufficient(model: LocalModel, text: str) -> None:
    item = score(model, text, granularity="token", methods=METHODS)
    assert item["verdict"] == "insufficient"
    assert (item["scores"]["perplexity"] is None) == (item["scored_tokens"] == 0) == (len(model.encode(text.strip())) < 2)
    assert "NaN" not in json.dumps(item) and "Infinity" not in json.dumps(item)


def test_the_models_own_text_looks_more_like_its_own(model: LocalModel) -> None:
    own = model.complete("Once upon a time", max_tokens=100, temperature=0.7, seed=1, ignore_eos=True, top_k=0, top_p=1, min_p=0)["text"]
    rng = random.Random(5)
    foreign = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ,.", k=len(own)))
    mine, other = score(model, own, methods=METHODS)["scores"], score(model, foreign, methods=METHODS)["scores"]
    assert all(mine[method] < other[method] for method in ("binoculars", "perplexity", "log_rank"))
    assert all(mine[method] > other[method] for method in ("likelihood_ratio", "fast_detect"))


def test_a_calibration_of_the_precision_gives_verdicts(
    model: LocalModel, server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "BOOTSTRAP_DRAWS", 5)
    prompts = ["Once upon a time", "The fox said"]
    own = model.post(TEXT, prompt=prompts, n=12, max_tokens=80, temperature=0.3, seed=1, ignore_eos=True)["choices"]
    rng = random.Random(6)
    texts = {
        "machine": [choice["text"] for choice in own],
        "human": ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=150)) for _ in range(24)],
    }
    for side, content in texts.items():
        (tmp_path / f"{side}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in content))
    settings, out = model.settings, tmp_path / "calibration.json"
    options = ["--model", settings.path, "--observer", str(settings.observer), "--quantize", settings.quantize, "--dtype", settings.dtype]
    options += ["--human", str(tmp_path / "human.jsonl"), "--machine", str(tmp_path / "machine.jsonl"), "--device", "cpu"]
    options += ["--targets", "0.05", "--buckets", "64", "--text-window", str(settings.text_window), "--no-collapse"]
    assert calibrate.main([*options, "--out", str(out)]) == 0
    with monkeypatch.context() as patch:
        patch.setitem(server.detectors, model.name, detector_of(settings.model_copy(update={"calibration": str(out)})))
        machine, human = ([score(model, text) for text in texts[side][:10]] for side in ("machine", "human"))
        with_target = score(model, texts["machine"][0], target_fpr=0.05)
    verdicts = Counter((side, item["verdict"]) for side, items in (("m", machine), ("h", human)) for item in items)
    assert verdicts["m", "machine"] and verdicts["h", "human"] and verdicts["m", "human"] + verdicts["h", "machine"] <= 1
    caught = next(item for item in machine if item["verdict"] == "machine")
    assert caught["p_machine"]["value"] > 0.5 and caught["scores"]["binoculars"] < caught["threshold"]
    assert (with_target["false_positive_rate"]["target"], with_target["false_positive_rate"]["n"]) == (0.05, 24)
    assert score(model, texts["machine"][0])["verdict"] == "uncalibrated"


def test_combined_weighs_the_statistics_of_both_models(model: LocalModel, server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {
        "likely": Term(statistic="binoculars", centre=1, spread=1, weight=-3),
        "pair": Term(statistic="likelihood_ratio", centre=0, spread=1, weight=5),
    }
    weights = CombinedModel(questions=tuple(Question(name=name, intercept=0.5, terms=(term,)) for name, term in terms.items()))  # type: ignore[arg-type]
    bucket = Bucket(
        min_tokens=64, max_tokens=None, n_human=9, n_machine=9, machine=(Threshold(value=99, target=0.01),), human=(), chance=None
    )
    calibration = Calibration(
        made="today", source="a test", models=identity_of(model.settings, model.facts), collapse=True, combined=weights,
        methods={"combined": MethodCalibration(direction="higher", buckets=(bucket,))},
    )  # fmt: skip
    monkeypatch.setitem(server.detectors, model.name, Detector(model.settings, (calibration,)))
    item, single = score(model, STORY), score(model, STORY, methods=METHODS)["scores"]
    odds = {"likely": 0.5 - 3 * (single["binoculars"] - 1), "pair": 0.5 + 5 * single["likelihood_ratio"]}
    assert (item["method"], item["verdict"]) == ("combined", "uncertain")
    assert item["scores"] == {"combined": pytest.approx(math.log(sum(map(math.exp, odds.values())) / 2), abs=1e-4)}
    (part,) = item["contributions"]
    assert part["question"] == max(odds, key=lambda name: odds[name]) and "observer" in part["meaning"]


def test_the_likeliest_tokens_are_those_of_the_forward_that_scores(model: LocalModel, reference: Reference) -> None:
    item = score(model, STORY, methods=["log_rank"], granularity="token", top_tokens=5)
    log_p = reference.logits(model.encode(plain(STORY)))[:-1].log_softmax(-1)
    best = log_p.topk(5).values
    for token, expected in zip(item["tokens"], best, strict=True):
        found = token["alternatives"]
        assert [each["logprob"] for each in found] == pytest.approx(expected.tolist(), abs=reference.tolerance)
        assert found == sorted(found, key=lambda each: -each["logprob"])
        own = [place for place, each in enumerate(found, 1) if abs(each["logprob"] - token["logprob"]) < 1e-4]
        assert bool(own) == (token["rank"] <= 5) or found[-1]["logprob"] == pytest.approx(token["logprob"], abs=1e-3)
    same = score(model, STORY, methods=["log_rank"], granularity="token")
    assert [token["logprob"] for token in same["tokens"]] == [token["logprob"] for token in item["tokens"]]
    assert all(token["alternatives"] is None for token in same["tokens"])
