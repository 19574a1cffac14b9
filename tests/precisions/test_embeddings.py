"""`POST /v1/embeddings` in every precision, against transformers' hidden states and against the vectors in float32."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from inprocess import LocalModel, LocalServer
from reference import Reference

PATH = "/v1/embeddings"
WORDS = "the old king sat by a fire and looked at snow; youngest kept geese, naïve ☕ 猫".split()
SIMILARITY = {"float32": 1 - 1e-6}  # least cosine to the states of the same rounded weights, computed in float32; 0.999 in the others
TO_FLOAT32 = {"float32": 1 - 1e-6, "bfloat16": 0.999, "int8": 0.998}  # to those of the weights as they were; 0.85 in 4 bits


def texts() -> list[str]:
    """From one token to several steps."""
    rng = random.Random(7)
    return ["a", *(" ".join(rng.choices(WORDS, k=count)) for count in (3, 12, 60))]


def vectors(model: LocalModel, pooling: str, texts: list[str]) -> torch.Tensor:
    """`[texts, hidden]`."""
    answer = model.post(PATH, input=texts, pooling=pooling)
    assert [item["index"] for item in answer["data"]] == list(range(len(texts)))
    return torch.tensor([item["embedding"] for item in answer["data"]])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_the_models_states_and_near_those_in_float32(
    model: LocalModel, server: LocalServer, reference: Reference, pooling: str
) -> None:
    found, exact = vectors(model, pooling, texts()), vectors(server.model("float32"), pooling, texts())
    assert found.norm(dim=-1).tolist() == pytest.approx([1] * len(found), abs=1e-5)
    for text, vector in zip(texts(), found, strict=True):
        with torch.inference_mode():
            states = reference.model(torch.tensor([model.encode(text)]), output_hidden_states=True).hidden_states[-1][0].float()
        expected = states.mean(0) if pooling == "mean" else states[-1]
        assert float(vector @ expected / expected.norm()) > SIMILARITY.get(model.name, 0.999), text[:20]
    similarities = (found * exact).sum(-1)
    assert float(similarities.min()) > TO_FLOAT32.get(model.name, 0.85)
    others = found @ exact.T - torch.eye(len(found)) * 2  # each vector is nearer to its own than to that of another text
    assert bool((others.max(-1).values < similarities).all())


def test_embeddings_do_not_depend_on_the_company(steady: LocalModel) -> None:
    alone = torch.cat([vectors(steady, "mean", [text]) for text in texts()])
    with ThreadPoolExecutor(4) as pool:
        chats = [pool.submit(steady.complete, "Once upon a time", seed=seed, max_tokens=40, temperature=1) for seed in range(3)]
        together = vectors(steady, "mean", texts())
        assert all(chat.result(60)["text"] for chat in chats)
    assert float((alone - together).abs().max()) < 1e-4
