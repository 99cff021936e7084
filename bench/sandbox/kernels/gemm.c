/* C = alpha A B + beta C */
#include "kernel.h"
enum { NI = SIZE(20, 200, 1000), NJ = SIZE(25, 220, 1100), NK = SIZE(30, 240, 1200) };
static double A[NI][NK], B[NK][NJ], C[NI][NJ];
static const double alpha = 1.5, beta = 1.2;

void init(void) {
    for (int i = 0; i < NI; i++) for (int j = 0; j < NJ; j++) C[i][j] = (double)((i * j + 1) % NI) / NI;
    for (int i = 0; i < NI; i++) for (int k = 0; k < NK; k++) A[i][k] = (double)(i * (k + 1) % NK) / NK;
    for (int k = 0; k < NK; k++) for (int j = 0; j < NJ; j++) B[k][j] = (double)(k * (j + 2) % NJ) / NJ;
}

void kernel(void) {
    for (int i = 0; i < NI; i++) {
        for (int j = 0; j < NJ; j++) C[i][j] *= beta;
        for (int k = 0; k < NK; k++)
            for (int j = 0; j < NJ; j++) C[i][j] += alpha * A[i][k] * B[k][j];
    }
}

double checksum(void) { return SUM(C); }
