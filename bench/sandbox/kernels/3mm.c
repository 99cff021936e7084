/* G = (A B) (C D) */
#include "kernel.h"
enum {
    NI = SIZE(16, 180, 800), NJ = SIZE(18, 190, 900), NK = SIZE(20, 200, 1000),
    NL = SIZE(22, 210, 1100), NM = SIZE(24, 220, 1200)
};
static double A[NI][NK], B[NK][NJ], C[NJ][NM], D[NM][NL], E[NI][NJ], F[NJ][NL], G[NI][NL];

void init(void) {
    for (int i = 0; i < NI; i++) for (int k = 0; k < NK; k++) A[i][k] = (double)((i * k + 1) % NI) / (5 * NI);
    for (int k = 0; k < NK; k++) for (int j = 0; j < NJ; j++) B[k][j] = (double)((k * (j + 1) + 2) % NJ) / (5 * NJ);
    for (int j = 0; j < NJ; j++) for (int m = 0; m < NM; m++) C[j][m] = (double)(j * (m + 3) % NL) / (5 * NL);
    for (int m = 0; m < NM; m++) for (int l = 0; l < NL; l++) D[m][l] = (double)((m * (l + 2) + 2) % NK) / (5 * NK);
}

void kernel(void) {
    for (int i = 0; i < NI; i++)
        for (int j = 0; j < NJ; j++) {
            E[i][j] = 0;
            for (int k = 0; k < NK; k++) E[i][j] += A[i][k] * B[k][j];
        }
    for (int j = 0; j < NJ; j++)
        for (int l = 0; l < NL; l++) {
            F[j][l] = 0;
            for (int m = 0; m < NM; m++) F[j][l] += C[j][m] * D[m][l];
        }
    for (int i = 0; i < NI; i++)
        for (int l = 0; l < NL; l++) {
            G[i][l] = 0;
            for (int j = 0; j < NJ; j++) G[i][l] += E[i][j] * F[j][l];
        }
}

double checksum(void) { return SUM(G); }
