"""The text of `docs/detector.md` between its tables. It states what the tables show: read it again whenever they change."""

OPENING = """# The detector: what it detects, and what it does not

## In ten lines
1. `machine` means: at most about 1% of human texts score this high (0.3% of news and stories, 0.6% of eight other kinds; manuals and
   instructions are an exception, line 4). It is a reason to ask, never a proof.
2. At that border the default model finds 29% of GPT-3.5's texts, 7% of GPT-4's, 1 to 6% of older generators', and of 80 texts by a chat
   model of 2026 none. With `target_fpr` 0.05 it finds 66% and 25% of the first two, and errs on 0.5 to 2.6% of news and stories.
   A text that is not called a machine's is not cleared by that: `human` only says that few of the measured machine texts look like it.
   One wrong letter in 200 hides a machine's text: of 21 of GPT-3.5's that were called so, none was with it.
3. It reads running English prose of 50 words or more, better 150. A single sentence says nothing.
4. Do not use it on answers to exercises, instructions, reference manuals, formulas or quotations: plain, factual, expected sentences of
   people look like a machine's (8% of manuals and instructions lie beyond the border).
5. Code, tables, lists, verse, other languages, repetition and texts that the model knows by heart are answered `uncertain`. It knows few:
   6 of 30 famous passages of the King James Bible are called a machine's.
6. Writers whose first language is not English: of Chinese business news in English 3 of 200 texts lie beyond the border, of manuals by
   Spanish and French authors none of 250. Both were edited. No essays of learners were measured; published studies of other
   detectors find high rates for them.
7. A kind of text that was not measured may be judged wrongly far more often: of GNOME's help 3%, of answers to exercises 18%.
8. Look at the passages of a long text: where it changes tells more than one number.
9. Of 300 honest essays, expect some beyond the border. Count that before you ask anyone.
10. Never decide about a person by a score alone.

**Command:** `python -m models.detector.default --data ../shared/data`. **Machine:** {machine}. Calibration made {made}. The model is
SmolLM2-135M-Instruct, the Q4_1 file that `make run` serves. White space was collapsed in every text. Square brackets are 95% intervals:
exact ones of rates (Clopper and Pearson), over groups of texts with one source for AUROC, the share of pairs in which the machine text
scores above the human one (0.5 is chance).
"""
SETS = """## The default model, on domains and generators that it was not fitted on
Each row's weights were fitted without the row's domain and without its generator. TPR at the threshold at which 5% (1%) of the row's
own human texts are flagged, so these rates compare methods; the shipped border is further below. Both texts of a pair share their first 25
words or so, as published with Fast-DetectGPT. Texts under 64 scored tokens are in these tables (n is the number of pairs), and not in
[notebook 06](notebooks/06-detector.html), which has 143 to 150 texts of a side in the smaller sets; so its AUROC differs a little, too.
"""
MEANS = """Means over the rows. No single statistic is good at both kinds of writers:
"""
TRIMMED = """### Without the first 25 words of both
What is scored is then only the part that differs.
"""
BORDERS = """## Verdicts at the 1% border, on a domain that was left out
The calibration of these rows never saw their domain: this is what a new kind of text meets. People's news is likelier to the model than
people's stories, so a border from stories alone is crossed by 3 to 6% of the news. So no border is less strict than that of eight more
kinds of people's prose (novels, talks, business news, essays, manuals, the Jargon File), pooled with the same weight for each kind
(`models/detector/people.jsonl.gz`, numbers only). The shipped border is the strictest of news and stories at half of the rate, and of
this pool.
"""
KINDS = """
The mark, at most 2% of people's texts called a machine's in a domain that was left out, is met on news, on stories and on seven of the
eight kinds of prose (the developer's reference: 3 of 100). It is **not met on reference manuals and instructions**: 3 to 18%. The first
eight rows are measured with a border that their kind was left out of; the others with the shipped one, which never saw them. Warnings of
kind are not counted here: some of the last two kinds are lists, which the server does not judge. Whole texts, scored 2026-11-29; `python -m
models.detector.pool` draws such passages from packages that anyone can get, and scores them.

"""
BORDERS_TRIED = """
What was tried for this border, with an earlier draw of 1,430 passages from the same sources:
weights of news or stories alone, people's texts of 64 tokens and more; TPR of GPT-3.5's texts of the
left-out domain, beginnings of texts included, on about two fifths of the texts (the two rows on all of the texts are marked *).

| border | people's news, left out | people's stories, left out | other kinds of prose, left out | TPR news, stories |
| --- | ---: | ---: | ---: | ---: |
| stricter of the domains, 1% | 6.3% | 0.3% | 0.3 to 5.5% | 66%, 21% |
| the same at half of the rate (shipped before) * | 3.0 to 5.7% | 0.2 to 0.4% | 0 to 4.7% | 85%, 28% |
| that, and the pool of prose at 1%, by length | 0.7% | 0.3% | 0 to 4.7% | 31%, 12% |
| that, and the pool of prose at 1%, all lengths together (the way it is done) * | 0.1 to 0.5% | 0.2 to 0.4% | 0 to 2.3% | 35%, 10% |
| that, and the pool of prose at 0.5%, by length | 0.3% | 0.2% | 0 to 4.7% | 22%, 10% |
| that, and the second strictest kind of prose at 1% | 0.2% | 0.1% | 0 to 4.7% | 20%, 9% |
| that, and mean and 1.65 spreads of the kinds of prose | 0.1% | 0.1% | 0 to 3.1% | 6%, 2% |
| that, and the strictest kind of prose at 1% | 0.0% | 0.1% | 0 to 3.1% | 4%, 1% |
| that, and the pool of all 14 kinds at 1%, manuals and instructions too | 0.0% | 0.0% | 0 to 1.6% | 1%, 0% |

The pool by length has too few texts of each kind: on all texts a single one of 192 tokens and more put that border at 6.1, where
nothing is found. Only the last rows protect manuals and instructions, and they find hardly any machine text. People's texts of all
kinds added to the fit of the weights lower the mean AUROC of GPT-3.5 and GPT-4 from 0.946 to 0.935 (a quarter of the texts). The
pool, its kinds and that all lengths count together were chosen after such tables had been seen, those of news among them, so the rates of
news left out are somewhat too good.

**How much depends on the draw.** The border of that earlier draw was 2.80 at every length. The 1,950 passages of now, which `python -m
models.detector.pool` draws and anyone can draw again, give 2.72 to 2.76, hardly more than news and stories alone: with domains left out
they find 45% of GPT-3.5's news and 23% of its stories instead of 35% and 10%, and call 0.5 to 0.8% of people's news a machine's instead of
0.1 to 0.5%. They were taken because they are more and can be drawn again, not because of these rates. Which border is nearer to that of
all prose is not known; both meet the mark on news and stories.

A doubt about prose like manuals was tried as well: a logistic regression over the eight statistics that tells such texts of people from
GPT-3.5's and GPT-4's, among those beyond the 5% border, and takes the verdict of a text that it finds closer to a manual. Each kind was
left out in its row's fit, and the domain of the machine texts; rates are of all whole texts, by the 1% border. It brings the six kinds
near 2%, but finds half as many of GPT-3.5's news, and leaves 12 of 58 of the model's own answers a verdict at the mildest limit: it
recognises a kind of prose, not its writer. Not shipped.

| most log-odds of a manual | six kinds together | each of them | GPT-3.5: news, stories | GPT-4: the same | of 58 own answers |
| --- | ---: | ---: | ---: | ---: | ---: |
| none (shipped) | 10.2% | 6.7 to 17.1% | 37%, 13% | 11%, 1% | 58 |
| 0.5 | 3.1% | 1.0 to 6.7% | 25%, 11% | 7%, 0% | 12 |
| 0 | 2.4% | 1.0 to 4.9% | 17%, 8% | 5%, 0% | 6 |
| -0.5 | 1.8% | 0.9 to 3.7% | 8%, 5% | 2%, 0% | 3 |
"""
COMBINED = """## How combined works
Chat models write what is likely. A model that is sampled as it is does not, but its surprise varies less than that of people's texts. So
`combined` asks two questions, each a logistic regression over a few statistics of the tokens, and takes the log of the mean of both odds.
Every statistic is standardised, and clipped at 4 spreads so that none decides alone. An answer lists what each contributed. Where an
observer read the texts of the calibration, both questions also weigh Binoculars and the likelihood ratio, and a third one asks by the
likelihood ratio alone which of the two models a text follows. The default model has no observer. Its weights:
"""
TRIED = """
### What was tried
The same texts, domain and generator left out; weights fitted on whole texts and on their beginnings. Means over the rows as above.

| tried | GPT-3.5, GPT-4: AUROC | TPR at 5% | TPR at 1% | others: AUROC |
| --- | ---: | ---: | ---: | ---: |
| perplexity | 0.935 | 72% | 37% | 0.775 |
| log-rank | 0.922 | 69% | 30% | 0.784 |
| entropy | 0.878 | 58% | 28% | 0.610 |
| Fast-DetectGPT | 0.804 | 44% | 15% | 0.829 |
| surprise where the model is sure, alone | 0.952 | 73% | 54% | 0.658 |
| spread of the surprise, alone | 0.777 | 34% | 12% | 0.845 |
| one logistic regression over the four classical statistics | 0.862 | 50% | 30% | 0.831 |
| one logistic regression over the eight of `combined` | 0.838 | 39% | 29% | 0.875 |
| boosted trees over the eight | 0.859 | 49% | 24% | 0.864 |
| two questions, all eight statistics in each | 0.928 | 71% | 53% | 0.861 |
| two questions, boosted trees | 0.937 | 71% | 47% | 0.842 |
| two questions, the larger odds instead of the mean | 0.940 | 70% | 51% | 0.859 |
| **two questions, logistic, mean of the odds** (shipped) | 0.949 | 75% | 51% | 0.849 |

A first half that surprises more than the second would add 0.003 to the first column. It was left out: the machine texts of these pairs
begin with 25 words of a person, so that difference is a trait of the pairs.
"""
PRECISIONS = """
## Other precisions of the same weights
`python -m models.detector.equal` (AMD EPYC, 2026-11-29) scored 478 texts of `detect/` with each; the folder holds the file's weights in
floating point. Equal means: at most 2% of the verdicts change, at most 1% more human texts are called a machine's, and AUROC falls by at
most 0.01. A calibration still applies only to the file that it was made with and to what `--accept` added, since the fingerprint of every
copy differs.

| precision | mean absolute difference of the score | verdicts changed | AUROC (the file's own: 0.916) |
| --- | ---: | ---: | ---: |
| bfloat16 | 0.063 | 0.4% | 0.917 |
| int4 | 0.064 | 0.0% | 0.918 |
| int8 | 0.078 | 0.0% | 0.918 |
| float32, from the file itself | 0.060 | 0.0% | 0.915 |

The last one, `python -m serve --model.dtype float32`, is accepted in the shipped calibration: it has the file's own fingerprint.
"""
PAIR = """
## The bundled pair
`make run MODEL=models/storyteller` scores with a pair of very small models of old books. Its calibration separates its own model's stories
from books, and little else: AUROC 0.99 and more for its stories at temperature 0.7, and for the texts above 0.63 to 0.85 by Binoculars and
0.51 to 0.66 by its `combined`. [detector-pair.md](detector-pair.md) has its tables.

Its `combined` weighs the statistics of both models. On two books that no weight was fitted on, the mean AUROC over eight rows of lengths
and kinds of sampling is 0.971 (the likelihood ratio 0.923, Binoculars 0.870), and in each row at most 0.010 below that of the best single
method; with the row's kind of sampling left out as well it is 0.966, and at most 0.034 below. It finds 87% of the stories at a
false-positive rate of 5% (the likelihood ratio 64%, Binoculars 65%) and 77% at 1% (47%, 62%), but fewer of the short ones at 1% than
Binoculars. So it is the default of the pair.
"""
