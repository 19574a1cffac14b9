/* What the functions of this library take: shared by their sources, and by kernel.py and decoder.py, which have the same structures. */
#ifndef KERNELS_H
#define KERNELS_H
#include "vectors.h"

/* What is applied to a linear layer's float32 sums before they are written. GELU is the approximation by tanh. The last two are GPT-OSS's, with `steepness` and `limit`: the
 * swish of min(x, limit) with x / (1 + e^(-steepness x)), and 1 + x, where x is kept within the limit. */
enum { ACTIVATION_NONE, ACTIVATION_SWISH, ACTIVATION_GELU, ACTIVATION_LIMITED_SWISH, ACTIVATION_LIMITED_PLUS_ONE };
enum { OP_NONE, OP_MUL, OP_ADD };

typedef struct {
    const float *bias; /* [outputs], padded to whole blocks; or NULL */
    int activation, binary_op;
    const bf16 *operand; /* [rows][outputs], for OP_MUL and OP_ADD */
    void *out;           /* [rows][outputs] bfloat16, or float32 if is_float */
    int64_t outputs, stride; /* stride: elements from row to row of out and of operand */
    int is_float;
    float steepness, limit;
} Epilogue;

/* In bfloat16, pairs of inputs adjacent: packed as linear.c describes. */
typedef struct {
    const void *data;
} Weights;

/* Levels with a scale and a minimum for each group of inputs; packed as grouped.c describes. */
typedef struct {
    const uint32_t *data;
    const uint8_t *table; /* [16]: what levels of 4 bits in groups of 32 stand for; NULL: themselves */
    int bits, group;      /* 4 or 8, and 16 or 32 */
    int planes;           /* the inputs are rounded to 8 bits in 1, to 16 bits in 2: in 2 for levels of 8 bits in groups of 16 */
    float weight_scale;   /* scales and minima are multiplied by it */
} GroupedWeights;

/* The kinds of elements that keys and values have: of the rows of a step one of the first two, in the cache the same or the third. */
enum { IN_BF16, IN_FLOAT32, IN_INT8 };

/* Keys and values of one layer, in pages of `page` tokens, a multiple of COLUMNS: [pages][kv_heads][page][dim]. A sequence has a list of
 * pages: token t is token t % page of page pages[t / page]. IN_INT8, a token of a head is `dim` bytes, and behind them a float by which they
 * are to be multiplied. Strides count elements, those of IN_INT8 are bytes. */
typedef struct {
    void *keys, *values;
    int64_t page_stride, head_stride, page;
    int kind;
} Cache;

/* How scores come about: queries times keys, times `scale`; with a `cap`, that many times the tanh of their share of it. `sinks` [heads], or
 * NULL, take part in the softmax and stand for no value. A row sees the last `window` tokens up to its own, or all if `window` is 0. */
typedef struct {
    float scale, cap; /* cap: 0 if there is none */
    const float *sinks;
    int64_t window;
} Scores;

/* The decoding rows of one layer. Each row writes its key and value to the cache, at its position, and attends to its sequence up to that
 * position. Strides count elements. */
typedef struct {
    const void *query, *key, *value; /* [rows][heads or kv_heads][dim], with these strides between rows: */
    int64_t query_stride, key_stride, value_stride;
    Cache cache;
    const int64_t *pages, *firsts, *positions; /* row r has the pages from pages[firsts[r]] on */
    int64_t rows, heads, kv_heads, dim;
    Scores scores;
    void *out; /* [rows][heads][dim] */
    int kind;  /* of query, key, value and out */
} DecodeArgs;

/* Rows at the positions from `start` on of the sequence that has these pages. */
typedef struct {
    const void *key, *value; /* [rows][kv_heads][dim], with these strides between rows: */
    int64_t key_stride, value_stride;
    Cache cache;
    const int64_t *pages;
    int64_t start, rows, kv_heads, dim;
    int kind; /* of key and value */
} WriteArgs;

/* Row r is at position start + r and sees the keys up to there. Strides count elements. */
typedef struct {
    const void *query, *key, *value; /* [rows][heads][dim], [start + rows][kv_heads][dim], with these strides: */
    int64_t query_stride, key_stride, key_head_stride, value_stride, value_head_stride;
    const int64_t *pages; /* NULL, or those of the sequence: key and value are then the cache, with this stride between pages: */
    int64_t page_stride, page;
    int64_t rows, start, heads, kv_heads, dim;
    Scores scores;
    void *out;          /* [rows][heads][dim] */
    int kind, key_kind; /* of query and out, and of key and value */
} PrefillArgs;

int linear(const bf16 *x, int64_t rows, int64_t inputs, const Weights *weights, const Epilogue *epilogue, int threads);
int linear_grouped(const bf16 *x, int64_t rows, int64_t inputs, const GroupedWeights *weights, const Epilogue *epilogue, int threads);
int has_dot_products(void);
void linear_by_dot_products(const bf16 *x, int64_t rows, int64_t inputs, const Weights *weights, const Epilogue *epilogue, int threads);
void rms_norm(const bf16 *x, int64_t rows, int64_t inputs, const bf16 *weight, float eps, float shift, bf16 *out, int threads);
void write_cache(const WriteArgs *args, int threads);
int attend_decode(const DecodeArgs *args, int threads);
int attend_prefill(const PrefillArgs *args, int threads);
#endif
