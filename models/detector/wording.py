"""What `docs/detector.md` says between its tables. Written after reading them, and to be read again when they are made anew."""

OPENING = """# The detector: what it tells, and what it does not

The bundled pair (`storyteller` with its base as the observer) scores a text by how it surprises a very small model of old books. Tables
first, conclusions last. No claim is made beyond a table.

**Command:** `python -m models.detector --data ../shared/data`. **Machine:** {machine}, {made}. It writes this page, the calibration
`models/storyteller/calibration.json` and its [report](../models/storyteller/calibration.md).

**How to read it.** AUROC is how often a machine's text scores nearer to the machine's side than a human's: 0.5 is a coin. It hides the
tail, so the true-positive rate (TPR) stands at fixed false-positive rates (FPR: human texts called a machine's) as well. With n human
texts nothing is said of rates below 1 in n. Square brackets are 95% intervals: exact ones (Clopper and Pearson) of a false-positive rate,
which take texts as independent, and of AUROC by drawing groups (chapters, source documents) with
replacement, which finds no width where the two sides do not overlap. White space was collapsed in
every text; texts under 64 scored tokens take no part. `likelihood_ratio` and `binoculars` ask both models of the pair.

**Books.** Fitted on {fitted}; measured on {measured}. The pair was trained on none of them.
"""

OWN = """## Its own stories
Human texts: passages of the books measured on. Machine texts: stories of the bundled model, asked for with words of these passages, scored
without the request, both sides cut to whole sentences and about 100, 200 or 400 tokens. T is the temperature, without any other filter, or
with the top_p of 0.9 that the server takes from the model's own defaults when a request has none. The end of a story is held back until it
is long enough. AUROC:
"""

SHIPPED = """
At temperature 0.7, or with top_p 0.9, Binoculars and Fast-DetectGPT know nearly every one of the model's stories; at temperature 1 with
top_p 0.9, which is what a request with `temperature: 1` gets, they still do. At temperature 1 without any filter they and the two
baselines are little better than a coin, and longer texts do not help. That is no fault of the samples: a model that was trained well is
surprised by new prose of its own kind about as much as it expects to be, and by its own free draws exactly as much as it expects to be, so
sums of surprise, rank and entropy hardly tell the two apart. The likelihood ratio can, because it asks which of two nearly equal models
the text follows, and the stories follow the one that told them: from about 200 tokens on it is the one method that reaches 0.9 at every
setting. It is not the default, because at the usual settings Binoculars sees nearly all of the stories and errs less often, and because it
knows this pair's stories only.

## The shipped calibration on books it has not seen
"FPR where fitted" is on the texts the border was chosen by; the other columns are on the books measured on, all settings of the stories
together (temperature 1 without a filter among them, which is why few TPRs come near 100%). The rate on a single book lies far from its
target, on either side, more often than the intervals suggest: a border holds for writing like that it was measured on.
"""

DETECT = """
## Texts of other models
`detect/`: human texts of news (xsum) and of stories written to a prompt (writing), and what six other models made of their beginnings.
Split by `group`: a rate is measured with borders chosen on other groups. 150 or 500 pairs a set, so nothing below 1% can be said.
"""

TARGETS_NOTE = """
TPR at a target FPR of {target}%, in brackets the FPR that the border of the other groups gave:
"""

CLOSING = """
## The shipped calibration on texts it was not made for
Verdicts at a target of 5%, machine / uncertain / human. A score further on the human's side than that of every text of the calibration gets
no verdict but `uncertain` and no probability: such a text is of another kind, and may be anyone's. What is left shows what a verdict of
`human` means here: no story that the bundled model told at its usual settings. It does not mean that no other model wrote the text.

"""

END = """
## What it can do
- Recognise stories that the bundled model told at temperature 0.7 (from about 100 tokens on), or with its usual top_p of 0.9 (measured at
  about 200 tokens), beside prose like that of its books.
- Recognise them at any of these settings, temperature 1 without a filter too, by `"methods": ["likelihood_ratio"]`, the less surely the
  shorter they are: an AUROC of 0.82 or more from 64 tokens on, 0.9 or more from 128, 0.99 from 256.

## What it cannot do
- Recognise stories told at temperature 1 without top_p (`top_p: 1`) by any method but `likelihood_ratio`.
- Tell whether another model wrote a text. No set of other models reaches an AUROC of 0.9 by any method: the best is 0.89, on news by
  gpt-3.5-turbo, and most lie between 0.5 and 0.8. At a false-positive rate of 1% fewer than a third of any set's machine texts are found.
  To judge texts of large models, serve a larger pair and calibrate it on texts like those you will judge: `python -m app.calibrate`.
- Tell that a human wrote a text. See the last table: texts of other models get `human` too.
- Keep its false-positive rate on another kind of text. Borders are valid for writing like that they were measured on and for no other.
- Say anything of a text under 64 scored tokens, or longer than those it was calibrated on.
- See through paraphrase, edited text or mixed authorship: none of this was measured here.

## Who is harmed by a wrong verdict
Detectors of this kind take plain, predictable wording for a machine's. People who write in a language they learned late use plainer and
more predictable wording, so **they are accused wrongly more often than others**: seven detectors in use called 61% of the English essays of
non-native writers a machine's (Liang et al., 2023, arXiv 2304.02819). Nothing here was measured on such writers, so no false-positive
rate on this page holds for them. The same goes for children, for formulaic genres, and for famous texts that a model knows by heart. Do not
use a verdict against anyone: it is not evidence of who wrote a text, and a false-positive rate of 1% is one wrongly accused in every
hundred honest writers.
"""
