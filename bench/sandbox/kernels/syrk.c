/* The lower half of C = alpha A A' + beta C */
#include "kernel.h"
enum { M = SIZE(20, 200, 1000), N = SIZE(30, 240, 1200) };
static double A[N][M], C[N][N];
static const double alpha = 1.5, beta = 1.2;

void init(void) {
    for (int i = 0; i < N; i++) for (int j = 0; j < M; j++) A[i][j] = (double)((i * j + 1) % N) / N;
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) C[i][j] = (double)((i * j + 2) % M) / M;
}

void kernel(void) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j <= i; j++) C[i][j] *= beta;
        for (int k = 0; k < M; k++)
            for (int j = 0; j <= i; j++) C[i][j] += alpha * A[i][k] * A[j][k];
    }
}

double checksum(void) { return SUM(C); }
