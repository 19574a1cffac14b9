"""The text of `docs/detector-pair.md` between its tables. It states what the tables show: read it again whenever they are made anew."""

OPENING = """# The detector: what it detects, and what it does not

The bundled pair (`storyteller`, with its base model as the observer) scores a text by how much it surprises a very small model of old
books. Tables first, conclusions last. No claim goes beyond a table.

**Command:** `python -m models.detector --data ../shared/data`. **Machine:** {machine}, {made}. It writes this page, the calibration
`models/storyteller/calibration.json` and its [report](../models/storyteller/calibration.md).

**How to read it.** AUROC is the share of pairs in which the machine text looks more like a machine's than the human text does: 0.5 is
chance. It hides how a detector does at low error rates, so the true-positive rate (TPR) at fixed false-positive rates (FPR: human texts
called a machine's) is given as well. From n human texts, no rate below 1 in n can be measured. Square brackets are 95% intervals. Those of
false-positive rates are exact (Clopper and Pearson) and treat texts as independent. Those of AUROC come from drawing groups (chapters,
source documents) with replacement; they have no width where the two classes do not overlap. White space was collapsed in every text; texts
under 64 scored tokens are left out. `combined`, `likelihood_ratio` and `binoculars` use both models of the pair.

**Books.** Fitted on {fitted}; measured on {measured}, the held-out books. The pair was trained on none of them.
"""

OWN_STORIES = """## Its own stories
Human texts: passages of the held-out books. Machine texts: stories of the bundled model, whose prompts use words of these passages, scored
without the prompt. Both are cut to whole sentences and about 100, 200 or 400 tokens. T is the temperature, without any other filter, or
with the top_p of 0.9 that the server takes from the model's own defaults if a request sets none. A minimum number of tokens keeps a story
from ending before it is long enough. AUROC:
"""

LEFT_OUT = """
At temperature 0.7, or with top_p 0.9, Binoculars and Fast-DetectGPT recognise nearly every one of the model's stories. At temperature 1
with top_p 0.9, which is what a request with `temperature: 1` gets, they still do. At temperature 1 without any filter, they and the two
baselines are little better than chance, and longer texts do not help. The samples are not at fault. The surprise of a well-trained model at
new prose of its own kind is about what the model expects, and at its own unfiltered samples it is exactly that, so sums of surprise, rank
and entropy hardly separate the two. The likelihood ratio can, because it asks which of two nearly equal models a text follows, and the
stories follow the model that wrote them; it errs more often than Binoculars on all others.

`combined` weighs both of them and the statistics of the performer, so nobody has to know how a story was sampled. Its AUROC is in every row
at most 0.010 below that of the best single method, which is not the same one in all rows. That is why it is the default. It recognises this
pair's stories only, as the likelihood ratio does: for texts of other models, further below, ask for `binoculars`.

## A kind of sampling that was left out
The weights of `combined` were fitted on the same three books, without the stories of the row's kind of sampling; single methods have no
weights. TPR: the share of the stories beyond the border that so many of the row's own human texts lie beyond, so these rates compare
methods. "The best other" is the highest rate of any single method in that row, which nobody knows beforehand.

"""

TRIED = """
In seven of the eight rows AUROC is at most 0.016 below that of the best single method, and for stories at temperature 1 with top_p 0.9, if
none such were fitted on, 0.034 below. The mean is 0.966; over all rows the best single method is the likelihood ratio, with 0.923.

What was tried with the same scores, as means over the eight rows: AUROC, TPR at 5% and at 1% FPR. Each question is a logistic regression,
as [detector.md](detector.md#how-combined-works) says; `likely` got the stories at temperature 0.7, `drawn` those at temperature 1, and the
third question gets all of them.

| tried | every kind fitted on | the row's kind left out |
| --- | ---: | ---: |
| Binoculars | 0.870, 65%, 62% | the same |
| the likelihood ratio | 0.923, 64%, 47% | the same |
| two questions, the eight statistics of the performer | 0.855, 64%, 53% | 0.769, 53%, 51% |
| two questions, Binoculars in the first, the ratio in the second | 0.973, 88%, 78% | 0.917, 72%, 60% |
| two questions, both in both | 0.973, 89%, 78% | 0.930, 74%, 61% |
| three questions, Binoculars in the first, the ratio alone in the third | 0.967, 88%, 76% | 0.964, 85%, 70% |
| **three questions, both in the first two, the ratio alone in the third** (shipped) | 0.971, 87%, 77% | 0.966, 84%, 73% |

Two questions lose the stories at temperature 1 without a filter if none such were fitted on (AUROC 0.77 to 0.92), as `drawn` is then
fitted on those with top_p alone. The third question is fitted on all stories. The questions were chosen after these tables had been seen,
so these rows are somewhat too good.
"""

SHIPPED_CALIBRATION = """
## The shipped calibration on books it was not fitted on
"FPR where fitted" is on the texts that the threshold was chosen on. The other columns are on the held-out books, with all kinds of sampling
together (temperature 1 without a filter among them, which is why few TPRs come near 100%). The rate on a single book is far from its
target, in either direction, more often than the intervals suggest: a threshold is valid for writing like that it was measured on.

`combined` pays for what it finds: at 1% it finds fewer of the stories under 256 tokens than Binoculars does (45.5% and 62.2% instead of
54.1% and 65.6%), because people's short texts may follow either model by chance, and more of the longer ones (89.7% instead of 50.2%).
At 5% it finds more at every length. Who knows that a short story was sampled with the usual parameters asks for
`"methods": ["binoculars"]`.
"""

DETECT_SETS = """
## Texts of other models
`detect/`: human texts of news (xsum) and of stories written to a prompt (writing), and continuations of their beginnings by six other
models. Split by `group`: a rate is measured with thresholds chosen on other groups. A set has 150 or 500 pairs, so no rate below 1% is
given.
"""

TPR_NOTE = """
TPR at a target FPR of {target}%; in brackets the FPR of the same thresholds, which were chosen on other groups:
"""

OTHER_KINDS = """
## The shipped calibration on texts it was not made for
Verdicts at a target of 5%, machine / uncertain / human. A score that is more human-like than that of every text of the calibration gets the
verdict `uncertain` and no probability: such a text is of another kind, and anyone may have written it. The remaining verdicts show what
`human` means here: not a story that the bundled model wrote, and by all methods but `combined` and `likelihood_ratio` not one with its
usual sampling parameters. It does not mean that no other model wrote the text: `combined` says `human` of 79 to 92% of other models' texts.

"""

SUMMARY = """
## What it can do
- Recognise stories that the bundled model wrote at temperature 0.7 (from about 100 tokens on), or with its usual top_p of 0.9 (measured at
  about 200 tokens), among prose like that of its books.
- Recognise them with any of these sampling parameters, also at temperature 1 without a filter, by `combined`; the shorter the text, the
  less reliably: an AUROC of 0.86 or more from 64 tokens on, 0.93 or more from 128, 0.99 from 256.

## What it cannot do
- Recognise stories written at temperature 1 without top_p (`top_p: 1`) by any method but `combined` and `likelihood_ratio`, and by those
  more than half of the ones under 128 tokens at a false-positive rate of 5%.
- Tell whether another model wrote a text. On no set of other models does any method reach an AUROC of 0.9: the best is 0.89, on news by
  gpt-3.5-turbo, and most lie between 0.5 and 0.8. `combined` is hardly better than chance there, 0.51 to 0.66, as its weights were learned
  from the pair's own stories. At a false-positive rate of 1%, fewer than a third of any set's machine texts are found.
  To judge texts of large models, serve a larger pair and calibrate it on texts like those you will judge: `python -m app.calibrate`.
- Tell that a human wrote a text. See the last table: texts of other models get `human` too.
- Keep its false-positive rate on another kind of text. Thresholds are valid only for writing like that they were measured on.
- Judge a text under 64 scored tokens, or one longer than those it was calibrated on.
- Detect paraphrase, edited text or mixed authorship: none of this was measured here.

## Who is harmed by a wrong verdict
Detectors of this kind take plain, predictable wording for a machine's. People who write in a language they learned late use plainer and
more predictable wording, so **they are wrongly accused more often than others**: seven detectors in use called 61% of the English essays of
non-native writers a machine's (Liang et al., 2023, arXiv 2304.02819). Nothing here was measured on such writers, so no false-positive
rate on this page holds for them. The same goes for children, for formulaic genres, and for famous texts that a model knows by heart. Do not
use a verdict against anyone: it is not evidence of who wrote a text, and a false-positive rate of 1% means one wrong accusation for every
hundred honest writers.
"""
