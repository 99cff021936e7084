/* L x = b by forward substitution */
#include "kernel.h"
enum { N = SIZE(40, 400, 2000) };
static double L[N][N], x[N], b[N];

void init(void) {
    for (int i = 0; i < N; i++) {
        b[i] = i;
        for (int j = 0; j <= i; j++) L[i][j] = (double)(i + N - j + 1) * 2 / N;
    }
}

void kernel(void) {
    for (int i = 0; i < N; i++) {
        x[i] = b[i];
        for (int j = 0; j < i; j++) x[i] -= L[i][j] * x[j];
        x[i] /= L[i][i];
    }
}

double checksum(void) { return SUM(x); }
