/* y = x W^T for bfloat16 inputs on x86: float32 sums, each output over its inputs in order, so that a row's result does not depend on the
 * others.
 *
 * Weights lie in blocks of COLUMNS outputs, in pairs of inputs: [outputs / COLUMNS][inputs / 2][COLUMNS][2], so that one load, a shift and
 * a mask give two vectors of float32; or in eights of 4-bit levels: [outputs / COLUMNS][inputs / 8][COLUMNS], the first input in a word's
 * lowest bits. A tile of up to ROWS rows and one block stays in registers. Where many tiles read a block it is first widened to float32
 * (cf. Goto and van de Geijn, 2008, doi 10.1145/1356052.1356053). Compiled by compiler.py.
 */
#include "ending.h"

#define NEAR (1 << 18)   /* inputs of the rows that are gone through together: what the second cache of a core holds */
#define DEEP (10 * ROWS) /* rows that are, however long */
#define FEW 6            /* tiles that widen a block each for itself */
#define AHEAD 1024       /* weights that are fetched before they are needed */

/* Pairs in bfloat16, or levels: table[level] * scale + middle, both [outputs / COLUMNS][inputs / 2^group][COLUMNS]. */
typedef struct {
    const void *data;
    const float *table, *scale, *middle;
    int group;
} Weights;

INLINE vec look(const float *table, words level) {
#if LANES == 16
    return __builtin_shuffle(*(const vec *)table, level);
#else
    return __builtin_shuffle(*(const vec *)table, *(const vec *)(table + LANES), level);
#endif
}

/* A vector of input `i` + `next`: of half `half` of the columns of a block. `i` begins a pair, or an eight. */
INLINE vec weight(const int levels, const Weights *weights, int64_t inputs, int64_t block, int64_t i, int half, const int next) {
    if (!levels) {
        const bf16 *pairs = (const bf16 *)weights->data + ((block * inputs + i) * COLUMNS + half * 2 * LANES);
        if (next) __builtin_prefetch(pairs + AHEAD);
        return next ? second(*(const words *)pairs) : first(*(const words *)pairs);
    }
    words eight = *(const words *)((const uint32_t *)weights->data + (block * inputs + i) / 8 * COLUMNS + half * LANES);
    int64_t at = (block * (inputs >> weights->group) + (i >> weights->group)) * COLUMNS + half * LANES;
    return look(weights->table, eight >> 4 * next & 15) * *(const vec *)(weights->scale + at) + *(const vec *)(weights->middle + at);
}

enum { PAIRS, LEVELS, WIDE };

/* What is known where this is inlined: rows, blocks, and what the weights are; WIDE ones are `wide` [inputs][COLUMNS] in float32. */
INLINE void add(const int rows, const int blocks, const int kind, vec *sums, const float *x, int64_t inputs, const float *wide,
                const Weights *weights, int64_t block, int64_t i, const int next) {
    vec w[8];
#pragma GCC unroll 16
    for (int c = 0; c < 2 * blocks; c++)
        w[c] = kind == WIDE ? *(const vec *)(wide + (i + next) * COLUMNS + c * LANES)
                            : weight(kind == LEVELS, weights, inputs, block + c / 2, i, c % 2, next);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int c = 0; c < 2 * blocks; c++) sums[r * 2 * blocks + c] += x[r * inputs + i + next] * w[c];
}

INLINE void tile(const int rows, const int blocks, const int kind, const float *x, int64_t inputs, const float *wide, const Weights *weights,
                 int64_t row, int64_t block, const Ending *end) {
    vec sums[2 * ROWS] = {0};
    for (int64_t i = 0; i < inputs; i += kind == LEVELS ? 8 : 2) {
#define ADD(NEXT) add(rows, blocks, kind, sums, x, inputs, wide, weights, block, i, NEXT);
        ADD(0) ADD(1)
        if (kind == LEVELS) { ADD(2) ADD(3) ADD(4) ADD(5) ADD(6) ADD(7) }
    }
    finish((const float *)sums, rows, blocks * COLUMNS, row, block * COLUMNS, end);
}

#define CASE(ROWS_) case ROWS_: tile(ROWS_, 1, kind, x, inputs, wide, weights, row, block, end); break;

INLINE void tiles(int rows, const int kind, const float *x, int64_t inputs, const float *wide, const Weights *weights, int64_t row,
                  int64_t block, const Ending *end) {
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
}

/* `count` blocks as they lie: several at a time where few rows make too few sums of one to keep the arithmetic busy. */
INLINE void several(int rows, const int kind, const float *x, int64_t inputs, const Weights *weights, int64_t row, int64_t block, int64_t count,
                    const Ending *end) {
    for (; rows == 1 && count >= 4; block += 4, count -= 4) tile(1, 4, kind, x, inputs, NULL, weights, row, block, end);
    for (; rows == 2 && count >= 2; block += 2, count -= 2) tile(2, 2, kind, x, inputs, NULL, weights, row, block, end);
    for (; count > 0; block++, count--) tiles(rows, kind, x, inputs, NULL, weights, row, block, end);
}

static void of_pairs(int rows, const float *x, int64_t inputs, const Weights *weights, int64_t row, int64_t block, int64_t count, const Ending *end) {
    several(rows, PAIRS, x, inputs, weights, row, block, count, end);
}

static void of_levels(int rows, const float *x, int64_t inputs, const Weights *weights, int64_t row, int64_t block, int64_t count, const Ending *end) {
    several(rows, LEVELS, x, inputs, weights, row, block, count, end);
}

static void of_wide(int rows, const float *x, int64_t inputs, const float *wide, int64_t row, int64_t block, const Ending *end) {
    tiles(rows, WIDE, x, inputs, wide, NULL, row, block, end);
}

INLINE void spread(const int levels, const Weights *weights, int64_t inputs, int64_t block, float *wide) {
    for (int64_t i = 0; i < inputs; i += levels ? 8 : 2)
        for (int half = 0; half < 2; half++) {
#define SPREAD(NEXT) *(vec *)(wide + (i + NEXT) * COLUMNS + half * LANES) = weight(levels, weights, inputs, block, i, half, NEXT);
            SPREAD(0) SPREAD(1)
            if (levels) { SPREAD(2) SPREAD(3) SPREAD(4) SPREAD(5) SPREAD(6) SPREAD(7) }
        }
}

int64_t columns(void) { return COLUMNS; }

/* x [rows][inputs], `inputs` even, and `end` in bfloat16; returns 0, or 1 without memory. */
int linear(const bf16 *x, int64_t rows, int64_t inputs, const Weights *weights, const Ending *end, int threads) {
    int64_t blocks = (end->outputs + COLUMNS - 1) / COLUMNS, size = inputs * COLUMNS;
    int64_t deep = NEAR / inputs / ROWS * ROWS;
    deep = deep < DEEP ? DEEP : deep;
    deep = rows < deep ? rows : deep;
    if (!rows) return 0;
    int64_t few = weights->table ? 1 : FEW; /* a level is dearer to read than a pair */
    float *wide_x = aligned_alloc(64, UP(deep * inputs * sizeof(float), 64));
    float *wide = deep > few * ROWS ? aligned_alloc(64, threads * size * sizeof(float)) : NULL;
    int lacking = !wide_x || (!wide && deep > few * ROWS);
    for (int64_t from = 0; from < rows && !lacking; from += deep) {
        int64_t some = rows - from < deep ? rows - from : deep, tall = (some + ROWS - 1) / ROWS, each = (some + tall - 1) / tall;
        int64_t step = rows == 1 ? 4 : rows == 2 ? 2 : 1, bytes = weights->table ? size / 2 : size * 2;
#pragma omp parallel num_threads(threads)
        {
            float *own = tall > few ? wide + omp_get_thread_num() * size : NULL;
#pragma omp for schedule(static)
            for (int64_t r = 0; r < some; r++)
                for (int64_t i = 0; i < inputs; i++) ((uint32_t *)wide_x)[r * inputs + i] = (uint32_t)x[(from + r) * inputs + i] << 16;
#pragma omp for schedule(dynamic)
            for (int64_t b = 0; b < blocks; b += step) {
                int64_t count = blocks - b < step ? blocks - b : step;
                if (own && weights->table)
                    spread(1, weights, inputs, b, own);
                else if (own)
                    spread(0, weights, inputs, b, own);
                const char *later = (const char *)weights->data + (b + threads) * bytes;
                for (int64_t r = 0; r < some; r += each) {
                    int64_t now = some - r < each ? some - r : each;
                    if (own && b + threads < blocks) /* a share of the block that this thread is likely to widen next */
                        for (int64_t at = r * bytes / some; at < (r + now) * bytes / some; at += 64) __builtin_prefetch(later + at, 0, 2);
                    if (own)
                        of_wide(now, wide_x + r * inputs, inputs, own, from + r, b, end);
                    else
                        (weights->table ? of_levels : of_pairs)(now, wide_x + r * inputs, inputs, weights, from + r, b, count, end);
                }
            }
        }
    }
    free(wide_x);
    free(wide);
    return lacking;
}
