/* y = x W^T for bfloat16 weights by the processor's bfloat16 dot products (AVX512-BF16): one instruction adds two products a lane and takes
 * weights and inputs as they are (below 2^-126 they count as zero). Weights are packed as linear.c describes. The pairs of inputs are added in their order, so a row's result
 * does not depend on the others. Compiled by compiler.py.
 */
#include "kernels.h"

#ifdef __AVX512BF16__
#include "ending.h"

int has_dot_products(void) { return 1; }

#define CHUNK_INPUTS (1 << 18)  /* inputs of a chunk of rows, which are multiplied together: they fit a core's second-level cache */
#define PREFETCH_WORDS 512      /* weights are prefetched so far ahead, in pairs */

/* `x` [rows][pairs]. `rows` and `blocks` are constants where this is inlined. */
INLINE void compute_tile(const int rows, const int blocks, const int32_t *x, int64_t pairs, const uint32_t *weights, int64_t row,
                         int64_t block, const Epilogue *epilogue) {
    __m512 sums[2 * TILE_ROWS];
#pragma GCC unroll 32
    for (int i = 0; i < rows * 2 * blocks; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t i = 0; i < pairs; i++) {
        __m512bh w[8];
#pragma GCC unroll 8
        for (int c = 0; c < 2 * blocks; c++) {
            const uint32_t *from = weights + ((block + c / 2) * pairs + i) * COLUMNS + c % 2 * LANES;
            __builtin_prefetch(from + PREFETCH_WORDS);
            w[c] = (__m512bh)_mm512_loadu_si512(from);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512bh two = (__m512bh)_mm512_set1_epi32(x[r * pairs + i]);
#pragma GCC unroll 8
            for (int c = 0; c < 2 * blocks; c++) sums[r * 2 * blocks + c] = _mm512_dpbf16_ps(sums[r * 2 * blocks + c], w[c], two);
        }
    }
    write_outputs((const float *)sums, rows, blocks * COLUMNS, row, block * COLUMNS, epilogue);
}

#define CASE(ROWS_) case ROWS_: compute_tile(ROWS_, 1, x, pairs, weights, row, block, epilogue); break;

static void compute_blocks(int rows, const int32_t *x, int64_t pairs, const uint32_t *weights, int64_t row, int64_t block, int64_t count,
                           const Epilogue *epilogue) {
    for (; rows == 1 && count >= 4; block += 4, count -= 4) compute_tile(1, 4, x, pairs, weights, row, block, epilogue);
    for (; rows == 2 && count >= 2; block += 2, count -= 2) compute_tile(2, 2, x, pairs, weights, row, block, epilogue);
    for (; count > 0; block++, count--) switch (rows) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
        }
}

void linear_by_dot_products(const bf16 *x, int64_t rows, int64_t inputs, const Weights *weights, const Epilogue *epilogue, int threads) {
    int64_t blocks = (epilogue->outputs + COLUMNS - 1) / COLUMNS, blocks_per_job = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    int64_t chunk_rows = CHUNK_INPUTS / inputs > TILE_ROWS ? CHUNK_INPUTS / inputs / TILE_ROWS * TILE_ROWS : TILE_ROWS;
#pragma omp parallel num_threads(threads)
    for (int64_t from = 0; from < rows; from += chunk_rows) {
        int64_t end = rows - from < chunk_rows ? rows : from + chunk_rows, tiles = (end - from + TILE_ROWS - 1) / TILE_ROWS;
        int64_t tile_rows = (end - from + tiles - 1) / tiles;
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < blocks; b += blocks_per_job)
            for (int64_t r = from; r < end; r += tile_rows)
                compute_blocks(end - r < tile_rows ? end - r : tile_rows, (const int32_t *)(x + r * inputs), inputs / 2, weights->data, r, b,
                               blocks - b < blocks_per_job ? blocks - b : blocks_per_job, epilogue);
    }
}
#else
int has_dot_products(void) { return 0; }

void linear_by_dot_products(const bf16 *x, int64_t rows, int64_t inputs, const Weights *weights, const Epilogue *epilogue, int threads) {
    (void)x, (void)rows, (void)inputs, (void)weights, (void)epilogue, (void)threads; /* never called: linear.c asks first */
}
#endif
