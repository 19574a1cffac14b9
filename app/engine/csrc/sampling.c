/* Draws each row's next token: temperature, then top_k, top_p and min_p, each on what the one before left, in transformers' order; then the
 * cumulative distribution is inverted at the row's uniform number. All in the order of the vocabulary, so a row's token does not depend on
 * the others. The smallest weights that top_k and top_p keep are found by bisection instead of sorting. */
#include "vectors.h"

#define BLOCK 1024       /* weights that are added in float32 before they go into double */
#define LIKELY 3e-4f     /* tokens of at least this weight, to 1 of the likeliest, are looked at first; nearly always they are enough */
#define NOTHING -1e30f

typedef struct {
    double uniform, top_p; /* top_p 1: off */
    float inverse_temperature, min_p; /* 0: greedy; 0: off */
    int64_t top_k;                    /* 0: off */
    const uint8_t *allowed;           /* [allowed_count]: 0 for tokens that are never drawn, like those beyond it; NULL: all may be */
    int64_t allowed_count;
} SamplingRow;

typedef struct {
    const void *scores; /* [rows][vocabulary] bfloat16, or float32 if are_float; -infinity: never */
    int64_t rows, vocabulary;
    const SamplingRow *row; /* [rows] */
    int64_t *tokens;        /* [rows] */
    int are_float;
} SamplingArgs;

/* Copies a row to float32, padded to whole vectors by NOTHING. Returns its largest value. */
static float load_row(const SamplingArgs *args, int64_t r, float *x) {
    int64_t size = args->vocabulary, whole = size / LANES * LANES;
    const SamplingRow *row = args->row + r;
    vec largest = broadcast(NOTHING);
    if (whole < size) *(vec *)(x + whole) = broadcast(NOTHING);
    if (args->are_float)
        memcpy(x, (const float *)args->scores + r * size, size * sizeof(float));
    else {
        const bf16 *from = (const bf16 *)args->scores + r * size;
        for (int64_t i = 0; i < whole; i += LANES) *(vec *)(x + i) = load_bf16(from + i);
        for (int64_t i = whole; i < size; i++) ((uint32_t *)x)[i] = (uint32_t)from[i] << 16;
    }
    if (row->allowed) {
        int64_t count = row->allowed_count < size ? row->allowed_count : size;
        for (int64_t i = 0; i < count; i++) x[i] = row->allowed[i] ? x[i] : NOTHING;
        for (int64_t i = count; i < size; i++) x[i] = NOTHING;
    }
    for (int64_t i = 0; i < size; i += LANES) largest = vec_max(*(const vec *)(x + i), largest);
    return max_lane(largest);
}

static int64_t find(const float *x, int64_t size, float value) {
    for (int64_t i = 0; i < size; i++)
        if (x[i] == value) return i;
    return 0; /* all are NaN or -infinity */
}

/* Replaces scores by weights, exp((score - largest) / temperature): 1 for the likeliest, 0 for -infinity and NaN. */
static void weigh(float *x, int64_t size, float largest, float inverse_temperature) {
    vec lowest = broadcast(-127), factor = broadcast(inverse_temperature) * LOG2_E;
    for (int64_t i = 0; i < size; i += LANES) *(vec *)(x + i) = exp2_bounded(vec_max((*(const vec *)(x + i) - largest) * factor, lowest));
}

/* Copies the weights from `least` on to `to`, padded by zeros to whole vectors. Returns how many they are. */
static int64_t copy_from(const float *weights, int64_t size, float least, float *to) {
    int64_t count = 0;
    for (int64_t i = 0; i < size; i += LANES) {
#if LANES == 16
        __m512 w = _mm512_loadu_ps(weights + i);
        __mmask16 kept = _mm512_cmp_ps_mask(w, _mm512_set1_ps(least), _CMP_GE_OQ);
        _mm512_storeu_ps(to + count, _mm512_maskz_compress_ps(kept, w)); /* never beyond i: count <= i */
        count += __builtin_popcount(kept);
#else
        for (int lane = 0; lane < LANES; lane++) {
            to[count] = weights[i + lane];
            count += weights[i + lane] >= least;
        }
#endif
    }
    for (int64_t i = count; i < ROUND_UP(count, LANES); i++) to[i] = 0;
    return count;
}

/* How many weights are at least `least`, and what they add up to. */
static int64_t count_from(const float *weights, int64_t size, float least, double *mass) {
    int64_t count = 0;
    *mass = 0;
    for (int64_t from = 0; from < size; from += BLOCK) {
        vec sum = {0};
        int64_t end = from + BLOCK < size ? from + BLOCK : size;
        uint_vec counts = {0};
        for (int64_t i = from; i < end; i += LANES) {
            vec w = *(const vec *)(weights + i);
            uint_vec kept = (uint_vec)(w >= least);
            counts -= kept;
            sum += (vec)((uint_vec)w & kept);
        }
        for (int lane = 0; lane < LANES; lane++) count += counts[lane];
        *mass += sum_lanes(sum);
    }
    return count;
}

/* The largest bound that keeps at least `tokens` weights and at least `mass` of them, by bisection of its bits, which for positive floats
 * are in the order of the values. Keeping all of them must be enough. */
static float find_least(const float *weights, int64_t size, int64_t tokens, double mass) {
    uint32_t low = 0, high = 0x3f800001; /* `low` keeps enough, `high`, above 1, does not */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        float least;
        double sum;
        memcpy(&least, &middle, sizeof least);
        if (count_from(weights, size, least, &sum) >= tokens && sum >= mass)
            low = middle;
        else
            high = middle;
    }
    float least;
    memcpy(&least, &low, sizeof least);
    return least;
}

/* The smallest weight that the row keeps. `likely` has room for a vocabulary. */
static float find_bound(const float *weights, int64_t size, const SamplingRow *row, float *likely) {
    float least = 0;
    if (row->top_k || row->top_p < 1) {
        double total, likely_mass;
        count_from(weights, size, 0, &total);
        int64_t count = copy_from(weights, size, LIKELY, likely);
        count_from(likely, count, LIKELY, &likely_mass);
        if (row->top_k ? count >= row->top_k : likely_mass >= row->top_p * total)
            weights = likely, size = count;
        if (row->top_k) {
            least = find_least(weights, size, row->top_k, 0);
            int64_t kept = count_from(weights, size, least, &total);
            total -= (kept - row->top_k) * (double)least; /* of equals, top_p adds up as many as top_k has room for */
        }
        if (row->top_p < 1) least = find_least(weights, size, 1, row->top_p * total);
    }
    return least > row->min_p ? least : row->min_p;
}

/* The token at which the running sum of the weights from `least` on passes the fraction `uniform` of their total. Never one of weight 0. */
static int64_t invert(float *weights, int64_t size, float least, double uniform) {
    double total, block_mass, sum = 0, before = 0; /* of the block in which the token is */
    int64_t block = 0, token = 0;
    for (int64_t i = 0; i < size; i += LANES) {
        vec w = *(const vec *)(weights + i);
        *(vec *)(weights + i) = (vec)((uint_vec)w & (uint_vec)(w >= least));
    }
    count_from(weights, size, 0, &total);
    for (int64_t from = 0; from < size && sum <= uniform * total; from += BLOCK) {
        int64_t end = from + BLOCK < size ? from + BLOCK : size;
        count_from(weights + from, end - from, 0, &block_mass);
        if (block_mass == 0) continue;
        block = from, before = sum, sum += block_mass;
    }
    for (int64_t i = block; i < block + BLOCK && i < size && before <= uniform * total; i++) {
        before += weights[i];
        if (weights[i] > 0) token = i;
    }
    return token;
}

static int64_t draw(const SamplingArgs *args, int64_t r, float *weights, float *likely) {
    const SamplingRow *row = args->row + r;
    int64_t size = args->vocabulary;
    float largest = load_row(args, r, weights);
    if (largest <= NOTHING) return 0;
    if (row->inverse_temperature == 0) return find(weights, size, largest);
    weigh(weights, size, largest, row->inverse_temperature);
    return invert(weights, size, find_bound(weights, size, row, likely), row->uniform);
}

/* Returns 0, or 1 if it cannot allocate memory. */
int sample_tokens(const SamplingArgs *args, int threads) {
    int64_t padded = ROUND_UP(args->vocabulary, 16);
    threads = args->rows < threads ? args->rows : threads;
    float *buffers = aligned_alloc(64, 2 * threads * padded * sizeof(float));
    if (!buffers) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t r = 0; r < args->rows; r++) {
        float *weights = buffers + 2 * padded * omp_get_thread_num();
        args->tokens[r] = draw(args, r, weights, weights + padded);
    }
    free(buffers);
    return 0;
}
