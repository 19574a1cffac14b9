/* Causal attention of consecutive rows of one sequence, in float32 (Dao et al., 2022, arXiv 2205.14135). A job, some rows of a key-value
 * head, goes through the keys in pieces of PIECE from the first on. For each tile of rows it computes the scores of a piece and their
 * softmax, mixes the values, and adds the result to that of the earlier pieces. A piece's keys are transposed, and keys and values widened
 * to float32, once for all rows of the job; they stay in a core's second-level cache. A row's result does not depend on the rows beside it.
 */
#include "cache.h"

#define PIECE 256                          /* keys */
#define TILE_STRIDE (MAX_HEAD_DIM + LANES) /* between a tile's rows. Not a power of 2, so that rows do not compete for one cache set */
#define MAX_JOB_ROWS (16 * TILE_ROWS)      /* each a query head of a row of the sequence */

/* Multiplies a tile x [rows][TILE_STRIDE] by block [inputs][COLUMNS], both float32, to out [rows][TILE_STRIDE]. */
INLINE void multiply_rows(const int rows, const float *x, int64_t inputs, const float *block, float *out) {
    vec sums[2 * TILE_ROWS] = {0};
    for (int64_t i = 0; i < inputs; i++) {
        vec left = *(const vec *)(block + i * COLUMNS), right = *(const vec *)(block + i * COLUMNS + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            sums[2 * r] += x[r * TILE_STRIDE + i] * left;
            sums[2 * r + 1] += x[r * TILE_STRIDE + i] * right;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        *(vec *)(out + r * TILE_STRIDE) = sums[2 * r];
        *(vec *)(out + r * TILE_STRIDE + LANES) = sums[2 * r + 1];
    }
}

#define CASE(ROWS_) case ROWS_: multiply_rows(ROWS_, x, inputs, block, out); break;

static void multiply_tile(int rows, const float *x, int64_t inputs, const float *block, float *out) {
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
}

/* Widens up to COLUMNS keys and values, from key `begin`, a multiple of COLUMNS, on: keys transposed to [dim][COLUMNS], values to [dim / COLUMNS][PIECE][COLUMNS].
 * From `end` on both are 0. */
INLINE void load_block(const int kind, const PrefillArgs *args, int64_t kv_head, int64_t begin, int64_t end, float *keys, float *values) {
    int64_t count = end - begin < COLUMNS ? end - begin : COLUMNS, dim = args->dim;
    int64_t page = args->pages ? args->pages[begin / args->page] * args->page_stride : 0, row = args->pages ? begin % args->page : begin;
    int64_t key = page + row * args->key_stride + kv_head * args->key_head_stride,
            value = page + row * args->value_stride + kv_head * args->value_head_stride;
    float scales[COLUMNS] = {0};
    for (int64_t t = 0; kind == IN_INT8 && t < count; t++) scales[t] = load_scale(args->key, key + t * args->key_stride, dim, kind);
    for (int64_t c = 0; c < dim; c += LANES) {
        for (int64_t t = 0; t < COLUMNS; t += LANES) {
            vec rows[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                rows[i] = t + i < count ? load(args->key, key + (t + i) * args->key_stride + c, kind) : (vec){0};
                if (kind == IN_INT8) rows[i] *= scales[t + i];
            }
            transpose(rows);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) *(vec *)(keys + (c + i) * COLUMNS + t) = rows[i];
        }
    }
    for (int64_t t = 0; t < COLUMNS; t++)
        for (int64_t c = 0; c < dim; c += LANES) {
            vec x = t < count ? load(args->value, value + t * args->value_stride + c, kind) : (vec){0};
            if (kind == IN_INT8 && t < count) x *= load_scale(args->value, value + t * args->value_stride, dim, kind);
            *(vec *)(values + c / COLUMNS * PIECE * COLUMNS + c % COLUMNS + t * COLUMNS) = x;
        }
}

static void load_piece(const PrefillArgs *args, int64_t kv_head, int64_t begin, int64_t end, float *keys, float *values) {
    for (int64_t t = 0; begin + t < end; t += COLUMNS)
        if (args->key_kind == IN_INT8)
            load_block(IN_INT8, args, kv_head, begin + t, end, keys + t * args->dim, values + t * COLUMNS);
        else
            load_block(IN_BF16, args, kv_head, begin + t, end, keys + t * args->dim, values + t * COLUMNS);
}

/* Turns a row of scores x to 2^(x - top), where `top` is the largest, and to 0 before `first` and after `last`. Returns their sum. */
static float softmax_row(float *x, int64_t count, int64_t first, int64_t last, float *top) {
    vec max_scores = broadcast(-3e38f), sums = {0};
    for (int64_t t = 0; t < first; t++) x[t] = -3e38f;
    for (int64_t t = last + 1; t < count; t++) x[t] = -3e38f;
    for (int64_t t = 0; t < count; t += LANES) max_scores = vec_max(max_scores, *(vec *)(x + t));
    float max_score = *top = max_lane(max_scores);
    for (int64_t t = 0; t < count; t += LANES)
        sums += *(vec *)(x + t) = exp2_bounded(vec_max(*(vec *)(x + t) - max_score, broadcast(-127)));
    return sum_lanes(sums);
}

/* The scratch memory of one thread: a piece, a tile, and the softmax state of each row of a job. */
typedef struct {
    float keys[PIECE * MAX_HEAD_DIM], values[PIECE * MAX_HEAD_DIM];
    float query[TILE_ROWS * TILE_STRIDE], scores[TILE_ROWS * TILE_STRIDE],
        piece[TILE_ROWS * TILE_STRIDE];                                      /* of a tile; the last: values mixed in this piece */
    float mixed[MAX_JOB_ROWS * MAX_HEAD_DIM], top[MAX_JOB_ROWS], sum[MAX_JOB_ROWS]; /* values mixed so far, largest score, sum of weights */
} Scratch;

/* Adds the piece of keys [begin, end) to the state of `count` rows, which starts at row `index` of the scratch memory. Row `row` of a
 * key-value head is row `row / group` of the sequence. */
static void attend_tile(const PrefillArgs *args, int64_t kv_head, int64_t row, int count, int64_t begin, int64_t end, Scratch *scratch,
                        int64_t index) {
    int64_t window = args->scores.window, group = args->heads / args->kv_heads, end_seen = args->start + (row + count - 1) / group + 1;
    int64_t count_keys = (end_seen < end ? end_seen : end) - begin, padded_keys = ROUND_UP(count_keys, COLUMNS);
    if (count_keys <= 0 || (window && args->start + row / group + 1 - window >= end)) return;
    for (int r = 0; r < count; r++)
        for (int64_t c = 0; c < args->dim; c += LANES)
            *(vec *)(scratch->query + r * TILE_STRIDE + c) =
                load(args->query, (row + r) / group * args->query_stride + (kv_head * group + (row + r) % group) * args->dim + c, args->kind) *
                (args->scores.scale * LOG2_E);
    for (int64_t t = 0; t < padded_keys; t += COLUMNS)
        multiply_tile(count, scratch->query, args->dim, scratch->keys + t * args->dim, scratch->scores + t);
    float old_weight[TILE_ROWS], new_weight[TILE_ROWS];
    for (int r = 0; r < count; r++) {
        int64_t last = args->start + (row + r) / group - begin,
                first = window && last + 1 > window ? last + 1 - window : 0;
        float top, *x = scratch->scores + r * TILE_STRIDE;
        old_weight[r] = 1, new_weight[r] = 0;
        if (last < 0 || first >= count_keys) { /* this row sees none of the piece's keys, unlike other rows of the tile */
            memset(x, 0, padded_keys * sizeof(float));
            continue;
        }
        for (int64_t t = 0; args->scores.cap && t < count_keys; t += LANES) *(vec *)(x + t) = cap_scores(*(vec *)(x + t), args->scores.cap);
        float sum = softmax_row(x, padded_keys, first, last, &top), highest = top > scratch->top[index + r] ? top : scratch->top[index + r];
        old_weight[r] = exp2_vec(broadcast(scratch->top[index + r] - highest))[0], new_weight[r] = exp2_vec(broadcast(top - highest))[0];
        scratch->top[index + r] = highest;
        scratch->sum[index + r] = scratch->sum[index + r] * old_weight[r] + sum * new_weight[r];
    }
    for (int64_t c = 0; c < args->dim; c += COLUMNS)
        multiply_tile(count, scratch->scores, count_keys, scratch->values + c * PIECE, scratch->piece + c);
    for (int r = 0; r < count; r++)
        for (int64_t c = 0; c < args->dim; c += LANES) {
            vec *mixed = (vec *)(scratch->mixed + (index + r) * args->dim + c);
            *mixed = *mixed * old_weight[r] + *(vec *)(scratch->piece + r * TILE_STRIDE + c) * new_weight[r];
        }
}

/* Computes a job: `count` rows of a key-value head, each a query head of a row of the sequence. */
static void attend_rows(const PrefillArgs *args, int64_t kv_head, int64_t row, int64_t count, Scratch *scratch) {
    int64_t group = args->heads / args->kv_heads, last = args->start + (row + count - 1) / group,
            tiles = (count + TILE_ROWS - 1) / TILE_ROWS;
    int64_t tile_rows = (count + tiles - 1) / tiles, first_seen = args->start + row / group + 1 - args->scores.window;
    memset(scratch->mixed, 0, count * args->dim * sizeof(float));
    const float *sinks = args->scores.sinks ? args->scores.sinks + kv_head * group : NULL;
    for (int64_t r = 0; r < count; r++) scratch->top[r] = sinks ? sinks[(row + r) % group] * LOG2_E : -3e38f, scratch->sum[r] = sinks != NULL;
    for (int64_t begin = args->scores.window && first_seen > 0 ? first_seen / PIECE * PIECE : 0; begin <= last; begin += PIECE) {
        int64_t end = last + 1 - begin < PIECE ? last + 1 : begin + PIECE;
        load_piece(args, kv_head, begin, end, scratch->keys, scratch->values);
        for (int64_t r = 0; r < count; r += tile_rows)
            attend_tile(args, kv_head, row + r, count - r < tile_rows ? count - r : tile_rows, begin, end, scratch, r);
    }
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < args->dim; c += LANES)
            store(args->out, ((row + r) / group * args->heads + kv_head * group + (row + r) % group) * args->dim + c,
                  *(vec *)(scratch->mixed + r * args->dim + c) / scratch->sum[r], args->kind);
}

/* Computes the attention of all rows. dim is a multiple of LANES and at most MAX_HEAD_DIM. Returns 0, or 1 if it cannot allocate memory. */
int attend_prefill(const PrefillArgs *args, int threads) {
    int64_t rows = args->rows * (args->heads / args->kv_heads), fair_share = rows * args->kv_heads / (3 * threads);
    int64_t job_rows = fair_share < 2 * TILE_ROWS ? 2 * TILE_ROWS : fair_share < MAX_JOB_ROWS ? fair_share : MAX_JOB_ROWS;
    int64_t jobs = (rows + job_rows - 1) / job_rows, rows_each = jobs ? (rows + jobs - 1) / jobs : 1;
    Scratch *scratches = aligned_alloc(64, threads * ROUND_UP(sizeof(Scratch), 64));
    if (!scratches) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t job = 0; job < args->kv_heads * jobs; job++) { /* the jobs with the most keys first */
        int64_t row = (jobs - 1 - job / args->kv_heads) * rows_each, count = rows - row < rows_each ? rows - row : rows_each;
        if (count > 0) attend_rows(args, job % args->kv_heads, row, count, scratches + omp_get_thread_num());
    }
    free(scratches);
    return 0;
}
