/* A symmetric Toeplitz system by Levinson's and Durbin's recursion */
#include "kernel.h"
enum { N = SIZE(40, 400, 2000) };
static double r[N], y[N], z[N];

void init(void) {
    for (int i = 0; i < N; i++) r[i] = N + 1 - i;
}

void kernel(void) {
    y[0] = -r[0];
    double beta = 1, alpha = -r[0];
    for (int k = 1; k < N; k++) {
        beta = (1 - alpha * alpha) * beta;
        double total = 0;
        for (int i = 0; i < k; i++) total += r[k - i - 1] * y[i];
        alpha = -(r[k] + total) / beta;
        for (int i = 0; i < k; i++) z[i] = y[i] + alpha * y[k - i - 1];
        for (int i = 0; i < k; i++) y[i] = z[i];
        y[k] = alpha;
    }
}

double checksum(void) { return SUM(y); }
