/* How an RNA folds with the most pairs: dynamic programming (integers) */
#include "kernel.h"
enum { N = SIZE(60, 500, 2500) };
static char base[N];
static int table[N][N];

void init(void) {
    for (int i = 0; i < N; i++) {
        base[i] = (char)((i + 1) % 4);
        for (int j = 0; j < N; j++) table[i][j] = 0;
    }
}

static int most(int a, int b) { return a >= b ? a : b; }

void kernel(void) {
    for (int i = N - 1; i >= 0; i--)
        for (int j = i + 1; j < N; j++) {
            table[i][j] = most(table[i][j], table[i][j - 1]);
            if (i + 1 < N) {
                table[i][j] = most(table[i][j], table[i + 1][j]);
                int pair = i < j - 1 && base[i] + base[j] == 3;
                table[i][j] = most(table[i][j], table[i + 1][j - 1] + pair);
            }
            for (int k = i + 1; k < j; k++) table[i][j] = most(table[i][j], table[i][k] + table[k + 1][j]);
        }
}

double checksum(void) {
    double total = 0;
    for (int i = 0; i < N; i++) for (int j = i; j < N; j++) total += table[i][j] * (1 + (i + j) % 7);
    return total;
}
