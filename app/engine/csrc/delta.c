/* The gated delta rule (arXiv 2412.06464) behind a short convolution: a state of each head, which decays, and in which values are stored under
 * keys. All in float32. */
#include <math.h>

#include "kernels.h"

#define BLOCK 512        /* channels that a thread convolves at a time */
#define TINY_NORM 1e-6f /* is added to the squared length of queries and keys */
#define MAX_TAPS 16      /* these two as in deltanet.py */
#define MAX_KEY_DIM 256
#define SUMS 4           /* that do not wait for each other */
#define LARGE 20         /* from here on softplus(x) is x */

/* Rows [row, row + rows) of a step are consecutive tokens of one sequence. What is kept of a sequence stands in a page of the cache: `from` is
 * the one of the token before, -1: there is none. `to` is where it goes after the last token, -1: it is not kept. Both may be the same. */
typedef struct {
    int64_t row, rows, from, to;
} DeltaRows;

typedef struct {
    const float *mixed;  /* [rows][channels]: queries and keys [key_heads][key_dim], and values [heads][value_dim] */
    const float *taps;   /* [tap_count][channels]: weights of the convolution, the earliest token first */
    const float *decay, *rate;      /* [rows][heads]: see find_factors */
    const float *steepness, *shift; /* [heads] */
    int64_t tap_count, channels, key_heads, heads, key_dim, value_dim; /* both dims are multiples of LANES, as is what `channels` leaves of a block */
    float *kept;       /* page p's from p * stride on: states [heads][key_dim][value_dim], and the last tap_count - 1 of `mixed` */
    int64_t stride;
    const DeltaRows *sequence; /* [sequences] */
    int64_t rows, sequences;
    int rounds; /* what torch's operations would give in bfloat16 */
    float *out; /* [rows][heads][value_dim] */
} DeltaArgs;

INLINE vec rounded(vec x, int rounds) {
    uint_vec bits = (uint_vec)x;
    return rounds ? (vec)((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000) : x;
}

/* The swish of the convolution, of some channels of a sequence; writes what is kept of them. */
static void convolve(const DeltaArgs *args, const DeltaRows *sequence, int64_t first, int64_t end, float *active) {
    int64_t channels = args->channels, before = args->tap_count - 1, states = args->heads * args->key_dim * args->value_dim;
    const float *known = sequence->from < 0 ? NULL : args->kept + sequence->from * args->stride + states;
    const float *own = args->mixed + sequence->row * channels, *sources[MAX_TAPS];
    for (int64_t r = 0; r < sequence->rows; r++) {
        for (int64_t tap = 0; tap <= before; tap++) {
            int64_t at = r + tap - before; /* row of the sequence in this step; before it what is kept */
            sources[tap] = at >= 0 ? own + at * channels : known ? known + (at + before) * channels : NULL;
        }
        float *target = active + (sequence->row + r) * channels;
        for (int64_t c = first; c < end; c += LANES) {
            vec sum = {0};
            for (int64_t tap = 0; tap <= before; tap++)
                if (sources[tap]) sum += *(const vec *)(sources[tap] + c) * *(const vec *)(args->taps + tap * channels + c);
            *(vec *)(target + c) = rounded(swish(rounded(sum, args->rounds), 1), args->rounds);
        }
    }
    if (sequence->to < 0) return;
    float *kept = args->kept + sequence->to * args->stride + states;
    for (int64_t place = 0; place < before; place++) {
        int64_t at = sequence->rows + place - before;
        const float *source = at >= 0 ? own + at * channels : known ? known + (at + before) * channels : NULL;
        if (source)
            memmove(kept + place * channels + first, source + first, (end - first) * sizeof(float));
        else
            memset(kept + place * channels + first, 0, (end - first) * sizeof(float));
    }
}

static void normalize(float *head, int64_t dim, float scale) {
    vec squares = {0};
    for (int64_t i = 0; i < dim; i += LANES) squares += *(vec *)(head + i) * *(vec *)(head + i);
    float factor = scale / sqrtf(sum_lanes(squares) + TINY_NORM);
    for (int64_t i = 0; i < dim; i += LANES) *(vec *)(head + i) *= factor;
}

/* The state is multiplied by exp(-steepness * softplus(decay + shift)), and sigmoid(rate) of the value is stored. One by one: torch's operations
 * round otherwise at the end of a tensor than within. */
static void find_factors(const DeltaArgs *args, int64_t head, int64_t at, float *factors) {
    float x = args->decay[at] + args->shift[head];
    factors[2 * at] = expf(-args->steepness[head] * (x > LARGE ? x : log1pf(expf(x))));
    factors[2 * at + 1] = rounded(broadcast(1 / (1 + expf(-args->rate[at]))), args->rounds)[0];
}

/* All tokens of a sequence, of LANES values of a head from `first` on, which depend on no others: so their part of the state stays in the cache
 * of the core. `factors` [rows][heads][2]: decay and rate. */
static void run_values(const DeltaArgs *args, const DeltaRows *sequence, int64_t head, int64_t first, const float *active, const float *factors) {
    int64_t keys = args->key_dim, values = args->value_dim, queries = args->key_heads * keys, place = head * keys * values + first;
    int64_t key_head = head / (args->heads / args->key_heads);
    vec state[MAX_KEY_DIM];
    for (int64_t k = 0; k < keys; k++)
        state[k] = sequence->from < 0 ? (vec){0} : *(const vec *)(args->kept + sequence->from * args->stride + place + k * values);
    for (int64_t r = sequence->row; r < sequence->row + sequence->rows; r++) {
        const float *query = active + r * args->channels + key_head * keys, *key = query + queries;
        const float *own = factors + (r * args->heads + head) * 2;
        vec known[SUMS] = {0}, sums[SUMS] = {0};
        for (int64_t k = 0; k < keys; k += SUMS)
            for (int i = 0; i < SUMS; i++) {
                state[k + i] *= own[0];
                known[i] += state[k + i] * key[k + i];
            }
        vec value = *(const vec *)(active + r * args->channels + 2 * queries + head * values + first);
        vec change = (value - (known[0] + known[1] + (known[2] + known[3]))) * own[1];
        for (int64_t k = 0; k < keys; k += SUMS)
            for (int i = 0; i < SUMS; i++) {
                state[k + i] += change * key[k + i];
                sums[i] += state[k + i] * query[k + i];
            }
        vec sum = sums[0] + sums[1] + (sums[2] + sums[3]);
        *(vec *)(args->out + (r * args->heads + head) * values + first) = sum;
    }
    for (int64_t k = 0; sequence->to >= 0 && k < keys; k++) *(vec *)(args->kept + sequence->to * args->stride + place + k * values) = state[k];
}

/* Returns 0, or 1 if it cannot allocate memory. */
int run_delta_rule(const DeltaArgs *args, int threads) {
    int64_t rows = args->rows, channels = args->channels, blocks = (channels + BLOCK - 1) / BLOCK, key_heads = 2 * args->key_heads;
    int64_t parts = args->heads * (args->value_dim / LANES);
    float *active = aligned_alloc(64, ROUND_UP(rows * (channels + 2 * args->heads) * sizeof(float), 64));
    if (!active) return 1;
    float *factors = active + rows * channels;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < args->sequences * blocks; task++) {
            int64_t first = task % blocks * BLOCK, end = first + BLOCK < channels ? first + BLOCK : channels;
            convolve(args, args->sequence + task / blocks, first, end, active);
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t head = 0; head < key_heads; head++)
                normalize(active + r * channels + head * args->key_dim, args->key_dim, head < args->key_heads ? 1 / sqrtf(args->key_dim) : 1);
            for (int64_t head = 0; head < args->heads; head++) find_factors(args, head, r * args->heads + head, factors);
        }
#pragma omp for schedule(static)
        for (int64_t task = 0; task < args->sequences * parts; task++) {
            int64_t part = task % parts, head = part / (args->value_dim / LANES), first = part % (args->value_dim / LANES) * LANES;
            run_values(args, args->sequence + task / parts, head, first, active, factors);
        }
    }
    free(active);
    return 0;
}
