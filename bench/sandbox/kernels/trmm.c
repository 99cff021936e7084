/* B = alpha A' B for a triangular A with ones on its diagonal */
#include "kernel.h"
enum { M = SIZE(20, 200, 1000), N = SIZE(30, 240, 1200) };
static double A[M][M], B[M][N];
static const double alpha = 1.5;

void init(void) {
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < M; j++) A[i][j] = j < i ? (double)((i + j) % M) / M : j == i;
        for (int j = 0; j < N; j++) B[i][j] = (double)((N + i - j) % N) / N;
    }
}

void kernel(void) {
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            for (int k = i + 1; k < M; k++) B[i][j] += A[k][i] * B[k][j];
            B[i][j] *= alpha;
        }
}

double checksum(void) { return SUM(B); }
