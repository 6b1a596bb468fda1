/* The interface of the kernel that perturb.c defines and describes. */
#ifndef COVEY_PERTURB_H
#define COVEY_PERTURB_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The values of `block`: each block of a model has its own directions. */
enum { COVEY_FRONT_BLOCK = 0, COVEY_BACK_BLOCK = 1 };

/* Args: out and clean hold n floats and are the same array or do not overlap; start is the place of the first one in
 * the block; seeds and scales hold n_seeds values; n and n_seeds are at least 1, start + n is at most 2^64 - 1. */
void covey_perturb(float *out, const float *clean, uint64_t n, uint64_t start, const uint64_t *seeds,
                   const float *scales, uint64_t n_seeds, uint64_t block);

/* Changes whenever covey_perturb's arguments change. */
uint32_t covey_perturb_abi(void);

#ifdef __cplusplus
}
#endif

#endif
