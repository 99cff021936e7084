/* A stencil of five points */
#include "kernel.h"
enum { STEPS = SIZE(20, 100, 500), N = SIZE(30, 250, 1300) };
static double A[N][N], B[N][N];

void init(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            A[i][j] = ((double)i * (j + 2) + 2) / N;
            B[i][j] = ((double)i * (j + 3) + 3) / N;
        }
}

static void step(double to[N][N], double from[N][N]) {
    for (int i = 1; i < N - 1; i++)
        for (int j = 1; j < N - 1; j++)
            to[i][j] = 0.2 * (from[i][j] + from[i][j - 1] + from[i][j + 1] + from[i + 1][j] + from[i - 1][j]);
}

void kernel(void) {
    for (int t = 0; t < STEPS; t++) {
        step(B, A);
        step(A, B);
    }
}

double checksum(void) { return SUM(A); }
