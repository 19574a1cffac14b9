/* The epilogue of a linear layer: what is applied to its float32 sums before they are written, as bfloat16 or as they are. */
#include "kernels.h"

/* Stores the first `count` lanes, at most LANES. */
INLINE void store_floats(float *target, vec x, int64_t count) {
    if (count < LANES)
        memcpy(target, &x, count * sizeof(float));
    else
        *(vec *)target = x;
}

/* The same, rounded to bfloat16. */
INLINE void store_halves(bf16 *target, vec x, int64_t count) {
    bf16 edge[LANES];
    store_bf16(count < LANES ? edge : target, x);
    if (count < LANES) memcpy(target, edge, count * sizeof(bf16));
}

INLINE vec activate(vec x, const Epilogue *epilogue) {
    vec limit = broadcast(epilogue->limit);
    if (epilogue->activation == ACTIVATION_SWISH) return swish(x, 1);
    if (epilogue->activation == ACTIVATION_GELU) return x / 2 * (1 + tanh_vec(x * (0.797884561f + 0.0356774081f * x * x)));
    x = vec_min(limit, x);
    if (epilogue->activation == ACTIVATION_LIMITED_SWISH) return swish(x, epilogue->steepness);
    return vec_max(-limit, x) + 1;
}

/* Writes sums [rows][width] of the outputs from `column` on to the rows from `row` on. */
static void write_outputs(const float *sums, int rows, int width, int64_t row, int64_t column, const Epilogue *epilogue) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width && column + c < epilogue->outputs; c += LANES) {
            int64_t index = (row + r) * epilogue->stride + column + c, remaining = epilogue->outputs - column - c;
            vec x = *(const vec *)(sums + r * width + c);
            bf16 padded[LANES] = {0};
            const bf16 *source = epilogue->operand + index;
            if (epilogue->bias) x += *(const vec *)(epilogue->bias + column + c);
            if (epilogue->activation) x = activate(x, epilogue);
            if (epilogue->binary_op != OP_NONE && remaining < LANES) source = memcpy(padded, source, remaining * sizeof(bf16));
            if (epilogue->binary_op == OP_MUL) x *= load_bf16(source);
            if (epilogue->binary_op == OP_ADD) x += load_bf16(source);
            if (epilogue->is_float)
                store_floats((float *)epilogue->out + index, x, remaining);
            else
                store_halves((bf16 *)epilogue->out + index, x, remaining);
        }
}
