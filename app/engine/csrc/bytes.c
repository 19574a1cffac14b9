/* y = x W^T for weights of 4 bits whose levels lie evenly: inputs are rounded to bytes in groups of GROUP, each by its own largest, so that
 * four products at a time are added up as integers (the way of llama.cpp's Q4_0 by Q8_0). A group's sum goes into float32, group after
 * group, so that a row's result does not depend on the others.
 *
 * Weights lie as [outputs / COLUMNS][inputs / GROUP][5][COLUMNS] words: four of eight levels, byte k of them input k and, above it, input
 * 4 + k; and one of two bfloat16, what a level is apart from the next (low) and the value of level 8. Compiled by compiler.py.
 */
#include "ending.h"

#define GROUP 32
#define WORDS 5         /* of a group of one output */
#define NEAR (1 << 20)  /* inputs of the rows that are gone through together: what the second cache of a core holds */
#ifdef __AVX512F__
#define TALL 6 /* 12 sums, 12 of a group, 4 of levels: 28 of 32 registers */
#else
#define TALL 2
#endif

typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

/* Rows in bytes; `step` is what a byte is worth, `less` -8 times the sum of a group's bytes, `middle` their sum times the step. */
typedef struct {
    int8_t *bytes; /* [rows][inputs] */
    float *step;   /* [rows][groups], as the others */
    float *middle;
    int32_t *less;
} Inputs;

/* Of each lane, four levels 0 to 15 times four signed bytes. */
INLINE ints dots(ints sums, words levels, int32_t four) {
#if defined __AVX512VNNI__ && LANES == 16
    return (ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)levels, _mm512_set1_epi32(four));
#elif LANES == 16
    __m512i pairs = _mm512_maddubs_epi16((__m512i)levels, _mm512_set1_epi32(four));
    return sums + (ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined __AVXVNNI__
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)levels, _mm256_set1_epi32(four));
#else
    __m256i pairs = _mm256_maddubs_epi16((__m256i)levels, _mm256_set1_epi32(four));
    return sums + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

/* A group of a row; one that holds what is no number or not finite is none itself. */
static void pack(const bf16 *x, const Inputs *in, int64_t at) {
    vec most = {0}, wrong = {0}, sum = {0};
    for (int i = 0; i < GROUP; i += LANES) {
        vec one = widen(x + i);
        wrong += one * 0;
        most = greatest(most, (vec)((words)one & 0x7fffffff));
    }
    float largest = peak(most), inverse = largest > 1e-30f ? 127 / largest : 0;
    for (int i = 0; i < GROUP; i += LANES) {
        ints found = (ints)((words)(widen(x + i) * inverse + 12582912.0f) - 0x4b400000); /* to the nearest, ties to even */
        *(bytes *)(in->bytes + at * GROUP + i) = __builtin_convertvector(found, bytes);
        sum += __builtin_convertvector(found, vec);
    }
    float all = total(sum);
    in->step[at] = largest / 127 + total(wrong);
    in->middle[at] = in->step[at] * all;
    in->less[at] = -8 * (int32_t)all;
}

/* What is known where this is inlined: rows and blocks. */
INLINE void tile(const int rows, const int blocks, const Inputs *in, int64_t groups, const uint32_t *weights, int64_t row, int64_t block,
                 const Ending *end) {
    vec sums[2 * TALL * 4] = {0};
    for (int64_t g = 0; g < groups; g++) {
        const uint32_t *from = weights + (block * groups + g) * WORDS * COLUMNS;
        int64_t at = row * groups + g;
        ints of[2 * TALL * 4];
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
            for (int c = 0; c < 2 * blocks; c++) of[r * 2 * blocks + c] = (ints){} + in->less[at + r * groups];
#pragma GCC unroll 4
        for (int e = 0; e < WORDS - 1; e++)
#pragma GCC unroll 16
            for (int c = 0; c < 2 * blocks; c++) {
                words eight = *(const words *)(from + (c / 2 * groups * WORDS + e) * COLUMNS + c % 2 * LANES);
                words low = eight & 0x0f0f0f0f, high = eight >> 4 & 0x0f0f0f0f;
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) {
                    const int32_t *fours = (const int32_t *)(in->bytes + (at + r * groups) * GROUP) + 2 * e;
                    of[r * 2 * blocks + c] = dots(dots(of[r * 2 * blocks + c], low, fours[0]), high, fours[1]);
                }
            }
#pragma GCC unroll 16
        for (int c = 0; c < 2 * blocks; c++) {
            words pair = *(const words *)(from + (c / 2 * groups * WORDS + WORDS - 1) * COLUMNS + c % 2 * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                vec *sum = sums + r * 2 * blocks + c;
                *sum += second(pair) * in->middle[at + r * groups];
                *sum += __builtin_convertvector(of[r * 2 * blocks + c], vec) * (first(pair) * in->step[at + r * groups]);
            }
        }
    }
    finish((const float *)sums, rows, blocks * COLUMNS, row, block * COLUMNS, end);
}

#define CASE(ROWS_) case ROWS_: tile(ROWS_, 1, in, groups, weights, row, block, end); break;

static void tiles(int rows, const Inputs *in, int64_t groups, const uint32_t *weights, int64_t row, int64_t block, int64_t count,
                  const Ending *end) {
    for (; rows == 1 && count >= 4; block += 4, count -= 4) tile(1, 4, in, groups, weights, row, block, end);
    for (; count > 0; block++, count--) switch (rows) {
            CASE(1) CASE(2)
#if TALL > 2
            CASE(3) CASE(4) CASE(5) CASE(6)
#endif
        }
}

/* x [rows][inputs], `inputs` whole groups, and `end` in bfloat16; returns 0, or 1 without memory. */
int rounded(const bf16 *x, int64_t rows, int64_t inputs, const uint32_t *weights, const Ending *end, int threads) {
    int64_t blocks = (end->outputs + COLUMNS - 1) / COLUMNS, groups = inputs / GROUP, all = rows * groups;
    int64_t deep = NEAR / inputs > TALL ? NEAR / inputs / TALL * TALL : TALL, step = rows == 1 ? 4 : 1;
    if (!rows) return 0;
    char *room = aligned_alloc(64, UP(all * (GROUP + 3 * sizeof(float)), 64));
    if (!room) return 1;
    float *steps = (float *)(room + all * GROUP);
    Inputs in = {(int8_t *)room, steps, steps + all, (int32_t *)(steps + 2 * all)};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t at = 0; at < all; at++) pack(x + at * GROUP, &in, at);
        for (int64_t from = 0; from < rows; from += deep) {
            int64_t until = rows - from < deep ? rows : from + deep, tall = (until - from + TALL - 1) / TALL;
            int64_t each = (until - from + tall - 1) / tall;
#pragma omp for schedule(dynamic)
            for (int64_t b = 0; b < blocks; b += step)
                for (int64_t r = from; r < until; r += each)
                    tiles(until - r < each ? until - r : each, &in, groups, weights, r, b, blocks - b < step ? blocks - b : step, end);
        }
    }
    free(room);
    return 0;
}
