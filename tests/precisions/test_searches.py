"""`POST /generate` in every precision: greedy, sampled, beam search and contrastive search, the searches against their definitions."""

import torch
from inprocess import LocalModel
from reference import Reference

PATH = "/generate"
TEXTS = ["Once upon a time", "There was a king who", "The fox said to the crow"]
LENGTH, BEAM_LENGTH = 10, 4
TOP_K, ALPHA = 4, 0.6


def answers(model: LocalModel, prompt: str | list[str], **fields: object) -> list[str]:
    texts: list[str] = model.post(PATH, prompt=prompt, **{"max_length": LENGTH, **fields})["gen_text"]
    return texts


def test_greedy_and_sampled_answers_are_those_of_completions(steady: LocalModel) -> None:
    greedy = [steady.complete(text, max_tokens=LENGTH, temperature=0)["text"] for text in TEXTS]
    assert answers(steady, TEXTS) == greedy
    sampling = {"temperature": 1.2, "top_k": 20, "seed": 4}
    sampled = [steady.complete(text, max_tokens=LENGTH, **sampling)["text"] for text in TEXTS]
    assert answers(steady, TEXTS, do_sample=True, **sampling) == sampled != greedy


def test_the_prompt_the_end_sequence_and_the_least_length(model: LocalModel) -> None:
    (plain,) = answers(model, TEXTS[0])
    end = plain[5:7]
    assert answers(model, TEXTS[0], return_prompt=True, end_sequence=end) == [TEXTS[0] + plain[: plain.index(end)]]
    for search in ({}, {"num_beams": 3}, {"penalty_alpha": ALPHA, "top_k": TOP_K}):
        full = answers(model, TEXTS, min_length=LENGTH, **search)
        assert len(set(full)) == 3 and full == answers(model, TEXTS, min_length=LENGTH, **search)


def test_beam_search_finds_an_answer_as_likely_as_transformers_does(steady: LocalModel, reference: Reference) -> None:
    found = answers(steady, TEXTS, num_beams=4, max_length=BEAM_LENGTH)
    assert found == [answers(steady, text, num_beams=4, max_length=BEAM_LENGTH)[0] for text in TEXTS]
    assert found != answers(steady, TEXTS, max_length=BEAM_LENGTH)
    for text, answer in zip(TEXTS, found, strict=True):
        prompt = steady.encode(text)
        row = torch.tensor([prompt])
        options = {"max_new_tokens": BEAM_LENGTH, "do_sample": False, "num_beams": 4, "pad_token_id": 0, "eos_token_id": 1}
        theirs = reference.model.generate(row, attention_mask=torch.ones_like(row), **options)[0].tolist()
        spellings = [[*prompt, *tokens] for tokens in spelled(steady, answer.encode(), BEAM_LENGTH)]
        ours = max(sum(reference.logprobs(ids)[-BEAM_LENGTH:]) for ids in spellings)
        assert ours >= sum(reference.logprobs(theirs)[-BEAM_LENGTH:]) - reference.tolerance * BEAM_LENGTH


def spelled(model: LocalModel, rest: bytes, length: int) -> list[list[int]]:
    """All ways to write an answer with so many tokens."""
    if not length:
        return [] if rest else [[]]
    pieces = {token: model.tokenizer.piece(token).data for token in range(2, len(model.tokenizer))}
    fitting = [token for token, piece in pieces.items() if rest.startswith(piece)]
    return [[token, *more] for token in fitting for more in spelled(model, rest[len(pieces[token]) :], length - 1)]


def test_contrastive_search_takes_what_its_definition_prefers(model: LocalModel, reference: Reference) -> None:
    """Of the likeliest tokens the one with the best score (arXiv 2202.06417, eq. 5), or one that the tolerance does not tell from it."""
    found = answers(model, TEXTS, penalty_alpha=ALPHA, top_k=TOP_K)
    assert found != answers(model, TEXTS)
    for text, answer in zip(TEXTS, found, strict=True):
        assert is_spelled(model, reference, model.encode(text), LENGTH, answer.encode())


def is_spelled(model: LocalModel, reference: Reference, tokens: list[int], length: int, rest: bytes) -> bool:
    """Whether `length` preferred tokens spell the rest of the answer; several may begin with the same letters."""
    if not length:
        return not rest
    pieces = {token: model.tokenizer.piece(token).data for token in preferred(reference, tokens)}
    fitting = [token for token, piece in pieces.items() if rest.startswith(piece)]
    return any(is_spelled(model, reference, [*tokens, token], length - 1, rest[len(pieces[token]) :]) for token in fitting)


@torch.inference_mode()
def preferred(reference: Reference, tokens: list[int]) -> list[int]:
    """The tokens that may be among the likeliest and may have the best score of those that surely are."""
    out = reference.model(torch.tensor([tokens]), output_hidden_states=True)
    logits = out.logits[0, -1].float()
    ahead = logits - logits.topk(TOP_K).values[-1]
    candidates = (ahead >= -reference.tolerance).nonzero()[:, 0]
    tried = reference.model(torch.tensor([[*tokens, int(token)] for token in candidates]), output_hidden_states=True)
    states, context = tried.hidden_states[-1][:, -1], out.hidden_states[-1][0]
    alike = torch.nn.functional.cosine_similarity(context[None], states[:, None], dim=-1).amax(-1)
    scores = (1 - ALPHA) * logits.softmax(-1)[candidates] - ALPHA * alike
    best = torch.where(ahead[candidates] > reference.tolerance, scores, -torch.inf).max()
    tokens_with_it: list[int] = candidates[scores >= best - reference.tolerance / 4].tolist()
    return tokens_with_it
