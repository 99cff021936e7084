/* What a kernel consists of. Sizes are those that are published for this kind of kernel: each kernel
 * names three, and the compiler's command line chooses with -DSIZE_LARGE, -DSIZE_MEDIUM or none. */

#ifndef KERNEL_H
#define KERNEL_H

#if defined SIZE_LARGE
#define SIZE(mini, medium, large) (large)
#elif defined SIZE_MEDIUM
#define SIZE(mini, medium, large) (medium)
#else
#define SIZE(mini, medium, large) (mini)
#endif

/* Sets the inputs; called before every run and not timed. */
void init(void);
/* The loops that are timed. */
void kernel(void);
/* A sum over all results. */
double checksum(void);

/* Adds up a static array of doubles of any shape. */
#define SUM(array) sum((const double *)(array), sizeof(array) / sizeof(double))
double sum(const double *values, unsigned long count);

#endif
