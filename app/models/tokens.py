"""Whether a model, its tokenizer, its observer and its draft model mean the same tokens by the same ids."""

import logging
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from app.errors import SetupError
from app.models.source import Source

log = logging.getLogger(__name__)
Ids = Mapping[str, int]  # by token


def check_tokens(source: Source, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Added tokens, such as one for padding, may lie beyond the model's `vocabulary`: a text that has them is refused. Raises `SetupError`
    for any other token there, and for those that an adapter has added without their embeddings.
    """
    beyond = {token for token, id in tokenizer.get_vocab().items() if id >= vocabulary}
    if not beyond:
        return
    sizes = f"tokenizer has {len(tokenizer)} tokens, the model only {vocabulary} embeddings"
    if source.adapter is not None:
        raise SetupError(f"{source.path}: the adapter's {sizes}; save the adapter with its embeddings (peft's save_embedding_layers=True)")
    if beyond - tokenizer.get_added_vocab().keys():
        raise SetupError(f"{source.path}: the {sizes}: they do not belong together")
    log.warning("%s: the %s; a text with one of the rest is refused: %s", source.path, sizes, " ".join(sorted(beyond)))


def check_observer(model: Ids, observer: Ids, path: str) -> None:
    """Raises `SetupError` unless both have the same tokens under the same ids. `path` is the observer's."""
    if model != observer:
        raise SetupError(
            f"model.observer: {path} has another vocabulary than the model; binoculars needs two models with the same tokenizer"
        )


def check_draft(model: Ids, draft: Ids, path: str) -> None:
    """Raises `SetupError` unless both have the same tokens under the same ids. `path` is the draft's."""
    if model == draft:
        return
    problem = f"it has {len(draft)} tokens, the model {len(model)}"
    if len(model) == len(draft):
        token = min((id, token) for token, id in model.items() if draft.get(token) != id)[1]
        problem = f"token {token!r} has the id {draft.get(token)} there and {model[token]} in the model"
    raise SetupError(
        f"model.draft: {path} has another vocabulary than the model: {problem}; give a model with the same tokenizer, as a smaller one of "
        "the same family usually has, or leave model.draft out"
    )
