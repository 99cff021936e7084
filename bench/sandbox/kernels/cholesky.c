/* A = L transposed(L) for a positive definite A, L in its place */
#include <math.h>

#include "kernel.h"
enum { N = SIZE(40, 400, 2000) };
static double A[N][N];

void init(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) A[i][j] = i == j ? 2.0 * N : (double)((i + j) % N) / N;
}

void kernel(void) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < i; j++) {
            for (int k = 0; k < j; k++) A[i][j] -= A[i][k] * A[j][k];
            A[i][j] /= A[j][j];
        }
        for (int k = 0; k < i; k++) A[i][i] -= A[i][k] * A[i][k];
        A[i][i] = sqrt(A[i][i]);
    }
}

double checksum(void) { return SUM(A); }
