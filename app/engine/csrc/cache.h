/* The elements of rows and of the cache: loading them, and writing a token to the cache. */
#include "kernels.h"

#define MAX_HEAD_DIM 512   /* as in rows.py */
#define MIN_LARGEST 1e-30f /* a token whose elements are all smaller is kept as 0 */

INLINE int64_t element_bytes(const int kind) { return kind == IN_FLOAT32 ? sizeof(float) : kind == IN_BF16 ? sizeof(bf16) : 1; }

/* Elements of a token of a head in the cache, the scale of bytes included. */
INLINE int64_t token_elements(int64_t dim, const int kind) { return kind == IN_INT8 ? dim + (int64_t)sizeof(float) : dim; }

/* Loads LANES elements from element `at` on; bytes as they are. */
INLINE vec load(const void *from, int64_t at, const int kind) {
    if (kind == IN_INT8) return load_int8((const int8_t *)from + at);
    return kind == IN_FLOAT32 ? *(const vec *)((const float *)from + at) : load_bf16((const bf16 *)from + at);
}

/* Stores LANES elements of a row from element `at` on. */
INLINE void store(void *to, int64_t at, vec x, const int kind) {
    if (kind == IN_FLOAT32)
        *(vec *)((float *)to + at) = x;
    else
        store_bf16((bf16 *)to + at, x);
}

/* Scores are kept as powers of two: LOG2_E times what they are. */
INLINE vec cap_scores(vec x, float cap) { return cap * LOG2_E * tanh_vec(x / (cap * LOG2_E)); }

/* By what the elements of the token at element `at` are to be multiplied. */
INLINE float load_scale(const void *from, int64_t at, int64_t dim, const int kind) {
    float scale = 1;
    if (kind == IN_INT8) memcpy(&scale, (const int8_t *)from + at + dim, sizeof(float));
    return scale;
}

/* Rounds a token of a head to bytes. NaN and infinity make its scale NaN, so that they stay visible. */
INLINE void write_bytes(int8_t *to, const void *from, int64_t at, int64_t dim, const int kind) {
    vec largest = {0}, zero = {0};
    for (int64_t c = 0; c < dim; c += LANES) {
        vec x = load(from, at + c, kind);
        largest = vec_max(largest, vec_max(x, -x)), zero += x * 0;
    }
    float most = max_lane(largest), inverse = most > MIN_LARGEST ? 127 / most : 0, scale = (inverse ? most / 127 : 0) + sum_lanes(zero);
    for (int64_t c = 0; c < dim; c += LANES) store_int8(to + c, load(from, at + c, kind) * inverse);
    memcpy(to + dim, &scale, sizeof(float));
}

/* Writes the token of a head that is at element `from_at` of a row to element `at` of the cache. */
INLINE void write_token(void *cache, int64_t at, const int cache_kind, const void *from, int64_t from_at, int64_t dim, const int kind) {
    if (cache_kind == IN_INT8 && kind == IN_FLOAT32)
        write_bytes((int8_t *)cache + at, from, from_at, dim, IN_FLOAT32);
    else if (cache_kind == IN_INT8)
        write_bytes((int8_t *)cache + at, from, from_at, dim, IN_BF16);
    else
        memcpy((char *)cache + at * element_bytes(kind), (const char *)from + from_at * element_bytes(kind), dim * element_bytes(kind));
}
