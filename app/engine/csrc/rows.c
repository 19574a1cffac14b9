/* What is computed for each row by itself, between the linear layers: RMSNorm, and the attention of decoding rows. */
#include "cache.h"

#define PART_TOKENS 512 /* of a sequence, which threads read at the same time; where a part begins depends on nothing beside its row */

/* x / sqrt(mean(x^2) + eps) * (shift + weight) for each row [inputs] (RMSNorm, arXiv 1910.07467). */
void rms_norm(const bf16 *x, int64_t rows, int64_t inputs, const bf16 *weight, float eps, float shift, bf16 *out, int threads) {
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
            store_bf16(out + r * inputs + i, load_bf16(in + i) * scale * (shift + load_bf16(weight + i)));
        store_bf16(edge, load_bf16(last) * scale * (shift + load_bf16(last_weight)));
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

/* What a part of a sequence gives to a query head: the sum of its values by their weights [dim], that of the weights, and its largest score. */
#define PART_FLOATS(DIM) ((DIM) + 2)

/* Attends `heads` (1 to 4) query heads of a row from head `from` on, which share a key-value head, to `count` tokens (at most PART_TOKENS)
 * from position `begin` on; dim <= MAX_HEAD_DIM. Keys and values that come next are fetched meanwhile: the processor does not foresee them
 * beyond the end of a page. */
INLINE void attend_heads(const int64_t dim, const int heads, const int kind, const DecodeArgs *args, int64_t row, int64_t from,
                         int64_t begin, int64_t count, float *part) {
    const Cache *cache = &args->cache;
    const int vectors = dim / LANES;
    const int64_t width = token_elements(dim, kind), *pages = args->pages + args->firsts[row];
    int64_t kv_head = from / (args->heads / args->kv_heads);
    float query[4 * MAX_HEAD_DIM], scores[4][PART_TOKENS], max_scores[4] = {-3e38f, -3e38f, -3e38f, -3e38f};
    for (int c = 0; c < heads * vectors; c++)
        *(vec *)(query + c * LANES) =
            load(args->query, row * args->query_stride + from * dim + c * LANES, args->kind) * (args->scores.scale * LOG2_E);
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
                float score = scores[h][t] = sum_lanes(sums[h]) * scale;
                max_scores[h] = score > max_scores[h] ? score : max_scores[h];
            }
        }
    }
    for (int h = 0; h < heads; h++) {
        float *head_scores = scores[h], cap = args->scores.cap;
        vec sums = {0};
        for (int64_t t = 0; cap && t < count; t += LANES) *(vec *)(head_scores + t) = cap_scores(*(vec *)(head_scores + t), cap);
        if (cap) max_scores[h] = cap_scores(broadcast(max_scores[h]), cap)[0];
        for (int64_t t = count; t % LANES; t++) head_scores[t] = -3e38f;
        for (int64_t t = 0; t < count; t += LANES) sums += *(vec *)(head_scores + t) = exp2_vec(*(vec *)(head_scores + t) - max_scores[h]);
        part[h * PART_FLOATS(dim) + dim] = sum_lanes(sums), part[h * PART_FLOATS(dim) + dim + 1] = max_scores[h];
    }
    for (int c = 0; c < vectors; c += 4) {
        vec mixed[16] = {0};
        for (int64_t t = 0, end; t < count; t = end) {
            int64_t at = token_at(cache, pages, kv_head, begin + t, width) - t * width;
            end = page_end(cache, begin, t, count);
            for (; t < end; t++) {
                float scale = load_scale(cache->values, at + t * width, dim, kind);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    if (c + i < vectors) {
                        vec v = load(cache->values, at + t * width + (c + i) * LANES, kind);
#pragma GCC unroll 4
                        for (int h = 0; h < heads; h++) mixed[4 * h + i] += scores[h][t] * scale * v;
                    }
            }
        }
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < 4 && c + i < vectors; i++) *(vec *)(part + h * PART_FLOATS(dim) + (c + i) * LANES) = mixed[4 * h + i];
    }
}

/* Writes the attention of `heads` query heads (4 at most) of a row from head `from` on: of `count` parts of its sequence, `stride` floats apart. */
static void join_parts(const DecodeArgs *args, int64_t row, int64_t from, int64_t heads, const float *parts, int64_t count, int64_t stride) {
    int64_t dim = args->dim;
    for (int64_t h = 0; h < heads && h < 4; h++, parts += PART_FLOATS(dim)) {
        float sink = args->scores.sinks ? args->scores.sinks[from + h] * LOG2_E : -3e38f, largest = sink;
        for (int64_t p = 0; p < count; p++) largest = parts[p * stride + dim + 1] > largest ? parts[p * stride + dim + 1] : largest;
        float sum_of_weights = args->scores.sinks ? exp2_vec(broadcast(sink - largest))[0] : 0;
        vec mixed[MAX_HEAD_DIM / LANES];
        for (int64_t c = 0; c < dim / LANES; c++) mixed[c] = (vec){0};
        for (int64_t p = 0; p < count; p++) {
            const float *part = parts + p * stride;
            float weight = exp2_vec(broadcast(part[dim + 1] - largest))[0];
            sum_of_weights += weight * part[dim];
            for (int64_t c = 0; c < dim / LANES; c++) mixed[c] += weight * *(const vec *)(part + c * LANES);
        }
        for (int64_t c = 0; c < dim / LANES; c++)
            store(args->out, (row * args->heads + from + h) * dim + c * LANES, mixed[c] / sum_of_weights, args->kind);
    }
}

#define ATTEND_HEADS(DIM, KIND) \
    switch (heads) { \
        case 1: attend_heads(DIM, 1, KIND, args, row, from, begin, count, part); break; \
        case 2: attend_heads(DIM, 2, KIND, args, row, from, begin, count, part); break; \
        case 3: attend_heads(DIM, 3, KIND, args, row, from, begin, count, part); break; \
        default: attend_heads(DIM, 4, KIND, args, row, from, begin, count, part); \
    }

static void attend_part(const DecodeArgs *args, int64_t row, int64_t from, int64_t heads, int64_t begin, int64_t count, float *part) {
    const int kind = args->cache.kind;
    if (kind == IN_FLOAT32)
        ATTEND_HEADS(args->dim, IN_FLOAT32)
    else if (kind == IN_INT8 && args->dim == 64)
        ATTEND_HEADS(64, IN_INT8)
    else if (kind == IN_INT8)
        ATTEND_HEADS(args->dim, IN_INT8)
    else if (args->dim == 64)
        ATTEND_HEADS(64, IN_BF16)
    else if (args->dim == 128)
        ATTEND_HEADS(128, IN_BF16)
    else
        ATTEND_HEADS(args->dim, IN_BF16)
}

/* The first position that a row sees. */
INLINE int64_t first_seen(const DecodeArgs *args, int64_t row) {
    int64_t end = args->positions[row] + 1;
    return args->scores.window && end > args->scores.window ? end - args->scores.window : 0;
}

/* The number of parts of its sequence from there on. */
INLINE int64_t parts_of(const DecodeArgs *args, int64_t row) {
    return (args->positions[row] + PART_TOKENS - first_seen(args, row)) / PART_TOKENS;
}

/* The row to which a part belongs, if those of row r begin at firsts[r]; without `firsts` each row has one. */
INLINE int64_t row_of(const int64_t *firsts, int64_t rows, int64_t part) {
    int64_t low = 0, high = rows;
    if (!firsts) return part;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        firsts[middle] <= part ? (low = middle) : (high = middle);
    }
    return low;
}

/* Computes the attention of all rows, after writing the cache. Returns 0, or 1 if it cannot allocate memory. */
int attend_decode(const DecodeArgs *args, int threads) {
    const Cache *cache = &args->cache;
    int64_t dim = args->dim, group = args->heads / args->kv_heads, chunks = (group + 3) / 4; /* of heads that share a key-value head */
    int64_t row_jobs = args->kv_heads * chunks, all = 0, floats = 4 * PART_FLOATS(dim), *firsts = NULL;
    float *parts = NULL;
    for (int64_t r = 0; r < args->rows; r++) all += parts_of(args, r);
    if (all > args->rows) {
        firsts = malloc((args->rows + 1) * sizeof(int64_t)), parts = malloc(all * row_jobs * floats * sizeof(float));
        if (!firsts || !parts) return free(firsts), free(parts), 1;
        firsts[0] = 0;
        for (int64_t r = 0; r < args->rows; r++) firsts[r + 1] = firsts[r] + parts_of(args, r);
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t job = 0; job < args->rows * args->kv_heads; job++) {
            int64_t row = job / args->kv_heads, kv_head = job % args->kv_heads;
            int64_t at = token_at(cache, args->pages + args->firsts[row], kv_head, args->positions[row], token_elements(dim, cache->kind));
            write_token(cache->keys, at, cache->kind, args->key, row * args->key_stride + kv_head * dim, dim, args->kind);
            write_token(cache->values, at, cache->kind, args->value, row * args->value_stride + kv_head * dim, dim, args->kind);
        }
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < all * row_jobs; job++) {
            int64_t row = row_of(firsts, args->rows, job / row_jobs), number = firsts ? job / row_jobs - firsts[row] : 0;
            int64_t first_head = job / chunks % args->kv_heads * group, chunk = job % chunks, heads = group - 4 * chunk;
            int64_t begin = first_seen(args, row) + number * PART_TOKENS, count = args->positions[row] + 1 - begin;
            float own[4 * PART_FLOATS(MAX_HEAD_DIM)], *part = parts ? parts + job * floats : own;
            attend_part(args, row, first_head + 4 * chunk, heads, begin, count < PART_TOKENS ? count : PART_TOKENS, part);
            if (!parts) join_parts(args, row, first_head + 4 * chunk, heads, own, 1, 0);
        }
#pragma omp for schedule(static)
        for (int64_t job = 0; job < (parts ? args->rows * row_jobs : 0); job++) {
            int64_t row = job / row_jobs, first_head = job / chunks % args->kv_heads * group, chunk = job % chunks;
            const float *own = parts + (firsts[row] * row_jobs + job % row_jobs) * floats;
            join_parts(args, row, first_head + 4 * chunk, group - 4 * chunk, own, parts_of(args, row), row_jobs * floats);
        }
    }
    free(firsts), free(parts);
    return 0;
}
