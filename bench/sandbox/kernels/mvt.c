/* x1 = x1 + A y1, x2 = x2 + A' y2 */
#include "kernel.h"
enum { N = SIZE(40, 400, 2000) };
static double A[N][N], x1[N], x2[N], y1[N], y2[N];

void init(void) {
    for (int i = 0; i < N; i++) {
        x1[i] = (double)(i % N) / N;
        x2[i] = (double)((i + 1) % N) / N;
        y1[i] = (double)((i + 3) % N) / N;
        y2[i] = (double)((i + 4) % N) / N;
        for (int j = 0; j < N; j++) A[i][j] = (double)(i * j % N) / N;
    }
}

void kernel(void) {
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) x1[i] += A[i][j] * y1[j];
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) x2[i] += A[j][i] * y2[j];
}

double checksum(void) { return SUM(x1) + SUM(x2); }
