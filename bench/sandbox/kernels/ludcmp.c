/* A x = b through L U */
#include "kernel.h"
enum { N = SIZE(40, 400, 2000) };
static double A[N][N], b[N], x[N], y[N];

void init(void) {
    for (int i = 0; i < N; i++) {
        b[i] = (double)(i + 1) / N / 2 + 4;
        x[i] = y[i] = 0;
        for (int j = 0; j < N; j++) A[i][j] = i == j ? 2.0 * N : (double)((i + 2 * j) % N) / N;
    }
}

void kernel(void) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < i; j++) {
            double w = A[i][j];
            for (int k = 0; k < j; k++) w -= A[i][k] * A[k][j];
            A[i][j] = w / A[j][j];
        }
        for (int j = i; j < N; j++) {
            double w = A[i][j];
            for (int k = 0; k < i; k++) w -= A[i][k] * A[k][j];
            A[i][j] = w;
        }
    }
    for (int i = 0; i < N; i++) {
        double w = b[i];
        for (int j = 0; j < i; j++) w -= A[i][j] * y[j];
        y[i] = w;
    }
    for (int i = N - 1; i >= 0; i--) {
        double w = y[i];
        for (int j = i + 1; j < N; j++) w -= A[i][j] * x[j];
        x[i] = w / A[i][i];
    }
}

double checksum(void) { return SUM(x); }
