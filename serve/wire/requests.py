"""From a validated body to jobs for the engine: defaults filled in, tokens counted, what cannot be served refused by name.

Knows no router and no answer.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from app.engine.request import Facts, Generate, Sampling
from app.errors import ContextTooLong, InvalidRequest, SetupError
from app.schemas import ChatRequest, CompletionRequest, SamplingFields, Tier, UsedTier
from app.tokenizer import Tokenizer
from serve.wire.logprobs import Ruler
from serve.wire.structured import Form, form_of

DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
LENGTH = 16  # tokens of a completion that says nothing of it


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to continue. Where they are echoed: their text, and the character of it that each begins at."""

    ids: tuple[int, ...]
    text: str = ""
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """What an answer is to look like. Of `copies` answers sampled for a prompt the best `n` are its choices."""

    chat: bool
    n: int = 1
    copies: int = 1
    logprobs: int | None = None  # likeliest tokens beside each token; None: no log-probabilities at all
    echo: bool = False
    bare: bool = False  # the echo is all that is wanted: the one token that the engine has to sample is dropped
    tier: UsedTier | None = None
    form: Form = Form()
    metadata: dict[str, str] | None = None


def chat_terms(body: ChatRequest, tokenizer: Tokenizer) -> Terms:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest("give max_tokens or max_completion_tokens, not both", param="max_tokens")
    return Terms(
        chat=True,
        n=body.n or 1,
        copies=body.n or 1,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        tier=tier_of(body.service_tier),
        form=form_of(body, tokenizer),
        metadata=body.metadata,
    )


def completion_terms(body: CompletionRequest) -> Terms:
    n = body.n or 1
    copies = n if body.best_of is None else body.best_of
    if copies < n:
        raise InvalidRequest(f"best_of is {copies}, but n is {n}: it must be at least n", param="best_of")
    if copies > n and body.stream:
        raise InvalidRequest("best_of cannot be streamed: the best answer is known when all are whole", param="best_of")
    echo = bool(body.echo)
    if body.max_tokens == 0 and not echo:
        raise InvalidRequest("max_tokens must be at least 1; 0 only with echo, which then gives the prompt alone", param="max_tokens")
    return Terms(False, n, copies, body.logprobs, echo, body.max_tokens == 0, tier_of(body.service_tier))


def tier_of(asked: Tier | None) -> UsedTier | None:
    """What is done for the tier asked for, which the answer names; None where none was."""
    return "default" if asked == "auto" else asked


def jobs_of(  # one for each copy of each prompt, in this order
    id: str, body: ChatRequest | CompletionRequest, terms: Terms, prompts: list[Prompt], tokenizer: Tokenizer, facts: Facts
) -> list[Generate]:
    sampling = sampling_of(body, tokenizer)
    stops = frozenset(body.stop_token_ids or ())
    check_tokens(stops, tokenizer, "stop_token_ids")
    limit = limit_of(body)
    made: list[Generate] = []
    for prompt in prompts:
        most = room(prompt.ids, limit, facts, "messages" if terms.chat else "prompt")
        check_least(sampling.min_tokens, 0 if terms.bare else most)
        for copy in range(terms.copies):
            job = Generate(
                id=f"{id}/{len(made)}",
                prompt=prompt.ids,
                max_tokens=most,
                sampling=replace(sampling, seed=sampling.seed + copy),
                stop=body.stop_words,
                stop_tokens=stops,
                ignore_eos=bool(body.ignore_eos),
                logprobs=0 if terms.logprobs is None and terms.copies > terms.n else terms.logprobs,
                prompt_logprobs=terms.logprobs if terms.echo else None,
                tier=terms.tier or "default",
                grammar=terms.form.grammar,
            )
            made.append(job)
    return made


def limit_of(body: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(body, CompletionRequest):
        return LENGTH if body.max_tokens is None else max(body.max_tokens, 1)  # the engine has to sample one; see `Terms.bare`
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def sampling_of(body: SamplingFields, tokenizer: Tokenizer) -> Sampling:
    """What the request says, else what the model's generation_config.json says, else plain sampling."""

    def pick(name: str, plain: float) -> float:
        asked, default = getattr(body, name), tokenizer.defaults.get(name)
        return asked if asked is not None else plain if default is None else default

    return Sampling(
        temperature=float(pick("temperature", 1.0)),
        top_k=max(0, int(pick("top_k", 0))),
        top_p=float(pick("top_p", 1.0)),
        min_p=float(pick("min_p", 0.0)),
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        repetition_penalty=float(pick("repetition_penalty", 1.0)),
        presence_penalty=float(pick("presence_penalty", 0.0)),
        frequency_penalty=float(pick("frequency_penalty", 0.0)),
        logit_bias=_biases(body.logit_bias or {}, tokenizer),
        bad_words=_banned(body.bad_words or [], tokenizer),
        min_tokens=0 if body.min_tokens is None else body.min_tokens,
    )


def check_defaults(defaults: dict[str, Any]) -> None:
    """Raises `SetupError` for a generation_config.json that asks for what no request may ask for. Some write top_k: -1 for none."""
    named = {name: defaults[name] for name in DEFAULTS if defaults.get(name) is not None}
    try:
        SamplingFields.model_validate({name: value for name, value in named.items() if (name, value) != ("top_k", -1)})
    except ValidationError as error:
        first = error.errors()[0]
        raise SetupError(f"generation_config.json of the model: {first['loc'][0]}: {first['msg']}, not {first['input']!r}") from error


def _biases(asked: dict[str, float], tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    found = {int(key): float(bias) for key, bias in asked.items()}
    check_tokens(found, tokenizer, "logit_bias")
    return tuple((token, bias) for token, bias in sorted(found.items()) if bias != 0.0)


def _banned(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    found = (tokens for place, word in enumerate(words) for tokens in tokenizer.sequences(word, f"bad_words.{place}"))
    return tuple(dict.fromkeys(found))


def check_tokens(ids: Iterable[int], tokenizer: Tokenizer, param: str, numbered: bool = False) -> None:
    """`numbered`: name the place in the list, too."""
    size = len(tokenizer)
    for place, id in enumerate(ids):
        if not 0 <= id < size:
            where = f"{param}.{place}" if numbered else param
            raise InvalidRequest(f"{where}: {id} is not in the vocabulary; token ids must lie in 0..{size - 1}", param=where)


def check_least(least: int, most: int) -> None:
    if least > most:
        raise InvalidRequest(f"min_tokens is {least}, but the answer may have at most {most} tokens", param="min_tokens")


def room(prompt: tuple[int, ...], limit: int | None, facts: Facts, param: str, limited: str = "max_tokens") -> int:
    """How many tokens the answer may have; `param` holds the prompt, `limited` the limit. Raises `ContextTooLong` with the numbers."""
    if not prompt:
        raise InvalidRequest(f"the tokenizer of {facts.name} makes no token of this", param=param)
    left = facts.context - len(prompt)
    if left < 1:
        raise ContextTooLong(f"the prompt has {len(prompt)} tokens, the context of {facts.name} holds {facts.context}", param=param)
    if limit is not None and limit > left:
        raise ContextTooLong(
            f"the prompt has {len(prompt)} tokens and {limited} is {limit}: together {len(prompt) + limit}, but the context of "
            f"{facts.name} holds {facts.context}; ask for at most {left}",
            param=limited,
        )
    return left if limit is None else limit


def given_prompts(body: CompletionRequest) -> list[Any]:
    """Texts or lists of token ids."""
    given: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    return [given] if given and isinstance(given[0], int) else given


def prompts_of(body: CompletionRequest, tokenizer: Tokenizer, facts: Facts) -> list[Prompt]:
    given = given_prompts(body)
    if not given or any(not item or (isinstance(item, str) and not item.strip()) for item in given):
        raise InvalidRequest("the prompt is empty or blank", param="prompt")
    for item in given:
        if not isinstance(item, str):  # before its tokens are looked at one by one
            room(tuple(item), None, facts, "prompt")
    return [_prompt(item, tokenizer, bool(body.echo)) for item in given]


def _prompt(item: str | list[int], tokenizer: Tokenizer, echo: bool) -> Prompt:
    if isinstance(item, str):
        if not echo:
            return Prompt(tokenizer.encode(item, "prompt"))
        encoded = tokenizer.read(item, "prompt", plain=False)
        return Prompt(encoded.ids, item, tuple(encoded.starts()))
    check_tokens(item, tokenizer, "prompt")
    if not echo:
        return Prompt(tuple(item))
    ruler = Ruler(tokenizer)
    return Prompt(tuple(item), tokenizer.decode(item), tuple(ruler.push(token) for token in item))
