/* y = x W^T for bfloat16 inputs and weights. Each output is summed in float32 in the order of the inputs, so a row's result does not depend
 * on the others.
 *
 * Weights are packed in blocks of COLUMNS outputs, pairs of inputs adjacent: [outputs / COLUMNS][inputs / 2][COLUMNS][2], so that one load, a
 * shift and a mask give two vectors of float32. The sums of a tile, up to TILE_ROWS rows by one block, stay in registers. A block that many
 * tiles read is first widened to float32 (cf. Goto and van de Geijn, 2008, doi 10.1145/1356052.1356053). Compiled by compiler.py.
 */
#include "ending.h"

#define CHUNK_INPUTS (1 << 18)          /* inputs of a chunk of rows, which are multiplied together: they fit a core's second-level cache */
#define MIN_CHUNK_ROWS (10 * TILE_ROWS) /* rows of a chunk, even if their inputs exceed CHUNK_INPUTS */
#define MAX_DIRECT_TILES 6    /* up to so many tiles, each reads the packed block; more share a widened one */
#define PREFETCH_WEIGHTS 1024 /* weights are prefetched so far ahead */

/* The weights of input `i` + `k`, for one half (0 or 1) of a block's columns. `i` begins a pair of inputs. */
INLINE vec load_weights(const Weights *weights, int64_t inputs, int64_t block, int64_t i, int half, const int k) {
    const bf16 *pairs = (const bf16 *)weights->data + ((block * inputs + i) * COLUMNS + half * 2 * LANES);
    if (k) __builtin_prefetch(pairs + PREFETCH_WEIGHTS);
    return k ? high_half(*(const uint_vec *)pairs) : low_half(*(const uint_vec *)pairs);
}

enum { PACKED, WIDENED }; /* the kind of weights that a tile reads */

/* Adds the products of input `i` + `k` to the sums of a tile. `rows`, `blocks` and `kind` are constants where this is inlined. WIDENED
 * weights are `widened` [inputs][COLUMNS] in float32. */
INLINE void accumulate(const int rows, const int blocks, const int kind, vec *sums, const float *x, int64_t inputs, const float *widened,
                       const Weights *weights, int64_t block, int64_t i, const int k) {
    vec w[8];
#pragma GCC unroll 16
    for (int c = 0; c < 2 * blocks; c++)
        w[c] = kind == WIDENED ? *(const vec *)(widened + (i + k) * COLUMNS + c * LANES)
                               : load_weights(weights, inputs, block + c / 2, i, c % 2, k);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int c = 0; c < 2 * blocks; c++) sums[r * 2 * blocks + c] += x[r * inputs + i + k] * w[c];
}

INLINE void compute_tile(const int rows, const int blocks, const int kind, const float *x, int64_t inputs, const float *widened,
                         const Weights *weights, int64_t row, int64_t block, const Epilogue *epilogue) {
    vec sums[2 * TILE_ROWS] = {0};
    for (int64_t i = 0; i < inputs; i += 2) {
#define ADD(K) accumulate(rows, blocks, kind, sums, x, inputs, widened, weights, block, i, K);
        ADD(0) ADD(1)
    }
    write_outputs((const float *)sums, rows, blocks * COLUMNS, row, block * COLUMNS, epilogue);
}

#define CASE(ROWS_) case ROWS_: compute_tile(ROWS_, 1, kind, x, inputs, widened, weights, row, block, epilogue); break;

INLINE void dispatch_tile(int rows, const int kind, const float *x, int64_t inputs, const float *widened, const Weights *weights,
                          int64_t row, int64_t block, const Epilogue *epilogue) {
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
}

/* Computes `count` blocks without widening. One or two rows take several blocks at a time: the sums of one block are too few to keep the
 * arithmetic units busy. */
INLINE void compute_blocks(int rows, const int kind, const float *x, int64_t inputs, const Weights *weights, int64_t row, int64_t block,
                           int64_t count, const Epilogue *epilogue) {
    for (; rows == 1 && count >= 4; block += 4, count -= 4) compute_tile(1, 4, kind, x, inputs, NULL, weights, row, block, epilogue);
    for (; rows == 2 && count >= 2; block += 2, count -= 2) compute_tile(2, 2, kind, x, inputs, NULL, weights, row, block, epilogue);
    for (; count > 0; block++, count--) dispatch_tile(rows, kind, x, inputs, NULL, weights, row, block, epilogue);
}

static void compute_packed(int rows, const float *x, int64_t inputs, const Weights *weights, int64_t row, int64_t block, int64_t count,
                           const Epilogue *epilogue) {
    compute_blocks(rows, PACKED, x, inputs, weights, row, block, count, epilogue);
}

static void compute_widened(int rows, const float *x, int64_t inputs, const float *widened, int64_t row, int64_t block,
                            const Epilogue *epilogue) {
    dispatch_tile(rows, WIDENED, x, inputs, widened, NULL, row, block, epilogue);
}

/* Widens a block's weights to float32, [inputs][COLUMNS]. */
static void widen_block(const Weights *weights, int64_t inputs, int64_t block, float *widened) {
    for (int64_t i = 0; i < inputs; i += 2)
        for (int half = 0; half < 2; half++) {
#define WIDEN(K) *(vec *)(widened + (i + K) * COLUMNS + half * LANES) = load_weights(weights, inputs, block, i, half, K);
            WIDEN(0) WIDEN(1)
        }
}

/* Outputs of a block: the packing must use the same number. */
int64_t block_columns(void) { return COLUMNS; }

/* Whether bfloat16 weights are multiplied by dot_products.c. One way for all numbers of rows: the two round differently. */
static int use_dot_products = 0;

void choose_dot_products(int chosen) { use_dot_products = chosen && has_dot_products(); }

/* Computes the layer on bfloat16 x [rows][inputs], `inputs` even. Returns 0, or 1 if it cannot allocate memory. */
int linear(const bf16 *x, int64_t rows, int64_t inputs, const Weights *weights, const Epilogue *epilogue, int threads) {
    int64_t blocks = (epilogue->outputs + COLUMNS - 1) / COLUMNS, size = inputs * COLUMNS;
    int64_t max_chunk_rows = CHUNK_INPUTS / inputs / TILE_ROWS * TILE_ROWS;
    max_chunk_rows = max_chunk_rows < MIN_CHUNK_ROWS ? MIN_CHUNK_ROWS : max_chunk_rows;
    max_chunk_rows = rows < max_chunk_rows ? rows : max_chunk_rows;
    if (!rows) return 0;
    if (use_dot_products) {
        linear_by_dot_products(x, rows, inputs, weights, epilogue, threads);
        return 0;
    }
    float *float_x = aligned_alloc(64, ROUND_UP(max_chunk_rows * inputs * sizeof(float), 64));
    float *widened = max_chunk_rows > MAX_DIRECT_TILES * TILE_ROWS ? aligned_alloc(64, threads * size * sizeof(float)) : NULL;
    int failed = !float_x || (!widened && max_chunk_rows > MAX_DIRECT_TILES * TILE_ROWS);
    for (int64_t from = 0; from < rows && !failed; from += max_chunk_rows) {
        int64_t chunk_rows = rows - from < max_chunk_rows ? rows - from : max_chunk_rows, tiles = (chunk_rows + TILE_ROWS - 1) / TILE_ROWS;
        int64_t tile_rows = (chunk_rows + tiles - 1) / tiles;
        int64_t blocks_per_job = rows == 1 ? 4 : rows == 2 ? 2 : 1, bytes = size * 2;
#pragma omp parallel num_threads(threads)
        {
            float *own_block = tiles > MAX_DIRECT_TILES ? widened + omp_get_thread_num() * size : NULL;
#pragma omp for schedule(static)
            for (int64_t r = 0; r < chunk_rows; r++)
                for (int64_t i = 0; i < inputs; i++) ((uint32_t *)float_x)[r * inputs + i] = (uint32_t)x[(from + r) * inputs + i] << 16;
#pragma omp for schedule(dynamic)
            for (int64_t b = 0; b < blocks; b += blocks_per_job) {
                int64_t count = blocks - b < blocks_per_job ? blocks - b : blocks_per_job;
                if (own_block) widen_block(weights, inputs, b, own_block);
                const char *next_block = (const char *)weights->data + (b + threads) * bytes;
                for (int64_t r = 0; r < chunk_rows; r += tile_rows) {
                    int64_t row_count = chunk_rows - r < tile_rows ? chunk_rows - r : tile_rows;
                    if (own_block && b + threads < blocks) /* prefetch a share of the block that this thread is likely to widen next */
                        for (int64_t index = r * bytes / chunk_rows; index < (r + row_count) * bytes / chunk_rows; index += 64)
                            __builtin_prefetch(next_block + index, 0, 2);
                    if (own_block)
                        compute_widened(row_count, float_x + r * inputs, inputs, own_block, from + r, b, epilogue);
                    else
                        compute_packed(row_count, float_x + r * inputs, inputs, weights, from + r, b, count, epilogue);
                }
            }
        }
    }
    free(float_x);
    free(widened);
    return failed;
}
