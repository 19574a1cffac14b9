/* y = x W^T for weights in groups of 16 or 32 inputs: levels of 4 or 8 bits, and for each group a scale and a minimum. A weight is
 * level * scale + minimum; where there is a table, table[level] stands for the level. Inputs are rounded to 8 or 16 bits in the same groups, scaled by the largest of the group, so that one
 * instruction adds up four integer products (as llama.cpp multiplies Q4_1 by Q8_1). 16 bits are two planes of 8. The sums of the groups are
 * added in float32 in the order of the groups, so a row's result does not depend on the others.
 *
 * Weights are packed as [outputs / COLUMNS][inputs / group][words][COLUMNS]. In 4 bits a word holds eight levels: byte k has input k in its
 * low and input 4 + k in its high half. In 8 bits it holds four. The last word of a group is [2][COLUMNS] float16: scales, then minima, each
 * divided by the layer's own `weight_scale`. Compiled by compiler.py.
 */
#include "ending.h"

#define CHUNK_INPUTS (1 << 20) /* inputs of a chunk of rows, which are multiplied together: they fit a core's second-level cache */

/* Rounded inputs. In one plane an input is about high * scale, in two about (256 * high + low) * scale. */
typedef struct {
    int8_t *high, *low; /* [rows][inputs]; low: NULL in one plane */
    float *scale;       /* [rows][groups], as the other: the largest magnitude / the largest integer, times the layer's weight_scale */
    float *scaled_sum;  /* scale times the sum of a group's integers: what a minimum is multiplied by */
} Inputs;

/* Rounds one group of a row's inputs; `group` counts over all rows. NaN or infinity in it makes the scale NaN, and with it the outputs. */
static void round_group(const bf16 *x, const Inputs *in, int64_t group, int size, float weight_scale) {
    vec magnitude = {0}, nonfinite = {0}, sum = {0};
    for (int i = 0; i < size; i += LANES) {
        vec part = load_bf16(x + i);
        nonfinite += part * 0;
        magnitude = vec_max(magnitude, (vec)((uint_vec)part & 0x7fffffff));
    }
    float limit = in->low ? 127 * 256 : 127, largest = max_lane(magnitude), inverse = largest > 1e-30f ? limit / largest : 0;
    for (int i = 0; i < size; i += LANES) {
        int_vec rounded = (int_vec)((uint_vec)(load_bf16(x + i) * inverse + 12582912.0f) - 0x4b400000); /* to the nearest, ties to even */
        int_vec high = in->low ? (int_vec)((rounded + 128) >> 8) : rounded;
        *(char_vec *)(in->high + group * size + i) = __builtin_convertvector(high, char_vec);
        if (in->low) *(char_vec *)(in->low + group * size + i) = __builtin_convertvector(rounded - (high << 8), char_vec);
        sum += __builtin_convertvector(rounded, vec);
    }
    in->scale[group] = (largest / limit + sum_lanes(nonfinite)) * weight_scale;
    in->scaled_sum[group] = in->scale[group] * sum_lanes(sum);
}

/* Adds the products of one plane of the inputs with a group of weights to `dots` [rows][2 * blocks]. `bytes` are those of the first row,
 * and `stride` those of a row. */
INLINE void add_plane(const int rows, const int blocks, const int bits, const int size, const uint8_t *table, int_vec *dots,
                      const int8_t *bytes, int64_t stride, const uint32_t *from, int64_t block_words) {
#pragma GCC unroll 8
    for (int w = 0; w < size * bits / 32; w++)
#pragma GCC unroll 16
        for (int c = 0; c < 2 * blocks; c++) {
            uint_vec word = *(const uint_vec *)(from + (c / 2 * block_words + w) * COLUMNS + c % 2 * LANES);
            uint_vec low = word & 0x0f0f0f0f, high = word >> 4 & 0x0f0f0f0f;
            if (table) low = look_up_bytes(table, low), high = look_up_bytes(table, high);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                const int32_t *inputs = (const int32_t *)(bytes + r * stride);
                int_vec *dot = dots + r * 2 * blocks + c;
                if (table)
                    *dot = add_byte_products(add_byte_products(*dot, low, inputs[2 * w]), high, inputs[2 * w + 1]);
                else if (bits == 4)
                    *dot = add_dot_products(add_dot_products(*dot, low, inputs[2 * w]), high, inputs[2 * w + 1]);
                else
                    *dot = add_byte_products(*dot, word, inputs[w]);
            }
        }
}

/* All parameters up to `planes`, and whether there is a table, are constants where this is inlined. `size` is that of a group. */
INLINE void compute_tile(const int rows, const int blocks, const int bits, const int size, const int planes, const uint8_t *table,
                         const Inputs *in, int64_t groups, const uint32_t *weights, int64_t row, int64_t block, const Epilogue *epilogue) {
    const int words = size * bits / 32, stride = words + 1; /* of a group: words of levels, and all words */
    vec sums[2 * GROUPED_TILE_ROWS * 4] = {0};
    for (int64_t g = 0; g < groups; g++) {
        const uint32_t *from = weights + (block * groups + g) * stride * COLUMNS;
        int64_t group = row * groups + g;
        int_vec dots[2 * GROUPED_TILE_ROWS * 4];
#pragma GCC unroll 16
        for (int i = 0; i < rows * 2 * blocks; i++) dots[i] = (int_vec){};
        add_plane(rows, blocks, bits, size, table, dots, in->high + group * size, groups * size, from, groups * stride);
        if (planes == 2) {
#pragma GCC unroll 16
            for (int i = 0; i < rows * 2 * blocks; i++) dots[i] <<= 8;
            add_plane(rows, blocks, bits, size, table, dots, in->low + group * size, groups * size, from, groups * stride);
        }
#pragma GCC unroll 16
        for (int c = 0; c < 2 * blocks; c++) {
            const uint16_t *scales = (const uint16_t *)(from + (c / 2 * groups * stride + words) * COLUMNS) + c % 2 * LANES;
            vec scale = load_half(scales), minimum = load_half(scales + COLUMNS);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                vec *sum = sums + r * 2 * blocks + c;
                *sum += minimum * in->scaled_sum[group + r * groups];
                *sum += __builtin_convertvector(dots[r * 2 * blocks + c], vec) * (scale * in->scale[group + r * groups]);
            }
        }
    }
    write_outputs((const float *)sums, rows, blocks * COLUMNS, row, block * COLUMNS, epilogue);
}

#define CASE(ROWS_) case ROWS_: compute_tile(ROWS_, 1, bits, size, planes, table, in, groups, weights, row, block, epilogue); break;

/* Computes `count` blocks of outputs; one row takes four blocks at a time. */
INLINE void compute_blocks(const int bits, const int size, const int planes, const uint8_t *table, int rows, const Inputs *in,
                           int64_t groups, const uint32_t *weights, int64_t row, int64_t block, int64_t count, const Epilogue *epilogue) {
    for (; rows == 1 && count >= 4; block += 4, count -= 4)
        compute_tile(1, 4, bits, size, planes, table, in, groups, weights, row, block, epilogue);
    for (; count > 0; block++, count--) switch (rows) {
            CASE(1) CASE(2)
#if GROUPED_TILE_ROWS > 2
            CASE(3) CASE(4) CASE(5) CASE(6)
#endif
        }
}

/* Lets the compiler know that there is one. */
INLINE const uint8_t *existing(const uint8_t *table) {
    if (!table) __builtin_unreachable();
    return table;
}

typedef void Compute(int rows, const Inputs *in, int64_t groups, const GroupedWeights *weights, int64_t row, int64_t block, int64_t count,
                     const Epilogue *epilogue);

#define KIND(NAME, BITS, SIZE, PLANES, TABLE)                                                                                             \
    static void NAME(int rows, const Inputs *in, int64_t groups, const GroupedWeights *weights, int64_t row, int64_t block, int64_t count, \
                     const Epilogue *epilogue) {                                                                                          \
        compute_blocks(BITS, SIZE, PLANES, TABLE, rows, in, groups, weights->data, row, block, count, epilogue);                          \
    }
KIND(compute_4_bits, 4, 32, 1, NULL)
KIND(compute_4_bits_precisely, 4, 32, 2, NULL)
KIND(compute_4_bits_of_16, 4, 16, 1, NULL)
KIND(compute_4_bits_of_16_precisely, 4, 16, 2, NULL)
KIND(compute_table, 4, 32, 1, existing(weights->table))
KIND(compute_table_precisely, 4, 32, 2, existing(weights->table))
KIND(compute_8_bits, 8, 32, 1, NULL)
KIND(compute_8_bits_precisely, 8, 32, 2, NULL)
KIND(compute_8_bits_of_16, 8, 16, 2, NULL)

static Compute *compute_of(const GroupedWeights *weights) {
    int is_precise = weights->planes == 2;
    if (weights->table) return is_precise ? compute_table_precisely : compute_table;
    if (weights->bits == 8) return weights->group == 16 ? compute_8_bits_of_16 : is_precise ? compute_8_bits_precisely : compute_8_bits;
    if (weights->group == 16) return is_precise ? compute_4_bits_of_16_precisely : compute_4_bits_of_16;
    return is_precise ? compute_4_bits_precisely : compute_4_bits;
}

/* Computes the layer on bfloat16 x [rows][inputs], `inputs` a multiple of the group. Returns 0, or 1 if it cannot allocate memory. */
int linear_grouped(const bf16 *x, int64_t rows, int64_t inputs, const GroupedWeights *weights, const Epilogue *epilogue, int threads) {
    int64_t size = weights->group, groups = inputs / size, all_groups = rows * groups;
    int64_t blocks = (epilogue->outputs + COLUMNS - 1) / COLUMNS, blocks_per_job = rows == 1 ? 4 : 1;
    int64_t chunk_rows = CHUNK_INPUTS / inputs > GROUPED_TILE_ROWS ? CHUNK_INPUTS / inputs / GROUPED_TILE_ROWS * GROUPED_TILE_ROWS : GROUPED_TILE_ROWS;
    Compute *compute = compute_of(weights);
    if (!rows) return 0;
    char *buffer = aligned_alloc(64, ROUND_UP(all_groups * (weights->planes * size + 2 * sizeof(float)), 64));
    if (!buffer) return 1;
    float *scales = (float *)(buffer + weights->planes * all_groups * size);
    Inputs in = {(int8_t *)buffer, weights->planes == 2 ? (int8_t *)buffer + all_groups * size : NULL, scales, scales + all_groups};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t group = 0; group < all_groups; group++) round_group(x + group * size, &in, group, size, weights->weight_scale);
        for (int64_t from = 0; from < rows; from += chunk_rows) {
            int64_t chunk_end = rows - from < chunk_rows ? rows : from + chunk_rows,
                    tiles = (chunk_end - from + GROUPED_TILE_ROWS - 1) / GROUPED_TILE_ROWS;
            int64_t tile_rows = (chunk_end - from + tiles - 1) / tiles;
#pragma omp for schedule(dynamic)
            for (int64_t b = 0; b < blocks; b += blocks_per_job)
                for (int64_t r = from; r < chunk_end; r += tile_rows)
                    compute(chunk_end - r < tile_rows ? chunk_end - r : tile_rows, &in, groups, weights, r, b,
                            blocks - b < blocks_per_job ? blocks - b : blocks_per_job, epilogue);
        }
    }
    free(buffer);
    return 0;
}
