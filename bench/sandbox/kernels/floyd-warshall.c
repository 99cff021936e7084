/* The shortest ways between all pairs of nodes (integers) */
#include "kernel.h"
enum { N = SIZE(60, 500, 2800) };
static int path[N][N];

void init(void) {
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            int far = (i + j) % 13 == 0 || (i + j) % 7 == 0 || (i + j) % 11 == 0;
            path[i][j] = far ? 999 : i * j % 7 + 1;
        }
}

void kernel(void) {
    for (int k = 0; k < N; k++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                int over = path[i][k] + path[k][j];
                path[i][j] = path[i][j] < over ? path[i][j] : over;
            }
}

double checksum(void) {
    double total = 0;
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) total += path[i][j] * (1 + (i + j) % 7);
    return total;
}
