/* s = transposed(A) r, q = A p */
#include "kernel.h"
enum { M = SIZE(38, 390, 1900), N = SIZE(42, 410, 2100) };
static double A[N][M], s[M], q[N], p[M], r[N];

void init(void) {
    for (int j = 0; j < M; j++) p[j] = (double)(j % M) / M;
    for (int i = 0; i < N; i++) {
        r[i] = (double)(i % N) / N;
        for (int j = 0; j < M; j++) A[i][j] = (double)(i * (j + 1) % N) / N;
    }
}

void kernel(void) {
    for (int j = 0; j < M; j++) s[j] = 0;
    for (int i = 0; i < N; i++) {
        q[i] = 0;
        for (int j = 0; j < M; j++) {
            s[j] += r[i] * A[i][j];
            q[i] += A[i][j] * p[j];
        }
    }
}

double checksum(void) { return SUM(s) + SUM(q); }
