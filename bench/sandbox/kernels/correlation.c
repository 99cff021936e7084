/* The correlation of every two columns of a table */
#include <math.h>

#include "kernel.h"
enum { M = SIZE(28, 240, 1200), N = SIZE(32, 260, 1400) };
static double data[N][M], corr[M][M], mean[M], stddev[M];

void init(void) {
    for (int i = 0; i < N; i++) for (int j = 0; j < M; j++) data[i][j] = (double)(i * j) / M + i;
}

void kernel(void) {
    const double n = N, eps = 0.1;
    for (int j = 0; j < M; j++) {
        mean[j] = 0;
        for (int i = 0; i < N; i++) mean[j] += data[i][j];
        mean[j] /= n;
    }
    for (int j = 0; j < M; j++) {
        stddev[j] = 0;
        for (int i = 0; i < N; i++) stddev[j] += (data[i][j] - mean[j]) * (data[i][j] - mean[j]);
        stddev[j] = sqrt(stddev[j] / n);
        if (stddev[j] <= eps) stddev[j] = 1;
    }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < M; j++) {
            data[i][j] -= mean[j];
            data[i][j] /= sqrt(n) * stddev[j];
        }
    for (int i = 0; i < M - 1; i++) {
        corr[i][i] = 1;
        for (int j = i + 1; j < M; j++) {
            corr[i][j] = 0;
            for (int k = 0; k < N; k++) corr[i][j] += data[k][i] * data[k][j];
            corr[j][i] = corr[i][j];
        }
    }
    corr[M - 1][M - 1] = 1;
}

double checksum(void) { return SUM(corr); }
