/* Causal attention of consecutive rows of one sequence, in float32: scores of a tile of rows, their softmax, what it mixes. Keys and values
 * are first widened, keys also turned, into blocks that stay in a core's second cache (cf. linear.c). A row's result does not depend on the
 * rows beside it.
 */
#include "vectors.h"

#define UP(X, OF) (((X) + (OF) - 1) / (OF) * (OF))
#define PIECE 512 /* scores of a row that lie together; a head's dim is no more than half of it */
#define STRIDE (PIECE + LANES) /* no power of 2: all rows would share a cache's set */

/* Row r stands at position start + r and sees the keys up to there, `window` of them (0: all). Strides count elements. */
typedef struct {
    const bf16 *query, *key, *value; /* [rows][heads][dim], [start + rows][kv_heads][dim], rows and heads of keys so far apart: */
    int64_t query_row, key_row, key_head, value_row, value_head;
    int64_t rows, start, heads, kv_heads, dim, window;
    float scale;
    bf16 *out; /* [rows][heads][dim] */
} Span;

/* Of a tile, x [rows][STRIDE] by wide [inputs][COLUMNS], both float32; added to `out` where there is something. */
INLINE void product(const int rows, const float *x, int64_t inputs, const float *wide, float *out, int more) {
    vec sums[2 * ROWS] = {0};
    if (more)
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            sums[2 * r] = *(const vec *)(out + r * STRIDE);
            sums[2 * r + 1] = *(const vec *)(out + r * STRIDE + LANES);
        }
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

#define CASE(ROWS_) case ROWS_: product(ROWS_, x, inputs, wide, out, more); break;

static void multiply(int rows, const float *x, int64_t inputs, const float *wide, float *out, int more) {
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
}

/* A block of keys [dim][COLUMNS] and of values [dim / COLUMNS][..][COLUMNS]; nothing is 0. */
static void spread(const Span *s, int64_t kv, int64_t from, int64_t keys, float *turned, float *values, int64_t apart) {
    int64_t count = keys - from < COLUMNS ? keys - from : COLUMNS;
    memset(turned, 0, s->dim * COLUMNS * sizeof(float));
    for (int64_t t = 0; t < count; t++) {
        const bf16 *key = s->key + (from + t) * s->key_row + kv * s->key_head;
        for (int64_t c = 0; c < s->dim; c++) ((uint32_t *)turned)[c * COLUMNS + t] = (uint32_t)key[c] << 16;
    }
    for (int64_t c = 0; c < s->dim; c += LANES)
        for (int64_t t = 0; t < COLUMNS; t++) {
            const bf16 *value = s->value + (from + t) * s->value_row + kv * s->value_head + c;
            *(vec *)(values + c / COLUMNS * apart + t * COLUMNS + c % COLUMNS) = t < count ? widen(value) : (vec){0};
        }
}

/* A row of scores: PIECE of them together, pieces ROWS * STRIDE apart. To 2^(x - most), and 0 before `first` and after `last`; their sum. */
static float soften(float *x, int64_t count, int64_t first, int64_t last) {
    vec most = same(-3e38f), sums = {0};
    float top = -3e38f;
#define AT(T) (x + (T) / PIECE * ROWS * STRIDE + (T) % PIECE)
    for (int64_t t = 0; t < first; t++) *AT(t) = -3e38f;
    for (int64_t t = last + 1; t < count; t++) *AT(t) = -3e38f;
    for (int64_t t = 0; t < count; t += LANES) most = greatest(most, *(vec *)AT(t));
    for (int i = 0; i < LANES; i++) top = most[i] > top ? most[i] : top;
    for (int64_t t = 0; t < count; t += LANES) sums += *(vec *)AT(t) = power(greatest(*(vec *)AT(t) - top, same(-127)));
    return total(sums);
}

/* `count` rows from `row` on, of one head. `keys` and `values` are those of its key-value head, which have `room` places. */
static void attend_tile(const Span *s, int64_t head, int64_t row, int count, const float *keys, const float *values, int64_t room, float *scores) {
    int64_t end = s->start + row + count, seen = s->window && s->start + row + 1 > s->window ? s->start + row + 1 - s->window : 0;
    int64_t begin = seen / COLUMNS * COLUMNS, width = UP(end, COLUMNS) - begin;
    float query[ROWS * STRIDE], mixed[ROWS * STRIDE], whole[ROWS];
    for (int r = 0; r < count; r++)
        for (int64_t c = 0; c < s->dim; c += LANES)
            *(vec *)(query + r * STRIDE + c) = widen(s->query + (row + r) * s->query_row + head * s->dim + c) * (s->scale * LOG2_E);
    for (int64_t t = 0; t < width; t += COLUMNS)
        multiply(count, query, s->dim, keys + (begin + t) * s->dim, scores + t / PIECE * ROWS * STRIDE + t % PIECE, 0);
    for (int r = 0; r < count; r++) {
        int64_t last = s->start + row + r, first = s->window && last + 1 > s->window ? last + 1 - s->window : 0;
        whole[r] = soften(scores + r * STRIDE, width, first > begin ? first - begin : 0, last - begin);
    }
    for (int64_t c = 0; c < s->dim; c += COLUMNS) {
        for (int64_t t = 0; t < end - begin; t += PIECE) {
            int64_t some = end - begin - t < PIECE ? end - begin - t : PIECE;
            multiply(count, scores + t * ROWS / PIECE * STRIDE, some, values + c * room + (begin + t) * COLUMNS, mixed, t > 0);
        }
        for (int r = 0; r < count; r++)
            for (int64_t at = c; at < s->dim && at < c + COLUMNS; at += LANES)
                narrow(s->out + ((row + r) * s->heads + head) * s->dim + at, *(vec *)(mixed + r * STRIDE + at - c) / whole[r]);
    }
}

/* dim <= PIECE / 2, whole vectors. Returns 0, or 1 without memory. */
int span(const Span *s, int threads) {
    int64_t keys = s->start + s->rows, room = UP(keys, COLUMNS), wide = UP(s->dim, COLUMNS), own = UP(room, PIECE) / PIECE * ROWS * STRIDE;
    int64_t skipped = s->window && s->start + 1 > s->window ? (s->start + 1 - s->window) / COLUMNS * COLUMNS : 0;
    int64_t blocks = (room - skipped) / COLUMNS, tall = (s->rows + ROWS - 1) / ROWS, each = (s->rows + tall - 1) / tall;
    float *turned = aligned_alloc(64, s->kv_heads * room * s->dim * sizeof(float));
    float *values = aligned_alloc(64, s->kv_heads * room * wide * sizeof(float));
    float *scores = aligned_alloc(64, UP(threads * own * sizeof(float), 64));
    int lacking = !turned || !values || !scores;
    if (!lacking)
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t job = 0; job < s->kv_heads * blocks; job++) {
            int64_t kv = job / blocks, from = skipped + job % blocks * COLUMNS;
            spread(s, kv, from, keys, turned + (kv * room + from) * s->dim, values + kv * room * wide + from * COLUMNS, room * COLUMNS);
        }
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < s->heads * tall; job++) {
            int64_t head = job % s->heads, row = (tall - 1 - job / s->heads) * each, kv = head / (s->heads / s->kv_heads);
            int64_t count = s->rows - row < each ? s->rows - row : each; /* the longest rows first */
            if (count > 0)
                attend_tile(s, head, row, count, turned + kv * room * s->dim, values + kv * room * wide, room,
                            scores + omp_get_thread_num() * own);
        }
    }
    free(turned);
    free(values);
    free(scores);
    return lacking;
}
