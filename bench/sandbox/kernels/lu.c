/* A = L U in place, without pivoting */
#include "kernel.h"
enum { N = SIZE(40, 400, 2000) };
static double A[N][N];

void init(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) A[i][j] = i == j ? 2.0 * N : (double)((i + 2 * j) % N) / N;
}

void kernel(void) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < i; j++) {
            for (int k = 0; k < j; k++) A[i][j] -= A[i][k] * A[k][j];
            A[i][j] /= A[j][j];
        }
        for (int j = i; j < N; j++) for (int k = 0; k < i; k++) A[i][j] -= A[i][k] * A[k][j];
    }
}

double checksum(void) { return SUM(A); }
