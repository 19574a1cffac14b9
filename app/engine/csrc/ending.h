/* What becomes of a layer's sums before they are written. */
#include "vectors.h"

enum { NONE, SWISH };
enum { ALONE, TIMES, PLUS };

typedef struct {
    const float *bias; /* padded to whole blocks, or NULL */
    int then, how;
    const bf16 *other; /* [rows][outputs], for TIMES and PLUS */
    bf16 *out;         /* [rows][outputs] */
    int64_t outputs;
} Ending;

/* From sums [rows][width] in float32 to outputs. */
static void finish(const float *sums, int rows, int width, int64_t row, int64_t column, const Ending *end) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width && column + c < end->outputs; c += LANES) {
            int64_t at = (row + r) * end->outputs + column + c, left = end->outputs - column - c;
            vec x = *(const vec *)(sums + r * width + c);
            bf16 edge[LANES], beside[LANES] = {0};
            const bf16 *other = end->other + at;
            if (end->bias) x += *(const vec *)(end->bias + column + c);
            if (end->then == SWISH) x = swish(x);
            if (end->how != ALONE && left < LANES) other = memcpy(beside, other, left * sizeof(bf16));
            if (end->how == TIMES) x *= widen(other);
            if (end->how == PLUS) x += widen(other);
            narrow(left < LANES ? edge : end->out + at, x);
            if (left < LANES) memcpy(end->out + at, edge, left * sizeof(bf16));
        }
}
