/* A linear layer of any form, and its use within larger parts. */
#ifndef LAYERS_H
#define LAYERS_H
#include "kernels.h"

typedef struct {
    const Weights *weights;       /* one of these two is NULL */
    const GroupedWeights *groups;
    const float *bias; /* as in Epilogue */
    int64_t inputs, outputs;
} Linear;

/* Computes the layer for rows [rows][inputs]. Returns 0, or 1 if it cannot allocate memory. */
static int apply(const Linear *layer, const bf16 *x, int64_t rows, Epilogue end, int threads) {
    end.bias = layer->bias, end.outputs = layer->outputs;
    if (!end.stride) end.stride = layer->outputs;
    return layer->groups ? linear_grouped(x, rows, layer->inputs, layer->groups, &end, threads)
                         : linear(x, rows, layer->inputs, layer->weights, &end, threads);
}

#endif
