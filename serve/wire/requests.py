"""From a validated request body to jobs for the engine: fills in defaults, counts tokens and refuses by name what cannot be served.

Knows neither the router nor the answer.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from app.engine.facts import Facts
from app.engine.request import Generate, SamplingParams
from app.errors import ContextTooLong, InvalidRequest
from app.models.sampling import with_parameters
from app.schemas import ChatRequest, CompletionRequest, SamplingFields, Tier, UsedTier
from app.schemas.thought import UNLIMITED
from app.tokenizer import Tokenizer
from serve.admission.client import KEY
from serve.wire.ignored import ignore
from serve.wire.logprobs import OffsetTracker
from serve.wire.structured import StructuredOutput, completion_output, structured_output_of
from serve.wire.thought import thought_of

MAX_PROMPT_ENTRIES = 500_000  # log-probabilities of prompts' tokens in one answer: each takes some 20 to 100 bytes of its body
DEFAULT_MAX_TOKENS = 16  # of a completion without max_tokens, as with OpenAI


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to continue. A chat's has its text, too; one that is echoed has that and the character at which each token starts."""

    ids: tuple[int, ...]
    text: str = ""
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """What the answer tells of single tokens, and what of its end."""

    ids: bool = False
    prompt_logprobs: int | None = None  # number of top tokens listed beside each token of the prompt; None: nothing is
    stop_tokens: frozenset[int] = frozenset()  # the request's own
    ignore_eos: bool = False
    keeps_stop: bool = False  # what ends the answer stays in its text


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What the answer contains. `samples` answers are generated for each prompt; the best `n` of them become its choices."""

    chat: bool
    n: int = 1
    samples: int = 1
    logprobs: int | None = None  # number of top tokens listed beside each token; None: no log-probabilities at all
    echo: bool = False
    prompt_only: bool = False  # echo with max_tokens 0: the engine has to sample one token, which is dropped, and needs no room for it
    tier: UsedTier | None = None
    structured: StructuredOutput = StructuredOutput()
    metadata: dict[str, str] | None = None
    tokens: TokenOptions = TokenOptions()


def chat_options(body: ChatRequest, tokenizer: Tokenizer, prompt: str) -> AnswerOptions:
    """Raises `InvalidRequest`. `prompt` is the text of the conversation."""
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    thought = thought_of(tokenizer, prompt, body.messages[-1].text if body.continues else "")
    structured = structured_output_of(body, tokenizer, thought)
    if structured.thought_limit is not None and body.allowed_token_ids:
        message = "allowed_token_ids cannot be combined with a limit of the thought, after which its closing mark is written"
        raise InvalidRequest(message, param="allowed_token_ids")
    return AnswerOptions(
        chat=True,
        n=body.n or 1,
        samples=body.n or 1,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        tier=used_tier(body.service_tier),
        structured=structured,
        metadata=body.metadata,
        tokens=_token_options(body),
    )


def completion_options(body: CompletionRequest) -> AnswerOptions:
    n = body.n or 1
    samples = n if body.best_of is None else body.best_of
    if samples < n:
        raise InvalidRequest(f"best_of is {samples}, but n is {n}: best_of must be at least n", param="best_of")
    if samples > n and body.stream:
        raise InvalidRequest("best_of cannot be streamed: the best answer is known only when all are complete", param="best_of")
    echo = bool(body.echo)
    if body.answer_limit == 0 and not echo:
        raise InvalidRequest(
            "max_tokens must be at least 1; 0 is allowed only with echo: true, and returns the prompt alone", param="max_tokens"
        )
    tier, tokens = used_tier(body.service_tier), _token_options(body)
    return AnswerOptions(False, n, samples, body.logprobs, echo, body.answer_limit == 0, tier, completion_output(body), tokens=tokens)


def _token_options(body: ChatRequest | CompletionRequest) -> TokenOptions:
    if body.prompt_logprobs is not None and body.stream:
        raise InvalidRequest("prompt_logprobs cannot be streamed: leave out stream", param="prompt_logprobs")
    return TokenOptions(
        ids=bool(body.return_token_ids),
        prompt_logprobs=body.prompt_logprobs,
        stop_tokens=frozenset(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        keeps_stop=bool(body.include_stop_str_in_output),
    )


def used_tier(requested: Tier | None) -> UsedTier | None:
    """The service tier that the answer reports; None where the request named none. One that goes before all others is left out."""
    if requested in {"priority", "scale"}:
        ignore("service_tier", f"{requested!r}: there is none that goes before 'default'")
    return requested if requested in {None, "flex"} else "default"


def make_jobs(
    id: str, body: ChatRequest | CompletionRequest, options: AnswerOptions, prompts: list[Prompt], tokenizer: Tokenizer, facts: Facts
) -> list[Generate]:
    """One job per sample: all samples of the first prompt, then those of the second. Sample i is seeded with seed + i."""
    check_prompt_entries(options, sum(len(prompt.ids) for prompt in prompts))
    sampling = replace(sampling_of(body, tokenizer, facts), allowed_tokens=_allowed_tokens(body, tokenizer))
    if body.repeat_penalty is not None:
        sampling = replace(sampling, repetition_penalty=body.repeat_penalty)
    stop_tokens = frozenset(body.stop_token_ids or ())
    check_token_ids(stop_tokens, tokenizer, "stop_token_ids")
    limit, prediction = body.answer_limit, _prediction_of(body, tokenizer, facts)
    requested = None if limit == UNLIMITED else limit
    owner, private = cache_owner(body.user)
    jobs: list[Generate] = []
    for prompt in prompts:
        max_tokens = max_new_tokens(prompt.ids, requested, facts, "messages" if options.chat else "prompt")
        if not options.chat and limit is None:
            max_tokens = min(max_tokens, DEFAULT_MAX_TOKENS)  # nobody asked for more than the context leaves
        check_min_tokens(sampling.min_tokens, max_tokens)
        for sample in range(options.samples):
            job = Generate(
                id=f"{id}/{len(jobs)}",
                prompt=prompt.ids,
                max_tokens=max(max_tokens, 1),  # see `AnswerOptions.prompt_only`
                unlimited=limit == UNLIMITED or (options.chat and limit is None),
                sampling=replace(sampling, seed=sampling.seed + sample),
                stop=body.stop_words,
                stop_tokens=stop_tokens,
                ignore_eos=bool(body.ignore_eos),
                logprobs=0 if options.logprobs is None and options.samples > options.n else options.logprobs,  # best_of ranks by them
                prompt_logprobs=_prompt_logprobs(options, sample),
                tier=options.tier or "default",
                grammar=options.structured.grammar,
                thought=options.structured.thought_limit,
                progress=bool(body.return_progress),
                adapter=facts.adapter,
                prediction=prediction,
                owner=owner,
                private=private,
            )
            jobs.append(job)
    return jobs


def check_prompt_entries(options: AnswerOptions, tokens: int) -> None:
    """Raises `InvalidRequest` when the answer would list too many log-probabilities of the `tokens` of all its prompts."""
    listed = options.tokens.prompt_logprobs
    own = 0 if listed is None else tokens * (listed + 1) * (1 if options.chat else options.n)
    echoed = 0 if options.logprobs is None or not options.echo else tokens * (options.logprobs + 1) * options.samples
    if own + echoed > MAX_PROMPT_ENTRIES:
        param = "prompt_logprobs" if own >= echoed else "logprobs"
        raise InvalidRequest(
            f"{param}: the answer would list {own + echoed:,} log-probabilities of the {tokens:,} tokens of its prompts; at most "
            f"{MAX_PROMPT_ENTRIES:,} are supported in one answer: ask for fewer at each token, or send fewer prompts in a request",
            param=param,
        )


def _prompt_logprobs(options: AnswerOptions, sample: int) -> int | None:
    """How many top tokens the engine is to list beside those of the prompt. The samples of a prompt have one of them together, unless each
    repeats it.
    """
    asked = [options.logprobs] if options.echo else []
    asked += [options.tokens.prompt_logprobs] if sample == 0 else []
    return max((each for each in asked if each is not None), default=None)


def _allowed_tokens(body: ChatRequest | CompletionRequest, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Raises `InvalidRequest` for one that is not in the vocabulary, and if none may begin the answer."""
    allowed = tuple(dict.fromkeys(body.allowed_token_ids or ()))
    check_token_ids(allowed, tokenizer, "allowed_token_ids")
    if allowed and (body.bad_words or body.min_tokens):
        banned = {word[0] for word in _banned_sequences(body.bad_words or [], tokenizer) if len(word) == 1}
        banned |= {*tokenizer.end_tokens(), *(body.stop_token_ids or ())} if body.min_tokens else set()
        if banned.issuperset(allowed):
            raise InvalidRequest("allowed_token_ids: bad_words and min_tokens leave none of them", param="allowed_token_ids")
    return allowed


def _prediction_of(body: ChatRequest | CompletionRequest, tokenizer: Tokenizer, facts: Facts) -> tuple[int, ...]:
    """No more tokens than an answer can have."""
    if isinstance(body, CompletionRequest) or body.prediction is None:
        return ()
    return tokenizer.encode(body.prediction.text, "prediction.content", add_special_tokens=False)[: facts.context]


def cache_owner(user: str | None = None) -> tuple[str | None, bool]:
    """Whose a job's pages of the cache are, and whether nobody else finds them. With keys nobody does: how much of a prompt was in the
    cache would tell one what others have asked. Without keys the client's word is taken.
    """
    key = KEY.get()
    return (user or None, False) if key is None else (key, True)


def sampling_of(body: SamplingFields, tokenizer: Tokenizer, facts: Facts) -> SamplingParams:
    """Sampling parameters: the request's, and for those that it leaves out the model's defaults."""
    return replace(
        with_parameters(facts.sampling, body),
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        logit_bias=_logit_bias(body.logit_bias or {}, tokenizer),
        bad_words=_banned_sequences(body.bad_words or [], tokenizer),
        min_tokens=0 if body.min_tokens is None else body.min_tokens,
    )


def _logit_bias(biases: dict[str, float], tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    by_token = {int(key): float(bias) for key, bias in biases.items()}
    check_token_ids(by_token, tokenizer, "logit_bias")
    return tuple((token, bias) for token, bias in sorted(by_token.items()) if bias != 0.0)


def _banned_sequences(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    sequences = (tokens for index, word in enumerate(words) for tokens in tokenizer.word_encodings(word, f"bad_words.{index}"))
    return tuple(dict.fromkeys(sequences))


def check_token_ids(ids: Iterable[int], tokenizer: Tokenizer, param: str, with_index: bool = False) -> None:
    """Raise `InvalidRequest` for an id outside the vocabulary. `with_index` adds the id's index to the name of the field."""
    size = len(tokenizer)
    for index, id in enumerate(ids):
        if not 0 <= id < size:
            field = f"{param}.{index}" if with_index else param
            raise InvalidRequest(f"{field}: {id} is not in the vocabulary; token ids must lie in 0..{size - 1}", param=field)


def check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    if min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens is {min_tokens}, but the answer may have at most {max_tokens} tokens", param="min_tokens")


def max_new_tokens(prompt: tuple[int, ...], requested: int | None, facts: Facts, param: str, limit_param: str = "max_tokens") -> int:
    """How many tokens may follow `prompt`: `requested`, or what the context leaves when that is None. With 0 the prompt may fill
    the context.

    Errors name `param`, the field that holds the prompt, or `limit_param`, the field that holds `requested`. Raises `InvalidRequest` for a
    prompt without tokens, and `ContextTooLong`, with the numbers, for one that does not fit.
    """
    if not prompt:
        raise InvalidRequest(f"the tokenizer of {facts.name} turns this into no tokens; send a longer text", param=param)
    left, kept = facts.context - len(prompt), 0 if requested == 0 else 1
    if left < kept:
        raise ContextTooLong(
            f"the prompt has {len(prompt)} tokens, but the context of {facts.name} holds {facts.context_in_words}"
            f"{', one of them for the answer' if kept else ''}: send at most {facts.context - kept}",
            param=param,
        )
    if requested is not None and requested > left:
        raise ContextTooLong(
            f"the prompt has {len(prompt)} tokens and {limit_param} is {requested}: together {len(prompt) + requested}, but the context of "
            f"{facts.name} holds {facts.context_in_words}; ask for at most {left}",
            param=limit_param,
        )
    return left if requested is None else requested


def prompt_items(body: CompletionRequest) -> list[Any]:
    """The prompts of a body as a list; each item is a text or a list of token ids."""
    items: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    return [items] if items and isinstance(items[0], int) else items


def prompts_of(body: CompletionRequest, tokenizer: Tokenizer, facts: Facts) -> list[Prompt]:
    items = prompt_items(body)
    if not items or not all(items):
        raise InvalidRequest("the prompt is empty", param="prompt")
    for item in items:
        if not isinstance(item, str):  # refuse a list that is too long before each of its ids is checked
            max_new_tokens(tuple(item), 0 if body.answer_limit == 0 else None, facts, "prompt")
    return [_prompt_of(item, tokenizer, bool(body.echo), body.add_special_tokens is not False) for item in items]


def _prompt_of(item: str | list[int], tokenizer: Tokenizer, echo: bool, add_special_tokens: bool) -> Prompt:
    if isinstance(item, str):
        if not echo:
            return Prompt(tokenizer.encode(item, "prompt", add_special_tokens))
        encoded = tokenizer.encode_with_offsets(item, "prompt", split_special_tokens=False, add_special_tokens=add_special_tokens)
        return Prompt(encoded.ids, item, tuple(encoded.token_starts()))
    check_token_ids(item, tokenizer, "prompt")
    if not echo:
        return Prompt(tuple(item))
    offsets = OffsetTracker(tokenizer)
    return Prompt(tuple(item), tokenizer.decode(item), tuple(offsets.push(token) for token in item))
