/* Writes what the kernel gives for one golden case to standard output, as raw float32.
 *
 *     golden SIZE OFFSET IN_PLACE BLOCK [SEED SCALE]...
 *
 * SCALE is a float32's bits in hexadecimal. golden.txt has the cases and the SHA-256 of what comes out.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../edge_runtime/native/kernel/perturb.h"

#define MAX_SEEDS 16

int main(int argc, char **argv)
{
    uint64_t seeds[MAX_SEEDS];
    float scales[MAX_SEEDS];
    if (argc < 7 || argc % 2 == 0 || (argc - 5) / 2 > MAX_SEEDS)
        return 2;
    size_t size = (size_t)strtoull(argv[1], NULL, 10);
    uint64_t offset = strtoull(argv[2], NULL, 10), block = strtoull(argv[4], NULL, 10);
    int in_place = atoi(argv[3]), n_seeds = (argc - 5) / 2;
    for (int k = 0; k < n_seeds; k++) {
        uint32_t bits = (uint32_t)strtoul(argv[6 + 2 * k], NULL, 16);
        seeds[k] = strtoull(argv[5 + 2 * k], NULL, 10);
        memcpy(&scales[k], &bits, sizeof bits);
    }
    float *clean = malloc((size + 1) * sizeof *clean), *out = malloc((size + 1) * sizeof *out);
    if (!clean || !out)
        return 1;
    for (size_t i = 0; i < size; i++) {
        /* A number of every size, both signs, subnormal ones too; no infinity, no NaN. */
        uint32_t bits = (uint32_t)i * UINT32_C(2654435761) % UINT32_C(0x7F000000) ^ ((uint32_t)i << 31);
        memcpy(&clean[i], &bits, sizeof bits);
    }
    covey_perturb(in_place ? clean : out, clean, size, offset, seeds, scales, (uint64_t)n_seeds, block);
    return fwrite(in_place ? clean : out, sizeof *out, size, stdout) != size;
}
