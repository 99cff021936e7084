/* The covariance of every two columns of a table */
#include "kernel.h"
enum { M = SIZE(28, 240, 1200), N = SIZE(32, 260, 1400) };
static double data[N][M], cov[M][M], mean[M];

void init(void) {
    for (int i = 0; i < N; i++) for (int j = 0; j < M; j++) data[i][j] = (double)i * j / M;
}

void kernel(void) {
    const double n = N;
    for (int j = 0; j < M; j++) {
        mean[j] = 0;
        for (int i = 0; i < N; i++) mean[j] += data[i][j];
        mean[j] /= n;
    }
    for (int i = 0; i < N; i++) for (int j = 0; j < M; j++) data[i][j] -= mean[j];
    for (int i = 0; i < M; i++)
        for (int j = i; j < M; j++) {
            cov[i][j] = 0;
            for (int k = 0; k < N; k++) cov[i][j] += data[k][i] * data[k][j];
            cov[i][j] /= n - 1;
            cov[j][i] = cov[i][j];
        }
}

double checksum(void) { return SUM(cov); }
