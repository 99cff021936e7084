/* Maxwell's equations in two dimensions, finite differences in the time domain */
#include "kernel.h"
enum { STEPS = SIZE(20, 100, 500), NX = SIZE(20, 200, 1000), NY = SIZE(30, 240, 1200) };
static double ex[NX][NY], ey[NX][NY], hz[NX][NY], source[STEPS];

void init(void) {
    for (int t = 0; t < STEPS; t++) source[t] = t;
    for (int i = 0; i < NX; i++)
        for (int j = 0; j < NY; j++) {
            ex[i][j] = (double)i * (j + 1) / NX;
            ey[i][j] = (double)i * (j + 2) / NY;
            hz[i][j] = (double)i * (j + 3) / NX;
        }
}

void kernel(void) {
    for (int t = 0; t < STEPS; t++) {
        for (int j = 0; j < NY; j++) ey[0][j] = source[t];
        for (int i = 1; i < NX; i++) for (int j = 0; j < NY; j++) ey[i][j] -= 0.5 * (hz[i][j] - hz[i - 1][j]);
        for (int i = 0; i < NX; i++) for (int j = 1; j < NY; j++) ex[i][j] -= 0.5 * (hz[i][j] - hz[i][j - 1]);
        for (int i = 0; i < NX - 1; i++)
            for (int j = 0; j < NY - 1; j++)
                hz[i][j] -= 0.7 * (ex[i][j + 1] - ex[i][j] + ey[i + 1][j] - ey[i][j]);
    }
}

double checksum(void) { return SUM(ex) + SUM(ey) + SUM(hz); }
