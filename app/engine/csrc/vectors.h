/* Vectors of the machine at hand, and bfloat16 in and out of them. Needs GCC's vector extensions. */
#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define ROWS 14 /* 28 sums, 2 weights, 1 input: 31 of 32 registers */
#else
#define LANES 8
#define ROWS 6 /* 12 sums, 2 weights, 1 input: 15 of 16 registers */
#endif
#define COLUMNS (2 * LANES) /* of a block */
#define LOG2_E 1.44269504f
#define UP(X, OF) (((X) + (OF) - 1) / (OF) * (OF))
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint16_t bf16;

INLINE vec widen(const bf16 *at) { /* GCC 12 makes four instructions of the conversion of a vector */
#if LANES == 16
    return (vec)((words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at)) << 16);
#else
    return (vec)((words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at)) << 16);
#endif
}

INLINE vec first(words pairs) { return (vec)(pairs << 16); }

INLINE vec second(words pairs) { return (vec)(pairs & 0xffff0000); }

INLINE void narrow(bf16 *at, vec x) { /* to the nearest, ties to even */
    words bits = (words)x;
    *(halves *)at = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, halves);
}

INLINE vec same(float x) { return (vec){} + x; }

INLINE float total(vec x) {
    words lane = {0};
    for (int i = 0; i < LANES; i++) lane[i] = i;
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) x += __builtin_shuffle(x, lane ^ half);
    return x[0];
}

/* Rows become columns. */
INLINE void turn(vec *rows) {
    words lane = {0};
    for (int i = 0; i < LANES; i++) lane[i] = i;
#pragma GCC unroll 4
    for (int s = LANES / 2; s; s /= 2) {
        words odd = (words)((lane & s) != 0);
        words above = (odd & (lane + (LANES - s))) | (~odd & lane), below = (odd & (lane + LANES)) | (~odd & (lane + s));
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & s)) {
                vec upper = rows[i], lower = rows[i + s];
                rows[i] = __builtin_shuffle(upper, lower, above);
                rows[i + s] = __builtin_shuffle(upper, lower, below);
            }
    }
}

#if LANES == 16
INLINE vec least(vec x, vec y) { return (vec)_mm512_min_ps((__m512)x, (__m512)y); }

INLINE vec greatest(vec x, vec y) { return (vec)_mm512_max_ps((__m512)x, (__m512)y); }
#else
INLINE vec least(vec x, vec y) { return (vec)_mm256_min_ps((__m256)x, (__m256)y); }

INLINE vec greatest(vec x, vec y) { return (vec)_mm256_max_ps((__m256)x, (__m256)y); }
#endif

INLINE float peak(vec x) {
    words lane = {0};
    for (int i = 0; i < LANES; i++) lane[i] = i;
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) x = greatest(x, __builtin_shuffle(x, lane ^ half));
    return x[0];
}

/* 2^y for y from -127, which is taken as 0, to 128, which is infinite: a power and a minimax polynomial that is off by 1e-7 and exact at 0. */
INLINE vec power(vec y) {
    vec shifted = y + 12582912.0f, part = y - (shifted - 12582912.0f), series = same(1.32647088e-3f);
    const float terms[] = {9.67151147e-3f, 5.55073378e-2f, 0.240222421f, 0.693146978f, 1};
    for (int i = 0; i < 5; i++) series = series * part + terms[i];
    return series * (vec)(((words)shifted - 0x4b400000 + 127) << 23);
}

INLINE vec two_to(vec y) { return power(greatest(least(y, same(128)), same(-127))); }

INLINE vec swish(vec x) { return x / (1 + two_to(x * -LOG2_E)); }
