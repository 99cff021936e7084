/* C = alpha A B + beta C for a symmetric A, of which the lower half is stored */
#include "kernel.h"
enum { M = SIZE(20, 200, 1000), N = SIZE(30, 240, 1200) };
static double A[M][M], B[M][N], C[M][N];
static const double alpha = 1.5, beta = 1.2;

void init(void) {
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            C[i][j] = (double)((i + j) % 100) / M;
            B[i][j] = (double)((N + i - j) % 100) / M;
        }
    for (int i = 0; i < M; i++) for (int j = 0; j < M; j++) A[i][j] = j <= i ? (double)((i + j) % 100) / M : -999;
}

void kernel(void) {
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double above = 0;
            for (int k = 0; k < i; k++) {
                C[k][j] += alpha * B[i][j] * A[i][k];
                above += B[k][j] * A[i][k];
            }
            C[i][j] = beta * C[i][j] + alpha * B[i][j] * A[i][i] + alpha * above;
        }
}

double checksum(void) { return SUM(C); }
