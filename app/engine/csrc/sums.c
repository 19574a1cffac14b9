/* The per-token statistics that scoring needs, summed over the vocabulary in float32 and double. A row of logits is read twice: for the
 * largest, then for everything else. */
#include "vectors.h"

#define BLOCK 1024 /* terms that are added in float32 before they go into double */
#define LOWEST -1e30f

enum { LOGPROB, RANK, MEAN, VARIANCE, CROSS_ENTROPY, OBSERVER_LOGPROB, STATISTICS };

typedef struct {
    const void *logits, *observer_logits; /* [rows][vocabulary], with these strides; observer: its logits, or NULL */
    int64_t logits_stride, observer_stride, rows, vocabulary;
    const int64_t *targets; /* [rows] */
    double *out;            /* [rows][STATISTICS] */
    int are_float;          /* all logits: float32, else bfloat16 */
} StatisticsArgs;

/* Loads LANES logits from the row's logit `i` on, of which `count` belong to the row; those beyond its end are the lowest bfloat16. */
INLINE vec load_logits(const int are_float, const void *row, int64_t i, int64_t count) {
    float padded[LANES];
    if (count >= LANES) return are_float ? *(const vec *)((const float *)row + i) : load_bf16((const bf16 *)row + i);
    for (int lane = 0; lane < LANES; lane++) {
        uint32_t bits = 0xff7f0000;
        if (lane < count) bits = are_float ? ((const uint32_t *)row)[i + lane] : (uint32_t)((const bf16 *)row)[i + lane] << 16;
        memcpy(padded + lane, &bits, sizeof bits);
    }
    return *(const vec *)padded;
}

/* Returns the largest logit of a row, or NaN if any logit is NaN. */
INLINE float find_largest(const int are_float, const void *row, int64_t vocabulary) {
    vec running_max = broadcast(-3.4e38f);
    uint_vec nan_lanes = {0};
    for (int64_t i = 0; i < vocabulary; i += LANES) {
        vec x = load_logits(are_float, row, i, vocabulary - i);
        nan_lanes |= (uint_vec)(x != x);
        running_max = vec_max(running_max, x);
    }
    float top = running_max[0];
    for (int i = 0; i < LANES; i++) top = nan_lanes[i] ? __builtin_nanf("") : running_max[i] > top ? running_max[i] : top;
    return top;
}

INLINE float logit_at(const int are_float, const void *row, int64_t i) { return load_logits(are_float, row, i, 1)[0]; }

/* Computes one row of `out`: log p and rank of the target, sum p log p and the variance of log p; with an observer also the cross-entropy
 * - sum p_observer log p, and log p_observer of the target. NaN or infinity in the logits makes all but the rank NaN. */
INLINE void compute_row(const int are_float, const int has_observer, const void *row, const void *observer, int64_t vocabulary,
                        int64_t target, double *out) {
    float top = find_largest(are_float, row, vocabulary), observer_top = has_observer ? find_largest(are_float, observer, vocabulary) : 0,
          target_logit = logit_at(are_float, row, target);
    double sum_e = 0, sum_ez = 0, sum_ezz = 0, sum_o = 0, sum_oz = 0;
    int64_t rank = 0;
    for (int64_t from = 0; from < vocabulary; from += BLOCK) {
        int64_t end = from + BLOCK < vocabulary ? from + BLOCK : vocabulary;
        vec e = {0}, ez = {0}, ezz = {0}, o = {0}, oz = {0};
        uint_vec greater = {0};
        for (int64_t i = from; i < end; i += LANES) {
            vec x = load_logits(are_float, row, i, end - i), z = vec_max(x - top, broadcast(LOWEST)),
                weight = exp2_bounded(vec_max(z * LOG2_E, broadcast(-127)));
            greater -= (uint_vec)(x > target_logit);
            e += weight;
            ez += weight * z;
            ezz += weight * z * z;
            if (!has_observer) continue;
            vec o_weight = exp2_bounded(vec_max((load_logits(are_float, observer, i, end - i) - observer_top) * LOG2_E, broadcast(-127)));
            o += o_weight;
            oz += o_weight * z;
        }
        sum_e += sum_lanes(e), sum_ez += sum_lanes(ez), sum_ezz += sum_lanes(ezz), sum_o += sum_lanes(o), sum_oz += sum_lanes(oz);
        for (int i = 0; i < LANES; i++) rank += greater[i];
    }
    double mean = sum_ez / sum_e, variance = sum_ezz / sum_e - mean * mean, log_sum = __builtin_log(sum_e),
           nan_or_zero = 0 * ((double)top + observer_top);
    out[LOGPROB] = target_logit - top - log_sum + nan_or_zero;
    out[RANK] = rank + 1;
    out[MEAN] = mean - log_sum + nan_or_zero;
    out[VARIANCE] = (variance < 0 ? 0 : variance) + nan_or_zero; /* rounding may make it negative */
    out[CROSS_ENTROPY] = has_observer ? log_sum - sum_oz / sum_o + nan_or_zero : 0;
    out[OBSERVER_LOGPROB] = has_observer ? logit_at(are_float, observer, target) - observer_top - __builtin_log(sum_o) + nan_or_zero : 0;
}

#define ROW_OF(NAME, ARE_FLOAT, HAS_OBSERVER)                                                                            \
    static void NAME(const void *row, const void *observer, int64_t vocabulary, int64_t target, double *out) {           \
        compute_row(ARE_FLOAT, HAS_OBSERVER, row, observer, vocabulary, target, out);                                    \
    }
ROW_OF(compute_halves, 0, 0)
ROW_OF(compute_observed_halves, 0, 1)
ROW_OF(compute_floats, 1, 0)
ROW_OF(compute_observed_floats, 1, 1)

/* `out` gets STATISTICS numbers a row, in the order of the enum. */
void token_statistics(const StatisticsArgs *args, int threads) {
    int64_t size = args->are_float ? sizeof(float) : sizeof(bf16);
    void (*compute)(const void *, const void *, int64_t, int64_t, double *) =
        args->are_float ? args->observer_logits ? compute_observed_floats : compute_floats
        : args->observer_logits ? compute_observed_halves : compute_halves;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < args->rows; r++)
        compute((const char *)args->logits + r * args->logits_stride * size,
                args->observer_logits ? (const char *)args->observer_logits + r * args->observer_stride * size : NULL, args->vocabulary,
                args->targets[r], args->out + r * STATISTICS);
}
