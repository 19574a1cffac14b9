/* Mixtures of experts: what their functions take. */
#ifndef MIXTURE_H
#define MIXTURE_H
#include "layers.h"

/* Feed-forward networks, each of which computes the rows that chose it: down(act(gate(x)) * up(x)). */
typedef struct {
    const Linear *gate, *up, *down; /* [experts] */
    int64_t experts, hidden, width; /* width: outputs of gate and up */
    Epilogue gated, product;        /* what is applied to the sums of gate and of up; where they go is filled in */
    const int64_t *counts;          /* [experts]: rows of each, those of an expert after those of the one before */
    const bf16 *x;                  /* [rows][hidden] */
    bf16 *activated;                /* [rows][width]: written */
    bf16 *out;                      /* [rows][hidden] */
} Experts;

/* A router, and the experts among which it chooses. */
typedef struct {
    Linear router;  /* outputs: experts */
    int64_t chosen; /* experts of a row: those of the largest logits */
    int of_all;     /* an expert counts as much as its share of the softmax over all experts; else over those chosen */
    Experts experts;         /* of which run_mixture fills in the last four */
    const int64_t *given;    /* [rows][chosen]: experts to take in place of the router's, and what they count; or NULL */
    const float *given_shares;
} Mixture;

int run_experts(const Experts *args, int threads);
int run_mixture(const Mixture *args, const bf16 *x, int64_t rows, const bf16 *residual, bf16 *out, int threads);
#endif
