/* The experts of a mixture, feed-forward networks of which each computes the rows that chose it, in one call. Called one by one from Python,
 * small experts would take half as long again.
 */
#include "layers.h"

/* Each expert is down(swish(gate(x)) * up(x)). */
typedef struct {
    const Linear *gate, *up, *down; /* [experts] */
    int64_t experts, hidden, width; /* width: outputs of gate and up */
    const int64_t *counts;          /* [experts]: rows of each, those of an expert after those of the one before */
    const bf16 *x;                  /* [rows][hidden] */
    bf16 *gated;                    /* [rows][width]: written */
    bf16 *out;                      /* [rows][hidden] */
} ExpertsArgs;

static int run_expert(const ExpertsArgs *args, int64_t expert, int64_t row, int threads) {
    int64_t rows = args->counts[expert];
    const bf16 *x = args->x + row * args->hidden;
    bf16 *gated = args->gated + row * args->width;
    Epilogue activated = {.activation = ACTIVATION_SWISH, .out = gated}, product = {.binary_op = OP_MUL, .operand = gated, .out = gated},
             written = {.out = args->out + row * args->hidden};
    return apply(args->gate + expert, x, rows, activated, threads) || apply(args->up + expert, x, rows, product, threads) ||
           apply(args->down + expert, gated, rows, written, threads);
}

/* Several experts at once where every thread has some of its own; else one after the other, each by all threads. What a row gives is the
 * same either way. Returns 0, or 1 if it cannot allocate memory. */
int run_experts(const ExpertsArgs *args, int threads) {
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
