/* A stencil of nine points, in place */
#include "kernel.h"
enum { STEPS = SIZE(20, 100, 500), N = SIZE(40, 400, 2000) };
static double A[N][N];

void init(void) {
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) A[i][j] = ((double)i * (j + 2) + 2) / N;
}

void kernel(void) {
    for (int t = 0; t < STEPS; t++)
        for (int i = 1; i < N - 1; i++)
            for (int j = 1; j < N - 1; j++)
                A[i][j] = (A[i - 1][j - 1] + A[i - 1][j] + A[i - 1][j + 1] + A[i][j - 1] + A[i][j] +
                           A[i][j + 1] + A[i + 1][j - 1] + A[i + 1][j] + A[i + 1][j + 1]) /
                          9;
}

double checksum(void) { return SUM(A); }
