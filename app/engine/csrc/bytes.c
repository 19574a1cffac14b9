/* y = x W^T for 4-bit weights with evenly spaced levels. Inputs are rounded to 8 bits in groups of GROUP, scaled by the largest of the
 * group, so that one instruction adds up four integer products (as llama.cpp multiplies Q4_0 by Q8_0). The sums of the groups are added in
 * float32 in the order of the groups, so a row's result does not depend on the others.
 *
 * Weights are packed as [outputs / COLUMNS][inputs / GROUP][GROUP_WORDS][COLUMNS]. Of a group's words, four hold eight levels each: byte k
 * has input k in its low and input 4 + k in its high half. The fifth holds two bfloat16: the scale (low) and the offset, which is the value
 * of level 8. Compiled by compiler.py.
 */
#include "ending.h"

#define GROUP 32
#define GROUP_WORDS 5          /* of one output */
#define CHUNK_INPUTS (1 << 20) /* inputs of a chunk of rows, which are multiplied together: they fit a core's second-level cache */
#ifdef __AVX512F__
#define MAX_TILE_ROWS 6 /* 12 sums, 12 sums of a group, 4 words of levels: 28 of 32 registers */
#else
#define MAX_TILE_ROWS 2
#endif

typedef int32_t int_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef int8_t byte_vec __attribute__((vector_size(LANES), aligned(1), may_alias));

/* Inputs rounded to 8 bits. An input is about byte * scale. A level's value has two parts, (level - 8) * weight scale and the offset: the
 * integer sum of the first starts at `correction`, the second is multiplied by `scaled_sum`. */
typedef struct {
    int8_t *bytes;       /* [rows][inputs] */
    float *scale;        /* [rows][groups], as the others: the largest magnitude / 127 */
    float *scaled_sum;   /* scale times the sum of a group's bytes */
    int32_t *correction; /* -8 times the sum of a group's bytes */
} Inputs;

/* Adds to each lane the dot product of its four levels (bytes 0 to 15) and four signed 8-bit inputs. */
INLINE int_vec add_dot_products(int_vec sums, uint_vec levels, int32_t four_inputs) {
#if defined __AVX512VNNI__ && LANES == 16
    return (int_vec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)levels, _mm512_set1_epi32(four_inputs));
#elif LANES == 16
    __m512i pairs = _mm512_maddubs_epi16((__m512i)levels, _mm512_set1_epi32(four_inputs));
    return sums + (int_vec)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined __AVXVNNI__
    return (int_vec)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)levels, _mm256_set1_epi32(four_inputs));
#else
    __m256i pairs = _mm256_maddubs_epi16((__m256i)levels, _mm256_set1_epi32(four_inputs));
    return sums + (int_vec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

/* Rounds one group of a row's inputs; `group` counts over all rows. NaN or infinity in it makes the scale NaN, and with it the outputs. */
static void round_group(const bf16 *x, const Inputs *in, int64_t group) {
    vec magnitude = {0}, nonfinite = {0}, sum = {0};
    for (int i = 0; i < GROUP; i += LANES) {
        vec part = load_bf16(x + i);
        nonfinite += part * 0;
        magnitude = vec_max(magnitude, (vec)((uint_vec)part & 0x7fffffff));
    }
    float largest = max_lane(magnitude), inverse = largest > 1e-30f ? 127 / largest : 0;
    for (int i = 0; i < GROUP; i += LANES) {
        int_vec rounded = (int_vec)((uint_vec)(load_bf16(x + i) * inverse + 12582912.0f) - 0x4b400000); /* to the nearest, ties to even */
        *(byte_vec *)(in->bytes + group * GROUP + i) = __builtin_convertvector(rounded, byte_vec);
        sum += __builtin_convertvector(rounded, vec);
    }
    float total = sum_lanes(sum);
    in->scale[group] = largest / 127 + sum_lanes(nonfinite);
    in->scaled_sum[group] = in->scale[group] * total;
    in->correction[group] = -8 * (int32_t)total;
}

/* `rows` and `blocks` are constants where this is inlined. */
INLINE void compute_tile(const int rows, const int blocks, const Inputs *in, int64_t groups, const uint32_t *weights, int64_t row,
                         int64_t block, const Epilogue *epilogue) {
    vec sums[2 * MAX_TILE_ROWS * 4] = {0};
    for (int64_t g = 0; g < groups; g++) {
        const uint32_t *from = weights + (block * groups + g) * GROUP_WORDS * COLUMNS;
        int64_t group = row * groups + g;
        int_vec dots[2 * MAX_TILE_ROWS * 4];
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
            for (int c = 0; c < 2 * blocks; c++) dots[r * 2 * blocks + c] = (int_vec){} + in->correction[group + r * groups];
#pragma GCC unroll 4
        for (int w = 0; w < GROUP_WORDS - 1; w++)
#pragma GCC unroll 16
            for (int c = 0; c < 2 * blocks; c++) {
                uint_vec word = *(const uint_vec *)(from + (c / 2 * groups * GROUP_WORDS + w) * COLUMNS + c % 2 * LANES);
                uint_vec low = word & 0x0f0f0f0f, high = word >> 4 & 0x0f0f0f0f;
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) {
                    const int32_t *word_inputs = (const int32_t *)(in->bytes + (group + r * groups) * GROUP) + 2 * w;
                    dots[r * 2 * blocks + c] =
                        add_dot_products(add_dot_products(dots[r * 2 * blocks + c], low, word_inputs[0]), high, word_inputs[1]);
                }
            }
#pragma GCC unroll 16
        for (int c = 0; c < 2 * blocks; c++) {
            uint_vec scale_and_offset =
                *(const uint_vec *)(from + (c / 2 * groups * GROUP_WORDS + GROUP_WORDS - 1) * COLUMNS + c % 2 * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                vec *sum = sums + r * 2 * blocks + c;
                *sum += high_half(scale_and_offset) * in->scaled_sum[group + r * groups];
                *sum +=
                    __builtin_convertvector(dots[r * 2 * blocks + c], vec) * (low_half(scale_and_offset) * in->scale[group + r * groups]);
            }
        }
    }
    write_outputs((const float *)sums, rows, blocks * COLUMNS, row, block * COLUMNS, epilogue);
}

#define CASE(ROWS_) case ROWS_: compute_tile(ROWS_, 1, in, groups, weights, row, block, epilogue); break;

/* Computes `count` blocks of outputs; one row takes four blocks at a time. */
static void compute_blocks(int rows, const Inputs *in, int64_t groups, const uint32_t *weights, int64_t row, int64_t block, int64_t count,
                           const Epilogue *epilogue) {
    for (; rows == 1 && count >= 4; block += 4, count -= 4) compute_tile(1, 4, in, groups, weights, row, block, epilogue);
    for (; count > 0; block++, count--) switch (rows) {
            CASE(1) CASE(2)
#if MAX_TILE_ROWS > 2
            CASE(3) CASE(4) CASE(5) CASE(6)
#endif
        }
}

/* Computes the layer on bfloat16 x [rows][inputs], `inputs` a multiple of GROUP. Returns 0, or 1 if it cannot allocate memory. */
int linear_w4a8(const bf16 *x, int64_t rows, int64_t inputs, const uint32_t *weights, const Epilogue *epilogue, int threads) {
    int64_t blocks = (epilogue->outputs + COLUMNS - 1) / COLUMNS, groups = inputs / GROUP, all_groups = rows * groups;
    int64_t chunk_rows = CHUNK_INPUTS / inputs > MAX_TILE_ROWS ? CHUNK_INPUTS / inputs / MAX_TILE_ROWS * MAX_TILE_ROWS : MAX_TILE_ROWS,
            blocks_per_job = rows == 1 ? 4 : 1;
    if (!rows) return 0;
    char *buffer = aligned_alloc(64, ROUND_UP(all_groups * (GROUP + 3 * sizeof(float)), 64));
    if (!buffer) return 1;
    float *scales = (float *)(buffer + all_groups * GROUP);
    Inputs in = {(int8_t *)buffer, scales, scales + all_groups, (int32_t *)(scales + 2 * all_groups)};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t group = 0; group < all_groups; group++) round_group(x + group * GROUP, &in, group);
        for (int64_t from = 0; from < rows; from += chunk_rows) {
            int64_t chunk_end = rows - from < chunk_rows ? rows : from + chunk_rows,
                    tiles = (chunk_end - from + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS;
            int64_t tile_rows = (chunk_end - from + tiles - 1) / tiles;
#pragma omp for schedule(dynamic)
            for (int64_t b = 0; b < blocks; b += blocks_per_job)
                for (int64_t r = from; r < chunk_end; r += tile_rows)
                    compute_blocks(chunk_end - r < tile_rows ? chunk_end - r : tile_rows, &in, groups, weights, r, b,
                                   blocks - b < blocks_per_job ? blocks - b : blocks_per_job, epilogue);
        }
    }
    free(buffer);
    return 0;
}
