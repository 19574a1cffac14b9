/* The feed-forward part of a layer that is a mixture of experts, in one call. Called one by one from Python, router and small experts would
 * take twice as long.
 */
#include "mixture.h"

static int run_expert(const Experts *args, int64_t expert, int64_t row, int threads) {
    int64_t rows = args->counts[expert];
    const bf16 *x = args->x + row * args->hidden;
    bf16 *activated = args->activated + row * args->width;
    Epilogue gated = args->gated, product = args->product, written = {.out = args->out + row * args->hidden};
    gated.out = product.out = activated, product.operand = activated;
    return apply(args->gate + expert, x, rows, gated, threads) || apply(args->up + expert, x, rows, product, threads) ||
           apply(args->down + expert, activated, rows, written, threads);
}

/* Several experts at once where every thread has some of its own; else one after the other, each by all threads. What a row gives is the
 * same either way. Returns 0, or 1 if it cannot allocate memory. */
int run_experts(const Experts *args, int threads) {
    int64_t *experts = malloc(2 * args->experts * sizeof(int64_t)), *rows = experts + args->experts, count = 0, row = 0;
    int failed = 0;
    if (!experts) return 1;
    for (int64_t e = 0; e < args->experts; row += args->counts[e++])
        if (args->counts[e]) experts[count] = e, rows[count++] = row;
    if (count >= 2 * threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : failed)
        for (int64_t i = 0; i < count; i++) failed |= run_expert(args, experts[i], rows[i], 1);
    } else
        for (int64_t i = 0; i < count && !failed; i++) failed = run_expert(args, experts[i], rows[i], threads);
    free(experts);
    return failed;
}

INLINE float exp_of(float x) { return exp2_vec(broadcast(x * LOG2_E))[0]; }

/* Finds the experts of the largest logits, in their order, the first of equal ones first; and the share that each has. */
static void choose(const Mixture *args, const float *logits, int64_t *numbers, float *shares) {
    int64_t experts = args->experts.experts, count = 0;
    for (int64_t e = 0; e < experts; e++) {
        int64_t at = count;
        for (; at > 0 && logits[e] > logits[numbers[at - 1]]; at--)
            if (at < args->chosen) numbers[at] = numbers[at - 1];
        if (at < args->chosen) numbers[at] = e;
        if (count < args->chosen) count++;
    }
    float largest = logits[numbers[0]], sum = 0;
    if (args->of_all)
        for (int64_t e = 0; e < experts; e++) sum += exp_of(logits[e] - largest);
    for (int64_t i = 0; i < count; i++) {
        shares[i] = exp_of(logits[numbers[i]] - largest);
        if (!args->of_all) sum += shares[i];
    }
    for (int64_t i = 0; i < count; i++) shares[i] /= sum;
}

/* Adds up what a row's experts gave, which lies in `computed` at these `places`, by their shares, and the residual. */
static void add_up(const bf16 *computed, const int64_t *places, const float *shares, int64_t chosen, int64_t hidden, const bf16 *residual,
                   bf16 *out) {
    for (int64_t i = 0; i < hidden; i += LANES) {
        vec sum = {0};
        for (int64_t c = 0; c < chosen; c++) sum += shares[c] * load_bf16(computed + places[c] * hidden + i);
        store_bf16(out + i, sum + load_bf16(residual + i));
    }
}

/* Computes rows x [rows][hidden] and adds the `residual` [rows][hidden], which may be `out` itself. `hidden` is a multiple of COLUMNS.
 * Returns 0, or 1 if it cannot allocate memory. */
int run_mixture(const Mixture *args, const bf16 *x, int64_t rows, const bf16 *residual, bf16 *out, int threads) {
    Experts experts = args->experts;
    int64_t chosen = args->chosen, hidden = experts.hidden, total = rows * chosen;
    int64_t halves = ROUND_UP(total * (2 * hidden + experts.width), 32), words = 2 * (total + experts.experts);
    char *memory = aligned_alloc(64, ROUND_UP(halves * sizeof(bf16) + words * sizeof(int64_t) + (rows * experts.experts + total) * sizeof(float), 64));
    if (!memory) return 1;
    bf16 *sorted = (bf16 *)memory, *computed = sorted + total * hidden;
    int64_t *numbers = (int64_t *)(sorted + halves), *places = numbers + total, *counts = places + total, *starts = counts + experts.experts;
    float *shares = (float *)(starts + experts.experts), *logits = shares + total;
    int failed = 0;
    if (!args->given) failed = apply(&args->router, x, rows, (Epilogue){.out = logits, .is_float = 1}, threads);
    memset(counts, 0, experts.experts * sizeof(int64_t));
    for (int64_t r = 0; r < rows && !failed; r++) {
        if (!args->given) choose(args, logits + r * experts.experts, numbers + r * chosen, shares + r * chosen);
        for (int64_t i = r * chosen; i < (r + 1) * chosen; i++) {
            if (args->given) numbers[i] = args->given[i], shares[i] = args->given_shares[i];
            places[i] = counts[numbers[i]]++; /* among the rows of its expert */
        }
    }
    starts[0] = 0;
    for (int64_t e = 1; e < experts.experts; e++) starts[e] = starts[e - 1] + counts[e - 1];
    for (int64_t i = 0; i < total && !failed; i++) {
        places[i] += starts[numbers[i]];
        memcpy(sorted + places[i] * hidden, x + i / chosen * hidden, hidden * sizeof(bf16));
    }
    experts.counts = counts, experts.x = sorted, experts.out = computed, experts.activated = computed + total * hidden;
    if (!failed) failed = run_experts(&experts, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 16)
    for (int64_t r = 0; r < (failed ? 0 : rows); r++)
        add_up(computed, places + r * chosen, shares + r * chosen, chosen, hidden, residual + r * hidden, out + r * hidden);
    free(memory);
    return failed;
}
