/* What is computed for each row by itself, between the linear layers: RMSNorm, and the attention of decoding rows. */
#include "cache.h"

#define MAX_HEAD_DIM 256

/* x / sqrt(mean(x^2) + eps) * weight for each row [inputs] (RMSNorm, arXiv 1910.07467). */
void rms_norm(const bf16 *x, int64_t rows, int64_t inputs, const bf16 *weight, float eps, bf16 *out, int threads) {
    int64_t vector_inputs = inputs / LANES * LANES, tail_bytes = (inputs - vector_inputs) * sizeof(bf16);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * inputs > 1 << 17)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *in = x + r * inputs;
        vec squares = {0};
        bf16 last[LANES] = {0}, last_weight[LANES] = {0}, edge[LANES];
        memcpy(last, in + vector_inputs, tail_bytes);
        memcpy(last_weight, weight + vector_inputs, tail_bytes);
        for (int64_t i = 0; i < vector_inputs; i += LANES) squares += load_bf16(in + i) * load_bf16(in + i);
        float scale = 1 / __builtin_sqrtf(sum_lanes(squares + load_bf16(last) * load_bf16(last)) / inputs + eps);
        for (int64_t i = 0; i < vector_inputs; i += LANES)
            store_bf16(out + r * inputs + i, load_bf16(in + i) * scale * load_bf16(weight + i));
        store_bf16(edge, load_bf16(last) * scale * load_bf16(last_weight));
        memcpy(out + r * inputs + vector_inputs, edge, tail_bytes);
    }
}

/* Where the token at `position` of the sequence with these pages lies in the cache, and those after it on the same page. */
INLINE int64_t token_at(const Cache *cache, const int64_t *pages, int64_t kv_head, int64_t position, int64_t width) {
    return pages[position / cache->page] * cache->page_stride + kv_head * cache->head_stride + position % cache->page * width;
}

/* Writes the keys and values of rows of one sequence to its pages. */
void write_cache(const WriteArgs *args, int threads) {
    int64_t dim = args->dim, width = token_elements(dim, args->cache.kind);
#pragma omp parallel for schedule(static) num_threads(threads) if (args->rows > 16)
    for (int64_t r = 0; r < args->rows; r++)
        for (int64_t h = 0; h < args->kv_heads; h++) {
            int64_t at = token_at(&args->cache, args->pages, h, args->start + r, width);
            write_token(args->cache.keys, at, args->cache.kind, args->key, r * args->key_stride + h * dim, dim, args->kind);
            write_token(args->cache.values, at, args->cache.kind, args->value, r * args->value_stride + h * dim, dim, args->kind);
        }
}

/* Of `count` tokens from position `begin` on, the first one after `t` that lies on another page; `count` if there is none. */
INLINE int64_t page_end(const Cache *cache, int64_t begin, int64_t t, int64_t count) {
    int64_t end = t + cache->page - (begin + t) % cache->page;
    return end < count ? end : count;
}

INLINE void prefetch(const void *from, int64_t at, int64_t count, const int kind) {
    int64_t size = element_bytes(kind);
    for (int64_t i = 0; i < count * size; i += 64) __builtin_prefetch((const char *)from + at * size + i, 0, 1);
}

/* Computes `heads` (1 to 4) query heads of a row from head `from` on, which share a key-value head. `scores` [heads][score_stride] is
 * scratch memory; dim <= MAX_HEAD_DIM. Keys and values that come next are fetched meanwhile: the processor does not foresee them beyond
 * the end of a page. */
INLINE void attend_heads(const int64_t dim, const int heads, const int kind, const DecodeArgs *args, int64_t row, int64_t from,
                         float *scores, int64_t score_stride) {
    const Cache *cache = &args->cache;
    const int vectors = dim / LANES;
    const int64_t width = token_elements(dim, kind), *pages = args->pages + args->firsts[row];
    int64_t kv_head = from / (args->heads / args->kv_heads), last = args->positions[row];
    int64_t begin = args->window && last + 1 > args->window ? last + 1 - args->window : 0, count = last + 1 - begin;
    float query[4 * MAX_HEAD_DIM], max_scores[4] = {-3e38f, -3e38f, -3e38f, -3e38f}, sums_of_weights[4];
    for (int c = 0; c < heads * vectors; c++)
        *(vec *)(query + c * LANES) =
            load(args->query, row * args->query_stride + from * dim + c * LANES, args->kind) * (args->scale * LOG2_E);
    for (int64_t t = 0, end; t < count; t = end) {
        int64_t at = token_at(cache, pages, kv_head, begin + t, width) - t * width;
        end = page_end(cache, begin, t, count);
        int64_t next = end < count ? token_at(cache, pages, kv_head, begin + end, width) - t * width : at;
        for (; t < end; t++) {
            vec sums[4] = {0};
            prefetch(cache->keys, next + t * width, width, kind);
            prefetch(cache->values, at + t * width, width, kind);
#pragma GCC unroll 8
            for (int c = 0; c < vectors; c++) {
                vec k = load(cache->keys, at + t * width + c * LANES, kind);
#pragma GCC unroll 4
                for (int h = 0; h < heads; h++) sums[h] += *(const vec *)(query + h * dim + c * LANES) * k;
            }
            float scale = load_scale(cache->keys, at + t * width, dim, kind);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++) {
                float score = scores[h * score_stride + t] = sum_lanes(sums[h]) * scale;
                max_scores[h] = score > max_scores[h] ? score : max_scores[h];
            }
        }
    }
    for (int h = 0; h < heads; h++) {
        float *head_scores = scores + h * score_stride;
        vec sums = {0};
        for (int64_t t = count; t % LANES; t++) head_scores[t] = -3e38f;
        for (int64_t t = 0; t < count; t += LANES) sums += *(vec *)(head_scores + t) = exp2_vec(*(vec *)(head_scores + t) - max_scores[h]);
        sums_of_weights[h] = sum_lanes(sums);
    }
    for (int c = 0; c < vectors; c += 4) {
        vec mixed[16] = {0};
        for (int64_t t = 0, end; t < count; t = end) {
            int64_t at = token_at(cache, pages, kv_head, begin + t, width) - t * width;
            end = page_end(cache, begin, t, count);
            for (; t < end; t++) {
                float scale = load_scale(cache->values, at + t * width, dim, kind);
#pragma GCC unroll 4
                for (int part = 0; part < 4; part++)
                    if (c + part < vectors) {
                        vec v = load(cache->values, at + t * width + (c + part) * LANES, kind);
#pragma GCC unroll 4
                        for (int h = 0; h < heads; h++) mixed[4 * h + part] += scores[h * score_stride + t] * scale * v;
                    }
            }
        }
        for (int h = 0; h < heads; h++)
            for (int part = 0; part < 4 && c + part < vectors; part++)
                store(args->out, (row * args->heads + from + h) * dim + (c + part) * LANES, mixed[4 * h + part] / sums_of_weights[h], args->kind);
    }
}

#define ATTEND_HEADS(DIM, KIND) \
    switch (remaining) { \
        case 1: attend_heads(DIM, 1, KIND, args, row, from, own_scores, score_stride); break; \
        case 2: attend_heads(DIM, 2, KIND, args, row, from, own_scores, score_stride); break; \
        case 3: attend_heads(DIM, 3, KIND, args, row, from, own_scores, score_stride); break; \
        default: attend_heads(DIM, 4, KIND, args, row, from, own_scores, score_stride); \
    }

/* Computes the attention of all rows, after writing the cache. Returns 0, or 1 if it cannot allocate memory. */
int attend_decode(const DecodeArgs *args, int threads) {
    int64_t score_stride = 0;
    for (int64_t r = 0; r < args->rows; r++) score_stride = args->positions[r] >= score_stride ? args->positions[r] + 1 : score_stride;
    score_stride = (score_stride + LANES - 1) / LANES * LANES;
    float *scores = aligned_alloc(64, ROUND_UP(threads * 4 * score_stride * sizeof(float), 64));
    if (!scores) return 1;
    int64_t group = args->heads / args->kv_heads, chunks = (group + 3) / 4;
    const Cache *cache = &args->cache;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t job = 0; job < args->rows * args->kv_heads; job++) {
            int64_t row = job / args->kv_heads, kv_head = job % args->kv_heads, dim = args->dim;
            int64_t at = token_at(cache, args->pages + args->firsts[row], kv_head, args->positions[row], token_elements(dim, cache->kind));
            write_token(cache->keys, at, cache->kind, args->key, row * args->key_stride + kv_head * dim, dim, args->kind);
            write_token(cache->values, at, cache->kind, args->value, row * args->value_stride + kv_head * dim, dim, args->kind);
        }
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < args->rows * args->kv_heads * chunks; job++) {
            float *own_scores = scores + omp_get_thread_num() * 4 * score_stride;
            int64_t row = job / (args->kv_heads * chunks), chunk = job % chunks, kv_head = job / chunks % args->kv_heads;
            int64_t from = kv_head * group + 4 * chunk, remaining = group - 4 * chunk;
            if (cache->kind == IN_FLOAT32)
                ATTEND_HEADS(args->dim, IN_FLOAT32)
            else if (cache->kind == IN_INT8 && args->dim == 64)
                ATTEND_HEADS(64, IN_INT8)
            else if (cache->kind == IN_INT8)
                ATTEND_HEADS(args->dim, IN_INT8)
            else if (args->dim == 64)
                ATTEND_HEADS(64, IN_BF16)
            else if (args->dim == 128)
                ATTEND_HEADS(128, IN_BF16)
            else
                ATTEND_HEADS(args->dim, IN_BF16)
        }
    }
    free(scores);
    return 0;
}
