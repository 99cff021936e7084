/* A[r][q][.] = A[r][q][.] C4: one matrix applied to every vector of a three-dimensional table */
#include "kernel.h"
enum { NQ = SIZE(8, 40, 140), NR = SIZE(10, 50, 150), NP = SIZE(12, 60, 160) };
static double A[NR][NQ][NP], C4[NP][NP], line[NP];

void init(void) {
    for (int r = 0; r < NR; r++)
        for (int q = 0; q < NQ; q++)
            for (int p = 0; p < NP; p++) A[r][q][p] = (double)((r * q + p) % NP) / NP;
    for (int s = 0; s < NP; s++) for (int p = 0; p < NP; p++) C4[s][p] = (double)(s * p % NP) / NP;
}

void kernel(void) {
    for (int r = 0; r < NR; r++)
        for (int q = 0; q < NQ; q++) {
            for (int p = 0; p < NP; p++) {
                line[p] = 0;
                for (int s = 0; s < NP; s++) line[p] += A[r][q][s] * C4[s][p];
            }
            for (int p = 0; p < NP; p++) A[r][q][p] = line[p];
        }
}

double checksum(void) { return SUM(A); }
