/* What is done to each row by itself between the products: the norm, and the attention of a decoding row. */
#include "vectors.h"

#define MOST_DIM 256

/* x / sqrt(mean(x^2) + eps) * weight of each row [inputs] (RMSNorm, arXiv 1910.07467). */
void norm(const bf16 *x, int64_t rows, int64_t inputs, const bf16 *weight, float eps, bf16 *out, int threads) {
    int64_t whole = inputs / LANES * LANES, left = (inputs - whole) * sizeof(bf16);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * inputs > 1 << 17)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *in = x + r * inputs;
        vec squares = {0};
        bf16 last[LANES] = {0}, beside[LANES] = {0}, edge[LANES];
        memcpy(last, in + whole, left);
        memcpy(beside, weight + whole, left);
        for (int64_t i = 0; i < whole; i += LANES) squares += widen(in + i) * widen(in + i);
        float scale = 1 / __builtin_sqrtf(total(squares + widen(last) * widen(last)) / inputs + eps);
        for (int64_t i = 0; i < whole; i += LANES) narrow(out + r * inputs + i, widen(in + i) * scale * widen(weight + i));
        narrow(edge, widen(last) * scale * widen(beside));
        memcpy(out + r * inputs + whole, edge, left);
    }
}

/* A step of decoding rows in a layer: each writes its key and value into its slot and attends to what the slot holds up to its position.
 * Strides count elements. `window`: tokens that are seen, 0 for all. */
typedef struct {
    const bf16 *query, *key, *value; /* [rows][heads or kv_heads][dim], rows so far apart: */
    int64_t query_row, key_row, value_row;
    bf16 *keys, *values; /* [slots][kv_heads][context][dim] */
    int64_t slot, head;
    const int64_t *slots, *positions;
    int64_t rows, heads, kv_heads, dim, window;
    float scale;
    bf16 *out; /* [rows][heads][dim] */
} Step;

/* `heads` query heads from `from` on, which share a head of keys; `scores` [heads][room], dim <= MOST_DIM. */
INLINE void attend(const int64_t dim, const int heads, const Step *s, int64_t row, int64_t from, float *scores, int64_t room) {
    const int parts = dim / LANES;
    int64_t kv = from / (s->heads / s->kv_heads), last = s->positions[row], cache = s->slots[row] * s->slot + kv * s->head;
    int64_t begin = s->window && last + 1 > s->window ? last + 1 - s->window : 0, count = last + 1 - begin;
    const bf16 *keys = s->keys + cache + begin * dim, *values = s->values + cache + begin * dim;
    float query[4 * MOST_DIM], most[4] = {-3e38f, -3e38f, -3e38f, -3e38f}, whole[4];
    for (int c = 0; c < heads * parts; c++)
        *(vec *)(query + c * LANES) = widen(s->query + row * s->query_row + from * dim + c * LANES) * (s->scale * LOG2_E);
    for (int64_t t = 0; t < count; t++) {
        vec sums[4] = {0};
        for (int64_t c = 0; c < dim; c += 32) __builtin_prefetch(values + t * dim + c);
#pragma GCC unroll 8
        for (int c = 0; c < parts; c++) {
            vec k = widen(keys + t * dim + c * LANES);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++) sums[h] += *(const vec *)(query + h * dim + c * LANES) * k;
        }
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) {
            float score = scores[h * room + t] = total(sums[h]);
            most[h] = score > most[h] ? score : most[h];
        }
    }
    for (int h = 0; h < heads; h++) {
        float *mine = scores + h * room;
        vec sums = {0};
        for (int64_t t = count; t % LANES; t++) mine[t] = -3e38f;
        for (int64_t t = 0; t < count; t += LANES) sums += *(vec *)(mine + t) = two_to(*(vec *)(mine + t) - most[h]);
        whole[h] = total(sums);
    }
    for (int c = 0; c < parts; c += 4) {
        vec mixed[16] = {0};
        for (int64_t t = 0; t < count; t++)
#pragma GCC unroll 4
            for (int part = 0; part < 4; part++)
                if (c + part < parts) {
                    vec v = widen(values + t * dim + (c + part) * LANES);
#pragma GCC unroll 4
                    for (int h = 0; h < heads; h++) mixed[4 * h + part] += scores[h * room + t] * v;
                }
        for (int h = 0; h < heads; h++)
            for (int part = 0; part < 4 && c + part < parts; part++)
                narrow(s->out + (row * s->heads + from + h) * dim + (c + part) * LANES, mixed[4 * h + part] / whole[h]);
    }
}

#define HEADS(DIM) \
    switch (left) { \
        case 1: attend(DIM, 1, s, row, from, own, room); break; \
        case 2: attend(DIM, 2, s, row, from, own, room); break; \
        case 3: attend(DIM, 3, s, row, from, own, room); break; \
        default: attend(DIM, 4, s, row, from, own, room); \
    }

/* Returns 0, or 1 without memory. */
int step(const Step *s, int threads) {
    int64_t room = 0;
    for (int64_t r = 0; r < s->rows; r++) room = s->positions[r] >= room ? s->positions[r] + 1 : room;
    room = (room + LANES - 1) / LANES * LANES;
    float *scores = aligned_alloc(64, UP(threads * 4 * room * sizeof(float), 64));
    if (!scores) return 1;
    int64_t group = s->heads / s->kv_heads, chunks = (group + 3) / 4;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t job = 0; job < s->rows * s->kv_heads; job++) {
            int64_t row = job / s->kv_heads, kv = job % s->kv_heads;
            int64_t at = s->slots[row] * s->slot + kv * s->head + s->positions[row] * s->dim;
            memcpy(s->keys + at, s->key + row * s->key_row + kv * s->dim, s->dim * sizeof(bf16));
            memcpy(s->values + at, s->value + row * s->value_row + kv * s->dim, s->dim * sizeof(bf16));
        }
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < s->rows * s->kv_heads * chunks; job++) {
            float *own = scores + omp_get_thread_num() * 4 * room;
            int64_t row = job / (s->kv_heads * chunks), chunk = job % chunks, kv = job / chunks % s->kv_heads;
            int64_t from = kv * group + 4 * chunk, left = group - 4 * chunk;
            if (s->dim == 64)
                HEADS(64)
            else if (s->dim == 128)
                HEADS(128)
            else
                HEADS(s->dim)
        }
    }
    free(scores);
    return 0;
}
