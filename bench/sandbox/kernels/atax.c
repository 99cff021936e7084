/* y = transposed(A) A x */
#include "kernel.h"
enum { M = SIZE(38, 390, 1900), N = SIZE(42, 410, 2100) };
static double A[M][N], x[N], y[N], tmp[M];

void init(void) {
    for (int j = 0; j < N; j++) x[j] = 1 + (double)j / N;
    for (int i = 0; i < M; i++) for (int j = 0; j < N; j++) A[i][j] = (double)((i + j) % N) / (5 * M);
}

void kernel(void) {
    for (int j = 0; j < N; j++) y[j] = 0;
    for (int i = 0; i < M; i++) {
        tmp[i] = 0;
        for (int j = 0; j < N; j++) tmp[i] += A[i][j] * x[j];
        for (int j = 0; j < N; j++) y[j] += A[i][j] * tmp[i];
    }
}

double checksum(void) { return SUM(y); }
