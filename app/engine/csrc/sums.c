/* What scoring sums up over the vocabulary: one reading of a row of logits for its largest, one for all else. */
#include "vectors.h"

#define BLOCK 1024 /* terms that are added in float32, before double */
#define LOWEST -1e30f

enum { CHOSEN, RANK, MEAN, VARIANCE, CROSS, OBSERVED, SUMS };

typedef struct {
    const bf16 *logits, *seen; /* [rows][width], rows so far apart; seen: the observer's, or NULL */
    int64_t logits_row, seen_row, rows, width;
    const int64_t *targets; /* [rows] */
    double *out;            /* [rows][SUMS] */
} Sums;

/* `count` of them from `at`; what is beyond a row's end is as low as can be. */
INLINE vec some(const bf16 *at, int64_t count) {
    bf16 edge[LANES];
    if (count >= LANES) return widen(at);
    for (int i = 0; i < LANES; i++) edge[i] = i < count ? at[i] : 0xff7f;
    return widen(edge);
}

/* NaN where there is one. */
static float largest(const bf16 *row, int64_t width) {
    vec most = same(-3.4e38f);
    words strange = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        vec x = some(row + i, width - i);
        strange |= (words)(x != x);
        most = greatest(most, x);
    }
    float top = most[0];
    for (int i = 0; i < LANES; i++) top = strange[i] ? __builtin_nanf("") : most[i] > top ? most[i] : top;
    return top;
}

static float at(const bf16 *row, int64_t i) { return some(row + i, 1)[0]; }

/* log p, rank, sum p log p and the variance of log p; of an observer also - sum p_observer log p and log p_observer. */
INLINE void sum_row(const int paired, const bf16 *row, const bf16 *seen, int64_t width, int64_t target, double *out) {
    float top = largest(row, width), own = paired ? largest(seen, width) : 0, chosen = at(row, target);
    double whole = 0, first_power = 0, second_power = 0, beside = 0, mixed = 0;
    int64_t above = 0;
    for (int64_t from = 0; from < width; from += BLOCK) {
        int64_t end = from + BLOCK < width ? from + BLOCK : width;
        vec e = {0}, ez = {0}, ezz = {0}, o = {0}, oz = {0};
        words more = {0};
        for (int64_t i = from; i < end; i += LANES) {
            vec x = some(row + i, end - i), z = greatest(x - top, same(LOWEST)), weight = power(greatest(z * LOG2_E, same(-127)));
            more -= (words)(x > chosen);
            e += weight;
            ez += weight * z;
            ezz += weight * z * z;
            if (!paired) continue;
            vec other = power(greatest((some(seen + i, end - i) - own) * LOG2_E, same(-127)));
            o += other;
            oz += other * z;
        }
        whole += total(e), first_power += total(ez), second_power += total(ezz), beside += total(o), mixed += total(oz);
        for (int i = 0; i < LANES; i++) above += more[i];
    }
    double mean = first_power / whole, variance = second_power / whole - mean * mean, log_whole = __builtin_log(whole), strange = 0 * ((double)top + own);
    out[CHOSEN] = chosen - top - log_whole + strange;
    out[RANK] = above + 1;
    out[MEAN] = mean - log_whole + strange;
    out[VARIANCE] = (variance < 0 ? 0 : variance) + strange; /* the sums are rounded */
    out[CROSS] = paired ? log_whole - mixed / beside + strange : 0;
    out[OBSERVED] = paired ? at(seen, target) - own - __builtin_log(beside) + strange : 0;
}

void sums(const Sums *s, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < s->rows; r++) {
        const bf16 *row = s->logits + r * s->logits_row;
        if (s->seen)
            sum_row(1, row, s->seen + r * s->seen_row, s->width, s->targets[r], s->out + r * SUMS);
        else
            sum_row(0, row, NULL, s->width, s->targets[r], s->out + r * SUMS);
    }
}
