/* All layers of a Llama-shaped decoder in one call, or of LFM2's, of which some are short convolutions in place of attention. Called one by one from Python, the parts of a layer would take a third of a small step
 * longer. Every part rounds to bfloat16 where torch's operations do.
 */
#include "cache.h"
#include "mixture.h"

#define MAX_TAPS 16 /* as in decoder.py */
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* A short convolution by channel: change * sum over taps of weight * (gate * x), the earliest token first. */
typedef struct {
    int64_t taps;         /* tokens that it sees, the own one included */
    const float *weights; /* [taps][hidden] */
    const float *bias;    /* [hidden], or NULL */
} Convolution;

typedef struct {
    const bf16 *input_norm, *mlp_norm;    /* weights [hidden], or NULL */
    const bf16 *attended_norm, *fed_norm; /* the same, of what attention and feed-forward part give, before it is added */
    const bf16 *query_norm, *key_norm;    /* weights [dim], or of all heads together; or NULL */
    Linear qkv[3]; /* queries, keys and values, one after the other: as one layer, or as several; the rest has no outputs */
    const Convolution *convolution; /* in place of attention; then those three are gate, change and x; or NULL */
    Linear out, gate, up, down;
    const Mixture *mixture; /* in place of gate, up and down; or NULL */
    Cache slots, texts;                 /* of keys and values, or of gate * x as keys: of the sequences that decode, and of a text that is scored; the first also of their prompts */
    Scores scores;
    int64_t norms_together; /* whether one norm is of all heads of a row together */
    int64_t rotation; /* which of the step's cosines and sines; -1: it does not rotate */
    int activation;   /* of the gate */
} DecoderLayer;

/* Rows [row, row + rows) of a step are consecutive positions from `start` on of one sequence. `first` says where its pages begin in the
 * step's list of pages; -1: they are not cached. `is_text`: the pages are of the texts' cache. */
typedef struct {
    int64_t row, rows, start, first, is_text;
} SpanRows;

typedef struct {
    const DecoderLayer *layers;
    int64_t layer_count, hidden, heads, kv_heads, dim, intermediate; /* the last of the layers that are no mixtures */
    float eps, shift;     /* of the norms */
    float residual_scale; /* of what is added to the states */
    const bf16 *norm; /* weights [hidden] of the last one */
    int64_t rows, decodes, spans; /* the decoding rows come first, then those of the spans */
    const int64_t *pages;              /* of all sequences, one after the other */
    const int64_t *firsts, *positions; /* [decodes]; as in DecodeArgs */
    const SpanRows *span;             /* [spans] */
    const bf16 *cos[2], *sin[2];      /* [rows][dim]; the first half of sin is negated */
    const bf16 *query_scale;          /* [rows], of rotated queries; or NULL */
    bf16 *x;                          /* [rows][hidden]: embeddings; changed */
    bf16 *out;                        /* [rows][hidden]: hidden states after the last norm */
} DecoderArgs;

/* What a layer hands from part to part. */
typedef struct {
    bf16 *normed, *qkv, *attended, *gated; /* [rows][...] of hidden, qkv's outputs, heads * dim or hidden, intermediate */
} Buffers;

/* One number in all lanes. */
INLINE vec load_bf16_once(const bf16 *source) {
    union { uint32_t bits; float number; } widened = {(uint32_t)*source << 16};
    return broadcast(widened.number);
}

/* Rounds to bfloat16 and back. */
INLINE vec round_vec(vec x) {
    uint_vec bits = (uint_vec)x;
    return (vec)((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000);
}

/* Rotates queries and keys in place by their positions (RoPE, arXiv 2104.09864), and scales the queries. dim / 2 is a multiple of LANES. */
static void rotate(const DecoderArgs *args, int64_t rotation, bf16 *qkv, int64_t width, int threads) {
    int64_t heads = args->heads + args->kv_heads, half = args->dim / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (args->rows > 16)
    for (int64_t r = 0; r < args->rows; r++) {
        const bf16 *cos = args->cos[rotation] + r * args->dim, *sin = args->sin[rotation] + r * args->dim;
        vec scale = broadcast(1);
        if (args->query_scale) scale = load_bf16_once(args->query_scale + r);
        for (int64_t h = 0; h < heads; h++) {
            if (h == args->heads) scale = broadcast(1);
            for (int64_t i = 0; i < half; i += LANES) {
                bf16 *left = qkv + r * width + h * args->dim + i, *right = left + half;
                vec x = load_bf16(left), y = load_bf16(right);
                store_bf16(left, round_vec(round_vec(x * load_bf16(cos + i)) + y * load_bf16(sin + i)) * scale);
                store_bf16(right, round_vec(round_vec(y * load_bf16(cos + half + i)) + x * load_bf16(sin + half + i)) * scale);
            }
        }
    }
}

/* Computes queries, keys and values, [rows][width]. */
static int apply_qkv(const DecoderLayer *layer, const bf16 *x, int64_t rows, bf16 *out, int64_t width, int threads) {
    int failed = 0;
    for (int part = 0; part < 3 && layer->qkv[part].outputs && !failed; out += layer->qkv[part++].outputs)
        failed = apply(&layer->qkv[part], x, rows, (Epilogue){.out = out, .stride = width}, threads);
    return failed;
}

static int64_t qkv_width(const DecoderArgs *args) { return (args->heads + 2 * args->kv_heads) * args->dim; }

static int attend_span(const DecoderArgs *args, const DecoderLayer *layer, const SpanRows *span, const bf16 *qkv, bf16 *out, int threads) {
    int64_t dim = args->dim, width = qkv_width(args);
    const bf16 *query = qkv + span->row * width, *key = query + args->heads * dim, *value = key + args->kv_heads * dim;
    PrefillArgs prefill = {.query = query, .key = key, .value = value, .query_stride = width, .key_stride = width, .key_head_stride = dim,
                           .value_stride = width, .value_head_stride = dim, .rows = span->rows, .heads = args->heads,
                           .kv_heads = args->kv_heads, .dim = dim, .scores = layer->scores,
                           .out = out + span->row * args->heads * dim, .kind = IN_BF16, .key_kind = IN_BF16};
    if (span->first >= 0) {
        const Cache *cache = span->is_text ? &layer->texts : &layer->slots;
        WriteArgs written = {key, value, width, width, *cache, args->pages + span->first, span->start, span->rows, args->kv_heads, dim, IN_BF16};
        write_cache(&written, threads);
        prefill.pages = written.pages, prefill.page_stride = cache->page_stride, prefill.page = cache->page, prefill.start = span->start;
        prefill.key = cache->keys, prefill.value = cache->values, prefill.key_kind = cache->kind;
        prefill.key_stride = prefill.value_stride = token_elements(dim, cache->kind);
        prefill.key_head_stride = prefill.value_head_stride = cache->head_stride;
    }
    return attend_prefill(&prefill, threads);
}

static int attend(const DecoderArgs *args, const DecoderLayer *layer, bf16 *qkv, bf16 *out, int threads) {
    int64_t dim = args->dim, width = qkv_width(args);
    bf16 *key = qkv + args->heads * dim, *value = key + args->kv_heads * dim;
    int64_t together = layer->norms_together ? args->heads : 1, kv_together = layer->norms_together ? args->kv_heads : 1;
    for (int64_t r = 0; layer->query_norm && r < args->rows; r++) {
        bf16 *query = qkv + r * width, *own_key = key + r * width;
        rms_norm(query, args->heads / together, together * dim, layer->query_norm, args->eps, args->shift, query, 1);
        rms_norm(own_key, args->kv_heads / kv_together, kv_together * dim, layer->key_norm, args->eps, args->shift, own_key, 1);
    }
    if (layer->rotation >= 0) rotate(args, layer->rotation, qkv, width, threads);
    DecodeArgs decode = {qkv, key, value, width, width, width, layer->slots, args->pages, args->firsts, args->positions, args->decodes,
                         args->heads, args->kv_heads, dim, layer->scores, out, IN_BF16};
    int failed = args->decodes && attend_decode(&decode, threads);
    for (int64_t s = 0; s < args->spans && !failed; s++) failed = attend_span(args, layer, args->span + s, qkv, out, threads);
    return failed;
}

/* Where the cache has the input of a convolution of the token at `position` of a sequence, whose pages are given. */
static bf16 *kept_input(const Cache *cache, const int64_t *pages, int64_t position, int64_t channels) {
    return (bf16 *)cache->keys + pages[position / cache->page] * cache->page_stride + position % cache->page * channels;
}

/* Convolves the inputs at `row` of `x` [rows][3 * hidden], which has gate * x in place of the gates. A token that is not among the `before` rows
 * before it is in the cache, if there is one. */
static void convolve_row(const DecoderArgs *args, const Convolution *convolution, const bf16 *x, int64_t row, int64_t before, int64_t position,
                         const Cache *cache, const int64_t *pages, bf16 *out) {
    int64_t hidden = args->hidden, width = 3 * hidden;
    const bf16 *sources[MAX_TAPS], *change = x + row * width + hidden;
    for (int64_t tap = 0; tap < convolution->taps; tap++) {
        int64_t back = convolution->taps - 1 - tap;
        int is_cached = cache && position >= back;
        sources[tap] = back <= before ? x + (row - back) * width : is_cached ? kept_input(cache, pages, position - back, hidden) : NULL;
    }
    for (int64_t i = 0; i < hidden; i += LANES) {
        vec sum = broadcast(0);
        for (int64_t tap = 0; tap < convolution->taps; tap++)
            if (sources[tap]) sum += load_bf16(sources[tap] + i) * *(const vec *)(convolution->weights + tap * hidden + i);
        if (convolution->bias) sum += *(const vec *)(convolution->bias + i);
        store_bf16(out + row * hidden + i, load_bf16(change + i) * round_vec(sum));
    }
}

static void keep_inputs(const DecoderArgs *args, const SpanRows *span, const Cache *cache, const bf16 *x) {
    int64_t hidden = args->hidden;
    for (int64_t r = 0; r < span->rows; r++)
        memcpy(kept_input(cache, args->pages + span->first, span->start + r, hidden), x + (span->row + r) * 3 * hidden, hidden * sizeof(bf16));
}

/* Convolves x [rows][3 * hidden]: gate, change and x of each row. The gates are overwritten. The inputs of slots are in the cache before any is
 * read, as rows of one sequence may be beside each other; those of texts, which have the same pages, one after the other. */
static void convolve(const DecoderArgs *args, const DecoderLayer *layer, bf16 *x, bf16 *out, int threads) {
    int64_t hidden = args->hidden, width = 3 * hidden;
#pragma omp parallel for schedule(static) num_threads(threads) if (args->rows > 16)
    for (int64_t r = 0; r < args->rows; r++)
        for (bf16 *gate = x + r * width, *end = gate + hidden; gate < end; gate += LANES)
            store_bf16(gate, load_bf16(gate) * load_bf16(gate + 2 * hidden));
    for (int64_t r = 0; r < args->decodes; r++)
        memcpy(kept_input(&layer->slots, args->pages + args->firsts[r], args->positions[r], hidden), x + r * width, hidden * sizeof(bf16));
    for (const SpanRows *span = args->span; span < args->span + args->spans; span++)
        if (span->first >= 0 && !span->is_text) keep_inputs(args, span, &layer->slots, x);
#pragma omp parallel for schedule(static) num_threads(threads) if (args->decodes > 16)
    for (int64_t r = 0; r < args->decodes; r++)
        convolve_row(args, layer->convolution, x, r, 0, args->positions[r], &layer->slots, args->pages + args->firsts[r], out);
    for (const SpanRows *span = args->span; span < args->span + args->spans; span++) {
        const Cache *cache = span->first < 0 ? NULL : span->is_text ? &layer->texts : &layer->slots;
#pragma omp parallel for schedule(static) num_threads(threads) if (span->rows > 16)
        for (int64_t r = 0; r < span->rows; r++)
            convolve_row(args, layer->convolution, x, span->row + r, r, span->start + r, cache, cache ? args->pages + span->first : NULL, out);
        if (cache && span->is_text) keep_inputs(args, span, cache, x);
    }
}

/* Applies `last` to x, and adds what it gives to args->x; with a norm or a scale by way of `given` [rows][hidden]. */
static int add(const DecoderArgs *args, const Linear *last, const bf16 *x, const bf16 *norm, bf16 *given, int threads) {
    int64_t rows = args->rows, hidden = args->hidden;
    int plain = !norm && args->residual_scale == 1;
    Epilogue end = {.binary_op = plain ? OP_ADD : OP_NONE, .operand = args->x, .out = plain ? args->x : given};
    int failed = apply(last, x, rows, end, threads);
    if (failed || plain) return failed;
    if (norm) rms_norm(given, rows, hidden, norm, args->eps, args->shift, given, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > 16)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = r * hidden; i < (r + 1) * hidden; i += LANES)
            store_bf16(args->x + i, load_bf16(args->x + i) + round_vec(load_bf16(given + i) * args->residual_scale));
    return 0;
}

/* The states after a norm, which are written to `normed`; without a norm the states themselves. */
static const bf16 *norm_of(const DecoderArgs *args, const bf16 *norm, bf16 *normed, int threads) {
    if (!norm) return args->x;
    rms_norm(args->x, args->rows, args->hidden, norm, args->eps, args->shift, normed, threads);
    return normed;
}

/* Replaces args->x by what the layer makes of it. */
static int run_layer(const DecoderArgs *args, const DecoderLayer *layer, const Buffers *buffers, int threads) {
    int64_t rows = args->rows;
    bf16 *x = args->x, *normed = buffers->normed, *gated = buffers->gated;
    Epilogue activated = {.activation = layer->activation, .out = gated}, product = {.binary_op = OP_MUL, .operand = gated, .out = gated};
    const bf16 *in = norm_of(args, layer->input_norm, normed, threads);
    int64_t width = layer->convolution ? 3 * args->hidden : qkv_width(args);
    if (apply_qkv(layer, in, rows, buffers->qkv, width, threads)) return 1;
    if (layer->convolution)
        convolve(args, layer, buffers->qkv, buffers->attended, threads);
    else if (attend(args, layer, buffers->qkv, buffers->attended, threads))
        return 1;
    if (add(args, &layer->out, buffers->attended, layer->attended_norm, normed, threads)) return 1;
    in = norm_of(args, layer->mlp_norm, normed, threads);
    if (layer->mixture) return run_mixture(layer->mixture, in, rows, x, x, threads);
    return apply(&layer->gate, in, rows, activated, threads) || apply(&layer->up, in, rows, product, threads) ||
           add(args, &layer->down, gated, layer->fed_norm, normed, threads);
}

/* Returns 0, or 1 if it cannot allocate memory. */
int run_decoder(const DecoderArgs *args, int threads) {
    int64_t hidden = args->hidden, attended = args->heads * args->dim, qkv = qkv_width(args);
    int64_t widths[] = {hidden, MAX(qkv, 3 * hidden), MAX(attended, hidden), args->intermediate};
    bf16 *parts[4];
    int64_t total = 0;
    for (int i = 0; i < 4; i++) total += ROUND_UP(args->rows * widths[i], 32);
    bf16 *memory = aligned_alloc(64, ROUND_UP(total * sizeof(bf16), 64));
    if (!memory) return 1;
    parts[0] = memory;
    for (int i = 1; i < 4; i++) parts[i] = parts[i - 1] + ROUND_UP(args->rows * widths[i - 1], 32);
    Buffers buffers = {parts[0], parts[1], parts[2], parts[3]};
    int failed = 0;
    for (int64_t layer = 0; layer < args->layer_count && !failed; layer++) failed = run_layer(args, args->layers + layer, &buffers, threads);
    if (!failed) rms_norm(args->x, args->rows, args->hidden, args->norm, args->eps, args->shift, args->out, threads);
    free(memory);
    return failed;
}
