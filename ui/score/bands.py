"""The verdict in words: five bands with an honest middle, from what the server says. Never says who wrote a text.

Pure; the thresholds are the server's. The page adds one rule: between the server's two borders a text *leans* to a side only if that side
is at least twice as likely as the other, and the interval of the probability agrees.
"""

from typing import Literal, get_args

from app.schemas import Score, Verdict

Band = Literal["machine", "leans_machine", "unclear", "leans_human", "human"]
BANDS: tuple[Band, ...] = get_args(Band)
TWICE = 2 / 3  # the probability at which one side is twice as likely as the other
NAMES: dict[Band, str] = {
    "machine": "Reads like machine text",
    "leans_machine": "Leans towards machine text",
    "unclear": "Cannot tell",
    "leans_human": "Leans towards human text",
    "human": "Reads like human text",
}
SHORT: dict[Band, str] = {"machine": "machine", "leans_machine": "leans machine", "unclear": "cannot tell", "leans_human": "leans human",
                          "human": "human"}  # fmt: skip
MEANINGS: dict[Band, str] = {
    "machine": "Few of the people’s texts that were measured score like this. It is a reason to ask, not a proof: a person may have "
    "written it.",
    "leans_machine": "More of the measured machine texts than of the people’s score like this, but too many people’s texts do for a "
    "verdict.",
    "unclear": "This text gives no ground for either side. It does not mean that it is half machine text.",
    "leans_human": "More of the measured people’s texts than of the machine texts score like this, but too many machine texts do for a "
    "verdict.",
    "human": "Few of the measured machine texts score like this. It does not clear the text: other models, a careful prompt or an edit can "
    "score like this, too.",
}
REASONS: dict[Verdict, str] = {
    "insufficient": "The text is too short. Add more of it: 150 words or more are best, about 50 are the least.",
    "uncalibrated": "Scores of this model have not been measured on known texts, so this number has no verdict.",
}
NO_DOUBT = frozenset({"short", "truncated"})  # warnings that leave a verdict
DOUBTED = "There is no verdict on a text of this kind; the warning below says which kind, and why."


def band_of(score: Score) -> Band:
    if score.verdict == "machine":
        return "machine"
    if score.verdict == "human":
        return "human"
    return _leaning(score) if score.verdict == "uncertain" else "unclear"


def _leaning(score: Score) -> Band:
    if score.p_machine is None:
        return "unclear"
    value, (low, high) = score.p_machine.value, score.p_machine.interval
    if value >= TWICE and low > 0.5:
        return "leans_machine"
    return "leans_human" if value <= 1 - TWICE and high < 0.5 else "unclear"


def meaning_of(score: Score) -> str:
    if score.verdict == "uncertain" and any(warning.code not in NO_DOUBT for warning in score.warnings):
        return DOUBTED
    return REASONS.get(score.verdict, MEANINGS[band_of(score)])
