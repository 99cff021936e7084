/* A = Q R by Gram's and Schmidt's method, modified */
#include <math.h>

#include "kernel.h"
enum { M = SIZE(20, 200, 1000), N = SIZE(30, 240, 1200) };
static double A[M][N], Q[M][N], R[N][N];

void init(void) {
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            A[i][j] = (double)(i * j % M) / M * 100 + 10 + (i == j ? 50 : 0);
            Q[i][j] = 0;
        }
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) R[i][j] = 0;
}

void kernel(void) {
    for (int k = 0; k < N; k++) {
        double norm = 0;
        for (int i = 0; i < M; i++) norm += A[i][k] * A[i][k];
        R[k][k] = sqrt(norm);
        for (int i = 0; i < M; i++) Q[i][k] = A[i][k] / R[k][k];
        for (int j = k + 1; j < N; j++) {
            R[k][j] = 0;
            for (int i = 0; i < M; i++) R[k][j] += Q[i][k] * A[i][j];
            for (int i = 0; i < M; i++) A[i][j] -= Q[i][k] * R[k][j];
        }
    }
}

/* Columns beyond the rank are rounding errors, whose signs say nothing. */
double checksum(void) {
    double total = 0;
    for (int i = 0; i < M / 2; i++) for (int j = i; j < M / 2; j++) total += R[i][j];
    return total;
}
