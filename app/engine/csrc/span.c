/* Causal attention of consecutive rows of one sequence, in float32, by pieces of PIECE keys from the first on: scores of a tile of rows, their
 * softmax in the piece, what it mixes, and that beside what the pieces before have mixed (Dao et al., 2022, arXiv 2205.14135). A piece's keys
 * and values are widened, keys also turned, and stay in a core's second cache for all rows of a job. A row's result does not depend on the
 * rows beside it.
 */
#include "vectors.h"

#define PIECE 256              /* keys; a head's dim is no more */
#define STRIDE (PIECE + LANES) /* of a tile's rows. No power of 2: they would share a cache's set */
#define MOST (16 * ROWS)       /* rows of a job */

/* Row r stands at position start + r and sees the keys up to there, `window` of them (0: all). Strides count elements. */
typedef struct {
    const bf16 *query, *key, *value; /* [rows][heads][dim], [start + rows][kv_heads][dim], rows and heads of keys so far apart: */
    int64_t query_row, key_row, key_head, value_row, value_head;
    int64_t rows, start, heads, kv_heads, dim, window;
    float scale;
    bf16 *out; /* [rows][heads][dim] */
} Span;

/* Of a tile, x [rows][STRIDE] by wide [inputs][COLUMNS], both float32. */
INLINE void product(const int rows, const float *x, int64_t inputs, const float *wide, float *out) {
    vec sums[2 * ROWS] = {0};
    for (int64_t i = 0; i < inputs; i++) {
        vec left = *(const vec *)(wide + i * COLUMNS), right = *(const vec *)(wide + i * COLUMNS + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            sums[2 * r] += x[r * STRIDE + i] * left;
            sums[2 * r + 1] += x[r * STRIDE + i] * right;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        *(vec *)(out + r * STRIDE) = sums[2 * r];
        *(vec *)(out + r * STRIDE + LANES) = sums[2 * r + 1];
    }
}

#define CASE(ROWS_) case ROWS_: product(ROWS_, x, inputs, wide, out); break;

static void multiply(int rows, const float *x, int64_t inputs, const float *wide, float *out) {
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
}

/* Of a piece, a block of keys [dim][COLUMNS] and of values [dim / COLUMNS][PIECE][COLUMNS]; nothing is 0. */
static void spread(const Span *s, int64_t kv, int64_t from, int64_t end, float *turned, float *values) {
    int64_t count = end - from < COLUMNS ? end - from : COLUMNS, key_row = s->key_row, value_row = s->value_row;
    const bf16 *key = s->key + from * key_row + kv * s->key_head, *value = s->value + from * value_row + kv * s->value_head;
    for (int64_t c = 0; c < s->dim; c += LANES) {
        for (int64_t t = 0; t < COLUMNS; t += LANES) {
            vec rows[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) rows[i] = t + i < count ? widen(key + (t + i) * key_row + c) : (vec){0};
            turn(rows);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) *(vec *)(turned + (c + i) * COLUMNS + t) = rows[i];
        }
        float *to = values + c / COLUMNS * PIECE * COLUMNS + c % COLUMNS;
        for (int64_t t = 0; t < COLUMNS; t++) *(vec *)(to + t * COLUMNS) = t < count ? widen(value + t * value_row + c) : (vec){0};
    }
}

/* A row of scores to 2^(x - top), top the largest, and 0 before `first` and after `last`; their sum. */
static float soften(float *x, int64_t count, int64_t first, int64_t last, float *top) {
    vec most = same(-3e38f), sums = {0};
    for (int64_t t = 0; t < first; t++) x[t] = -3e38f;
    for (int64_t t = last + 1; t < count; t++) x[t] = -3e38f;
    for (int64_t t = 0; t < count; t += LANES) most = greatest(most, *(vec *)(x + t));
    float own = *top = peak(most);
    for (int64_t t = 0; t < count; t += LANES) sums += *(vec *)(x + t) = power(greatest(*(vec *)(x + t) - own, same(-127)));
    return total(sums);
}

/* What one thread has: a piece, a tile, and of each row of a job what has been mixed so far. */
typedef struct {
    float turned[PIECE * PIECE], values[PIECE * PIECE], query[ROWS * STRIDE], scores[ROWS * STRIDE], piece[ROWS * STRIDE];
    float mixed[MOST * PIECE], top[MOST], sum[MOST];
} Desk;

/* Adds the keys `begin` to `end` to what `count` rows have mixed, the first of them `row`: of a key-value head, row / group of the sequence. */
static void attend_tile(const Span *s, int64_t kv, int64_t row, int count, int64_t begin, int64_t end, Desk *desk, int64_t at) {
    int64_t group = s->heads / s->kv_heads, after = s->start + (row + count - 1) / group + 1;
    int64_t some = (after < end ? after : end) - begin, width = UP(some, COLUMNS);
    if (some <= 0 || (s->window && s->start + row / group + 1 - s->window >= end)) return;
    for (int r = 0; r < count; r++)
        for (int64_t c = 0; c < s->dim; c += LANES)
            *(vec *)(desk->query + r * STRIDE + c) =
                widen(s->query + (row + r) / group * s->query_row + (kv * group + (row + r) % group) * s->dim + c) * (s->scale * LOG2_E);
    for (int64_t t = 0; t < width; t += COLUMNS) multiply(count, desk->query, s->dim, desk->turned + t * s->dim, desk->scores + t);
    float old[ROWS], new[ROWS];
    for (int r = 0; r < count; r++) {
        int64_t last = s->start + (row + r) / group - begin, first = s->window && last + 1 > s->window ? last + 1 - s->window : 0;
        float top, *x = desk->scores + r * STRIDE;
        old[r] = 1, new[r] = 0;
        if (last < 0 || first >= some) { /* none of these, as others of the tile */
            memset(x, 0, width * sizeof(float));
            continue;
        }
        float sum = soften(x, width, first, last, &top), most = top > desk->top[at + r] ? top : desk->top[at + r];
        old[r] = two_to(same(desk->top[at + r] - most))[0], new[r] = two_to(same(top - most))[0];
        desk->top[at + r] = most;
        desk->sum[at + r] = desk->sum[at + r] * old[r] + sum * new[r];
    }
    for (int64_t c = 0; c < s->dim; c += COLUMNS) multiply(count, desk->scores, some, desk->values + c * PIECE, desk->piece + c);
    for (int r = 0; r < count; r++)
        for (int64_t c = 0; c < s->dim; c += LANES) {
            vec *mixed = (vec *)(desk->mixed + (at + r) * s->dim + c);
            *mixed = *mixed * old[r] + *(vec *)(desk->piece + r * STRIDE + c) * new[r];
        }
}

/* `count` rows of a key-value head, each a head of a row of the sequence. */
static void attend(const Span *s, int64_t kv, int64_t row, int64_t count, Desk *desk) {
    int64_t group = s->heads / s->kv_heads, last = s->start + (row + count - 1) / group, tall = (count + ROWS - 1) / ROWS;
    int64_t each = (count + tall - 1) / tall, seen = s->start + row / group + 1 - s->window;
    memset(desk->mixed, 0, count * s->dim * sizeof(float));
    for (int64_t r = 0; r < count; r++) desk->top[r] = -3e38f, desk->sum[r] = 0;
    for (int64_t begin = s->window && seen > 0 ? seen / PIECE * PIECE : 0; begin <= last; begin += PIECE) {
        int64_t end = last + 1 - begin < PIECE ? last + 1 : begin + PIECE;
        for (int64_t t = 0; begin + t < end; t += COLUMNS)
            spread(s, kv, begin + t, end, desk->turned + t * s->dim, desk->values + t * COLUMNS);
        for (int64_t r = 0; r < count; r += each) attend_tile(s, kv, row + r, count - r < each ? count - r : each, begin, end, desk, r);
    }
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < s->dim; c += LANES)
            narrow(s->out + ((row + r) / group * s->heads + kv * group + (row + r) % group) * s->dim + c,
                   *(vec *)(desk->mixed + r * s->dim + c) / desk->sum[r]);
}

/* dim <= PIECE, whole vectors. Returns 0, or 1 without memory. */
int span(const Span *s, int threads) {
    int64_t rows = s->rows * (s->heads / s->kv_heads), share = rows * s->kv_heads / (3 * threads);
    int64_t most = share < 2 * ROWS ? 2 * ROWS : share < MOST ? share : MOST;
    int64_t parts = (rows + most - 1) / most, each = parts ? (rows + parts - 1) / parts : 1;
    Desk *desks = aligned_alloc(64, threads * UP(sizeof(Desk), 64));
    if (!desks) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t job = 0; job < s->kv_heads * parts; job++) { /* the longest first */
        int64_t row = (parts - 1 - job / s->kv_heads) * each, count = rows - row < each ? rows - row : each;
        if (count > 0) attend(s, job % s->kv_heads, row, count, desks + omp_get_thread_num());
    }
    free(desks);
    return 0;
}
