/* A = A + u1 v1' + u2 v2', x = beta A' y + z, w = alpha A x */
#include "kernel.h"
enum { N = SIZE(40, 400, 2000) };
static double A[N][N], u1[N], v1[N], u2[N], v2[N], w[N], x[N], y[N], z[N];
static const double alpha = 1.5, beta = 1.2;

void init(void) {
    for (int i = 0; i < N; i++) {
        double part = (double)(i + 1) / N;
        u1[i] = i;
        u2[i] = part / 2;
        v1[i] = part / 4;
        v2[i] = part / 6;
        y[i] = part / 8;
        z[i] = part / 9;
        x[i] = 0;
        w[i] = 0;
        for (int j = 0; j < N; j++) A[i][j] = (double)(i * j % N) / N;
    }
}

void kernel(void) {
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) A[i][j] += u1[i] * v1[j] + u2[i] * v2[j];
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) x[i] += beta * A[j][i] * y[j];
    for (int i = 0; i < N; i++) x[i] += z[i];
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) w[i] += alpha * A[i][j] * x[j];
}

double checksum(void) { return SUM(w); }
