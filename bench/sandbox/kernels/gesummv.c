/* y = alpha A x + beta B x */
#include "kernel.h"
enum { N = SIZE(30, 250, 1300) };
static double A[N][N], B[N][N], x[N], y[N], tmp[N];
static const double alpha = 1.5, beta = 1.2;

void init(void) {
    for (int i = 0; i < N; i++) {
        x[i] = (double)(i % N) / N;
        for (int j = 0; j < N; j++) {
            A[i][j] = (double)((i * j + 1) % N) / N;
            B[i][j] = (double)((i * j + 2) % N) / N;
        }
    }
}

void kernel(void) {
    for (int i = 0; i < N; i++) {
        tmp[i] = 0;
        y[i] = 0;
        for (int j = 0; j < N; j++) {
            tmp[i] += A[i][j] * x[j];
            y[i] += B[i][j] * x[j];
        }
        y[i] = alpha * tmp[i] + beta * y[i];
    }
}

double checksum(void) { return SUM(y); }
