/* Runs a kernel until as many milliseconds were spent in it as the first argument says, at least once:
 * a line with the seconds of each run, then one with the checksum of the last. */

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernel.h"

double sum(const double *values, unsigned long count) {
    double total = 0;
    for (unsigned long i = 0; i < count; i++) total += values[i] * (1.0 + (double)(i % 7));
    return total;
}

static double now_s(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) {
        perror("clock_gettime");
        exit(1);
    }
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char **argv) {
    double wanted_s = argc > 1 ? atof(argv[1]) / 1000 : 0, spent_s = 0;
    do {
        init();
        double start_s = now_s();
        kernel();
        double run_s = now_s() - start_s;
        printf("%.9f\n", run_s);
        spent_s += run_s;
    } while (spent_s < wanted_s);
    printf("checksum %.12e\n", checksum());
    return 0;
}
