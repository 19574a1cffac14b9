/* Rounds weights to levels in groups of 32, by the arithmetic of rounding.py, which says what it is for. A group stays in registers. NaN or
 * infinity in one makes its scale NaN, so that they stay visible. */
#include "cache.h"

#define GROUP 32
#define PARTS (GROUP / LANES)
#define TINY 1e-8f      /* the smallest scale */
#define FIT_ROUNDS 2
#define MAX_LEVEL 15
#define TO_WHOLE 12582912.0f /* added and subtracted, it rounds to whole numbers, ties to even */

typedef struct {
    const void *weight; /* [rows][inputs], of `kind` */
    uint8_t *levels;    /* [rows][inputs] */
    float *scale, *minimum; /* [rows][groups] */
    int64_t rows, inputs;
    int bits, kind;
} RoundingArgs;

INLINE vec whole(vec x) { return (x + TO_WHOLE) - TO_WHOLE; }

/* Rounds a scale to what a float16 holds: 10 bits of fraction, or multiples of 2^-24. */
INLINE float half_of(float x) {
    uint32_t bits;
    if (x < 6.103515625e-5f) return (x + 0.75f) - 0.75f;
    memcpy(&bits, &x, sizeof(bits));
    bits = (bits + 0xfff + ((bits >> 13) & 1)) & ~0x1fffu;
    memcpy(&x, &bits, sizeof(bits));
    return x;
}

INLINE float at_least(float x, float least) { return x > least ? x : least; }

INLINE void store_levels(uint8_t *to, const vec *levels) {
    for (int i = 0; i < PARTS; i++)
        *(char_vec *)(to + i * LANES) = __builtin_convertvector(__builtin_convertvector(levels[i], int_vec), char_vec);
}

INLINE void choose_levels(const vec *x, float scale, float minimum, vec *levels) {
    for (int i = 0; i < PARTS; i++) levels[i] = whole(vec_max(vec_min((x[i] - minimum) / scale, broadcast(MAX_LEVEL)), broadcast(0)));
}

INLINE void round_to_4_bits(const vec *x, float not_finite, uint8_t *levels_out, float *scale_out, float *minimum_out) {
    vec lowest = x[0], highest = x[0], all = x[0], levels[PARTS];
    for (int i = 1; i < PARTS; i++) lowest = vec_min(lowest, x[i]), highest = vec_max(highest, x[i]), all += x[i];
    float minimum = -max_lane(-lowest), total = sum_lanes(all), scale = at_least((max_lane(highest) - minimum) / MAX_LEVEL, TINY);
    choose_levels(x, scale, minimum, levels);
    for (int round = 0; round < FIT_ROUNDS; round++) {
        vec level_sum = {0}, square_sum = {0}, product_sum = {0};
        for (int i = 0; i < PARTS; i++) level_sum += levels[i], square_sum += levels[i] * levels[i], product_sum += levels[i] * x[i];
        float sums = sum_lanes(level_sum), spread = GROUP * sum_lanes(square_sum) - sums * sums;
        if (spread > 0) scale = (GROUP * sum_lanes(product_sum) - sums * total) / at_least(spread, 1);
        scale = at_least(half_of(at_least(scale, TINY)), TINY);
        minimum = (total - scale * sums) / GROUP;
        choose_levels(x, scale, minimum, levels);
    }
    store_levels(levels_out, levels);
    *scale_out = scale + not_finite, *minimum_out = minimum;
}

INLINE void round_to_8_bits(const vec *x, float not_finite, uint8_t *levels_out, float *scale_out, float *minimum_out) {
    vec largest = {0}, levels[PARTS];
    for (int i = 0; i < PARTS; i++) largest = vec_max(largest, vec_max(x[i], -x[i]));
    float scale = at_least(max_lane(largest) / 127, TINY);
    for (int i = 0; i < PARTS; i++) levels[i] = whole(vec_max(vec_min(x[i] / scale, broadcast(127)), broadcast(-127))) + 128;
    store_levels(levels_out, levels);
    *scale_out = scale + not_finite, *minimum_out = -128 * scale;
}

/* `inputs` are a multiple of 32. */
void round_weights(const RoundingArgs *args, int threads) {
    int64_t groups = args->inputs / GROUP;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t group = 0; group < args->rows * groups; group++) {
        vec x[PARTS], zeros = {0};
        for (int i = 0; i < PARTS; i++) {
            x[i] = load(args->weight, group * GROUP + i * LANES, args->kind);
            zeros += x[i] * 0;
        }
        if (args->bits == 4)
            round_to_4_bits(x, sum_lanes(zeros), args->levels + group * GROUP, args->scale + group, args->minimum + group);
        else
            round_to_8_bits(x, sum_lanes(zeros), args->levels + group * GROUP, args->scale + group, args->minimum + group);
    }
}
