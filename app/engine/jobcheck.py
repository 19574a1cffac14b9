"""Why the engine could never run a job, in the words of its caller."""

from app.engine.flat import FlatModel
from app.engine.request import Embed, Generate, Job
from app.engine.scheduler import Scheduler
from app.errors import ContextTooLong, InvalidRequest, LitmusError


class JobCheck:
    def __init__(self, context: int, vocabulary: int, performer: FlatModel, scheduler: Scheduler, has_grammars: bool) -> None:
        """`context` in tokens of a prompt and its answer, `vocabulary` in tokens."""
        self._context = context
        self._vocabulary = vocabulary
        self._performer = performer
        self._slots, self._cache = len(scheduler.slots), scheduler.cache
        self._has_grammars = has_grammars

    def error_of(self, job: Job) -> LitmusError | None:
        """Why the job can never be served, if it cannot."""
        for name, tokens in _tokens_of(job).items():
            if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocabulary:
                problem = f"{name} has a token outside the model's vocabulary of {self._vocabulary} tokens"
                return InvalidRequest(problem, param=name.removeprefix("the "))
        if job.adapter is not None and job.adapter not in self._performer.adapters.names:
            return InvalidRequest(f"the model has no adapter '{job.adapter}'", param="model")
        if isinstance(job, Embed):
            return self._embed_error_of(job)
        return self._generate_error_of(job) if isinstance(job, Generate) else None

    def _embed_error_of(self, job: Embed) -> LitmusError | None:
        if not job.tokens:
            return InvalidRequest("the input needs at least one token", param="input")
        if len(job.tokens) > (most := self._performer.text_window):
            return ContextTooLong(f"the input has {len(job.tokens)} tokens, and {most} are read in one piece", param="input")
        return None

    def _generate_error_of(self, job: Generate) -> LitmusError | None:
        if not job.prompt or job.max_tokens < 1:
            return InvalidRequest("the prompt needs at least one token, and max_tokens has to be at least 1", param="prompt")
        if job.unlimited and job.room > self._context:
            return ContextTooLong(
                f"the prompt of {len(job.prompt)} tokens, with the {len(job.sampled)} of its answer so far, exceeds the context of "
                f"{self._context} tokens that the model has since it was loaded again: shorten the prompt"
            )
        if job.room > self._context:
            return ContextTooLong(
                f"prompt {len(job.prompt)} + max_tokens {job.max_tokens} exceed the context of {self._context} tokens: "
                "shorten the prompt or lower max_tokens"
            )
        if not 1 <= job.slots_needed <= min(self._slots, self._vocabulary):
            return InvalidRequest(f"the search needs {job.slots_needed} slots at once, and the model has {self._slots}")
        if job.search is not None and (error := self._search_error_of(job)) is not None:
            return error
        return self._grammar_error_of(job) if job.grammar is not None else None

    def _search_error_of(self, job: Generate) -> LitmusError | None:
        if job.logprobs is not None or job.prompt_logprobs is not None:
            return InvalidRequest("beam and contrastive search return no log-probabilities: leave out logprobs", param="logprobs")
        if job.thought is not None:
            return InvalidRequest("beam and contrastive search cannot limit a thought", param="thinking_token_budget")
        most, pool = self._cache.most_pages(job), self._cache.pool
        if most > pool.count:
            return ContextTooLong(
                f"the search may need {most} pages of {pool.page_tokens} tokens, and the cache has {pool.count}: shorten the prompt, lower "
                "max_tokens or the width of the search, or start the server with a larger model.cache_tokens"
            )
        return None

    def _grammar_error_of(self, job: Generate) -> LitmusError | None:
        if not self._has_grammars:
            return InvalidRequest("this model has no tokenizer that a grammar can be compiled for", param="response_format")
        bans = job.sampling.bad_words or job.sampling.min_tokens or job.sampling.allowed_tokens
        if job.search is not None or bans or job.ignore_eos or job.stop_tokens:
            conflicts = "beam or contrastive search, bad_words, min_tokens, allowed_token_ids, ignore_eos or stop_token_ids"
            return InvalidRequest(f"an answer that follows a grammar cannot be combined with {conflicts}")
        return None


def _tokens_of(job: Job) -> dict[str, tuple[int, ...]]:
    """Those that the caller has named, by the words for them."""
    if isinstance(job, Generate):
        return {"the prompt": job.prompt, "allowed_token_ids": job.sampling.allowed_tokens}
    return {"the input": job.tokens}
