/* Vectors of this machine's width: storing bfloat16, reductions, powers of two. Needs GCC's vector extensions; what differs between the
 * processors is in x86.h and arm.h. */
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A tile's rows: 28 sums, 2 weights and 1 input take 31 of 32 registers, 12 sums 15 of AVX2's 16. The rows of a tile of weights in groups:
 * 12 sums, 12 sums of a group and 4 words of levels take 28. */
#if defined __AVX512F__
#define LANES 16
#define TILE_ROWS 14
#define GROUPED_TILE_ROWS 6
#elif defined __AVX2__
#define LANES 8
#define TILE_ROWS 6
#define GROUPED_TILE_ROWS 2
#elif defined __aarch64__
#define LANES 4
#define TILE_ROWS 14
#define GROUPED_TILE_ROWS 6
#else
#error "this processor has neither AVX2 nor 64-bit ARM's NEON"
#endif
#define COLUMNS (2 * LANES) /* outputs of a block of packed weights */
#define LOG2_E 1.44269504f
#define ROUND_UP(X, OF) (((X) + (OF) - 1) / (OF) * (OF))
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t uint_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t ushort_vec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int32_t int_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int8_t char_vec __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t bf16;

#ifdef __aarch64__
#include "arm.h"
#else
#include "x86.h"
#endif

/* The lower bfloat16 of each word, as float32. */
INLINE vec low_half(uint_vec pairs) { return (vec)(pairs << 16); }

/* The upper bfloat16 of each word, as float32. */
INLINE vec high_half(uint_vec pairs) { return (vec)(pairs & 0xffff0000); }

/* Stores float32 as bfloat16, rounded to the nearest, ties to even. */
INLINE void store_bf16(bf16 *target, vec x) {
    uint_vec bits = (uint_vec)x;
    *(ushort_vec *)target = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, ushort_vec);
}

INLINE vec broadcast(float x) { return (vec){} + x; }

/* The sum of all lanes. */
INLINE float sum_lanes(vec x) {
    uint_vec lanes = {0};
    for (int i = 0; i < LANES; i++) lanes[i] = i;
#pragma GCC unroll 4
    for (int distance = LANES / 2; distance; distance /= 2) x += __builtin_shuffle(x, lanes ^ distance);
    return x[0];
}

/* Transposes a square of LANES vectors. */
INLINE void transpose(vec *rows) {
    uint_vec lanes = {0};
    for (int i = 0; i < LANES; i++) lanes[i] = i;
#pragma GCC unroll 4
    for (int distance = LANES / 2; distance; distance /= 2) {
        uint_vec is_odd = (uint_vec)((lanes & distance) != 0);
        uint_vec from_upper = (is_odd & (lanes + (LANES - distance))) | (~is_odd & lanes),
                 from_lower = (is_odd & (lanes + LANES)) | (~is_odd & (lanes + distance));
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & distance)) {
                vec upper = rows[i], lower = rows[i + distance];
                rows[i] = __builtin_shuffle(upper, lower, from_upper);
                rows[i + distance] = __builtin_shuffle(upper, lower, from_lower);
            }
    }
}

/* The largest of all lanes. */
INLINE float max_lane(vec x) {
    uint_vec lanes = {0};
    for (int i = 0; i < LANES; i++) lanes[i] = i;
#pragma GCC unroll 4
    for (int distance = LANES / 2; distance; distance /= 2) x = vec_max(x, __builtin_shuffle(x, lanes ^ distance));
    return x[0];
}

/* 2^y for -127 <= y <= 128, by an exponent and a minimax polynomial: the error is 1e-7, and 0 at y = 0. -127 gives 0, 128 infinity. */
INLINE vec exp2_bounded(vec y) {
    vec shifted = y + 12582912.0f, fraction = y - (shifted - 12582912.0f), series = broadcast(1.32647088e-3f);
    const float coefficients[] = {9.67151147e-3f, 5.55073378e-2f, 0.240222421f, 0.693146978f, 1};
    for (int i = 0; i < 5; i++) series = series * fraction + coefficients[i];
    return series * (vec)(((uint_vec)shifted - 0x4b400000 + 127) << 23);
}

/* 2^y for any y. */
INLINE vec exp2_vec(vec y) { return exp2_bounded(vec_max(vec_min(y, broadcast(128)), broadcast(-127))); }

/* tanh(x), within 1e-7. */
INLINE vec tanh_vec(vec x) { return 1 - 2 / (1 + exp2_vec(x * (2 * LOG2_E))); }

/* x * sigmoid(steepness * x). */
INLINE vec swish(vec x, float steepness) { return x / (1 + exp2_vec(x * (-LOG2_E * steepness))); }
