/* A stencil of three points */
#include "kernel.h"
enum { STEPS = SIZE(20, 100, 500), N = SIZE(30, 400, 2000) };
static double A[N], B[N];

void init(void) {
    for (int i = 0; i < N; i++) {
        A[i] = ((double)i + 2) / N;
        B[i] = ((double)i + 3) / N;
    }
}

void kernel(void) {
    for (int t = 0; t < STEPS; t++) {
        for (int i = 1; i < N - 1; i++) B[i] = 0.33333 * (A[i - 1] + A[i] + A[i + 1]);
        for (int i = 1; i < N - 1; i++) A[i] = 0.33333 * (B[i - 1] + B[i] + B[i + 1]);
    }
}

double checksum(void) { return SUM(A); }
