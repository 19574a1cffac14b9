/* What x86-64 does by its own instructions: AVX-512, or AVX2 with FMA and F16C. Included by vectors.h. */
#include <immintrin.h>

/* Loads LANES bfloat16 as float32. By intrinsics: GCC 12 would need four instructions to convert a vector. */
INLINE vec load_bf16(const bf16 *source) {
#if LANES == 16
    return (vec)((uint_vec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)source)) << 16);
#else
    return (vec)((uint_vec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)source)) << 16);
#endif
}

/* Loads LANES signed bytes as float32. */
INLINE vec load_int8(const int8_t *source) {
#if LANES == 16
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)source)));
#else
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)source)));
#endif
}

/* Stores float32 between -127 and 127 as signed bytes, rounded to the nearest, ties to even. */
INLINE void store_int8(int8_t *target, vec x) {
#if LANES == 16
    *(char_vec *)target = __builtin_convertvector((int_vec)_mm512_cvtps_epi32((__m512)x), char_vec);
#else
    *(char_vec *)target = __builtin_convertvector((int_vec)_mm256_cvtps_epi32((__m256)x), char_vec);
#endif
}

/* Loads LANES float16 as float32. */
INLINE vec load_half(const uint16_t *source) {
#if LANES == 16
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)source));
#else
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)source));
#endif
}

/* The smaller and the larger of each lane; `y` where one of them is NaN. */
#if LANES == 16
INLINE vec vec_min(vec x, vec y) { return (vec)_mm512_min_ps((__m512)x, (__m512)y); }

INLINE vec vec_max(vec x, vec y) { return (vec)_mm512_max_ps((__m512)x, (__m512)y); }
#else
INLINE vec vec_min(vec x, vec y) { return (vec)_mm256_min_ps((__m256)x, (__m256)y); }

INLINE vec vec_max(vec x, vec y) { return (vec)_mm256_max_ps((__m256)x, (__m256)y); }
#endif

#if (defined __AVX512VNNI__ && LANES == 16) || (defined __AVXVNNI__ && LANES == 8)
#define HAS_VNNI 1
#else
#define HAS_VNNI 0
#endif

/* table[level] of each byte, for levels below 16. */
INLINE uint_vec look_up_bytes(const uint8_t *table, uint_vec levels) {
    __m128i entries = _mm_loadu_si128((const __m128i *)table);
#if LANES == 16
    return (uint_vec)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), (__m512i)levels);
#else
    return (uint_vec)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), (__m256i)levels);
#endif
}

/* Adds to each lane the dot product of its four levels and four signed 8-bit inputs. Without VNNI, levels must be below 128. */
INLINE int_vec add_dot_products(int_vec sums, uint_vec levels, int32_t four_inputs) {
#if HAS_VNNI && LANES == 16
    return (int_vec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)levels, _mm512_set1_epi32(four_inputs));
#elif HAS_VNNI
    return (int_vec)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)levels, _mm256_set1_epi32(four_inputs));
#elif LANES == 16
    __m512i pairs = _mm512_maddubs_epi16((__m512i)levels, _mm512_set1_epi32(four_inputs));
    return sums + (int_vec)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#else
    __m256i pairs = _mm256_maddubs_epi16((__m256i)levels, _mm256_set1_epi32(four_inputs));
    return sums + (int_vec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

/* The same for levels up to 255. Without VNNI the sum of two products would not fit 16 bits, so halves of a level go one by one. */
INLINE int_vec add_byte_products(int_vec sums, uint_vec levels, int32_t four_inputs) {
    if (HAS_VNNI) return add_dot_products(sums, levels, four_inputs);
    return add_dot_products(sums, levels & 0x0f0f0f0f, four_inputs) +
           (add_dot_products((int_vec){}, levels >> 4 & 0x0f0f0f0f, four_inputs) << 4);
}
