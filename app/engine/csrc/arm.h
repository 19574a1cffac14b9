/* What ARM does by its own instructions: NEON of 64-bit ARM and, where the processor has them, dot products of bytes. Included by vectors.h. */
#include <arm_neon.h>

/* Loads LANES bfloat16 as float32. */
INLINE vec load_bf16(const bf16 *source) { return (vec)(vmovl_u16(vld1_u16(source)) << 16); }

/* Loads LANES signed bytes as float32. */
INLINE vec load_int8(const int8_t *source) {
    char_vec bytes = *(const char_vec *)source;
    return __builtin_convertvector(bytes, vec);
}

/* Stores float32 between -127 and 127 as signed bytes, rounded to the nearest, ties to even. */
INLINE void store_int8(int8_t *target, vec x) {
    *(char_vec *)target = __builtin_convertvector((int_vec)vcvtnq_s32_f32((float32x4_t)x), char_vec);
}

/* Loads LANES float16 as float32. */
INLINE vec load_half(const uint16_t *source) { return (vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(source))); }

/* The smaller and the larger of each lane; `y` where one of them is NaN. */
INLINE vec vec_min(vec x, vec y) { return (vec)vbslq_f32((uint32x4_t)(x < y), (float32x4_t)x, (float32x4_t)y); }

INLINE vec vec_max(vec x, vec y) { return (vec)vbslq_f32((uint32x4_t)(x > y), (float32x4_t)x, (float32x4_t)y); }

/* table[level] of each byte, for levels below 16. */
INLINE uint_vec look_up_bytes(const uint8_t *table, uint_vec levels) { return (uint_vec)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)levels); }

/* Adds to each lane the dot product of its four levels, which are below 128, and four signed 8-bit inputs. */
INLINE int_vec add_dot_products(int_vec sums, uint_vec levels, int32_t four_inputs) {
    int8x16_t left = (int8x16_t)levels, right = (int8x16_t)vdupq_n_s32(four_inputs);
#ifdef __ARM_FEATURE_DOTPROD
    return (int_vec)vdotq_s32((int32x4_t)sums, left, right);
#else
    int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(left), vget_low_s8(right))), high = vpaddlq_s16(vmull_high_s8(left, right));
    return sums + (int_vec)vpaddq_s32(low, high);
#endif
}

/* The same for levels up to 255. Without products of unsigned and signed bytes, halves of a level go one by one. */
INLINE int_vec add_byte_products(int_vec sums, uint_vec levels, int32_t four_inputs) {
#ifdef __ARM_FEATURE_MATMUL_INT8
    return (int_vec)vusdotq_s32((int32x4_t)sums, (uint8x16_t)levels, (int8x16_t)vdupq_n_s32(four_inputs));
#else
    return add_dot_products(sums, levels & 0x0f0f0f0f, four_inputs) +
           (add_dot_products((int_vec){}, levels >> 4 & 0x0f0f0f0f, four_inputs) << 4);
#endif
}
