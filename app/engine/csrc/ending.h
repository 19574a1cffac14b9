/* The epilogue of a linear layer: what is applied to its float32 sums before they are written as bfloat16. */
#include "kernels.h"

/* Writes sums [rows][width] of the outputs from `column` on to the rows from `row` on. */
static void write_outputs(const float *sums, int rows, int width, int64_t row, int64_t column, const Epilogue *epilogue) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width && column + c < epilogue->outputs; c += LANES) {
            int64_t index = (row + r) * epilogue->outputs + column + c, remaining = epilogue->outputs - column - c;
            vec x = *(const vec *)(sums + r * width + c);
            bf16 edge[LANES], padded[LANES] = {0};
            const bf16 *source = epilogue->operand + index;
            if (epilogue->bias) x += *(const vec *)(epilogue->bias + column + c);
            if (epilogue->activation == ACTIVATION_SWISH) x = swish(x);
            if (epilogue->binary_op != OP_NONE && remaining < LANES) source = memcpy(padded, source, remaining * sizeof(bf16));
            if (epilogue->binary_op == OP_MUL) x *= load_bf16(source);
            if (epilogue->binary_op == OP_ADD) x += load_bf16(source);
            store_bf16(remaining < LANES ? edge : epilogue->out + index, x);
            if (remaining < LANES) memcpy(epilogue->out + index, edge, remaining * sizeof(bf16));
        }
}
