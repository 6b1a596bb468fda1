/* Perturb and replay: out[i] = clean[i] + c_1 z_1[i] + c_2 z_2[i] + ..., one float32 addition a term, in this order.
 *
 * z_k[i] is +1 where bit i of the stream of Philox 4x64-10, keyed by (seed_k, block), is 0, and -1 where it is 1: see
 * edge_runtime/perturbation.py. The product c*z only flips c's sign bit. All terms are added to a tile while it is in
 * the first-level cache, so many seeds cost one pass over memory.
 *
 * Plain C11, no Python, no state: edge_runtime/kernel_native.py loads it with ctypes, which lets other threads run.
 * The result has the same bits on every machine: compile with -ffp-contract=off and without -ffast-math.
 */
#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "little-endian machines only: the formats of Covey's files and messages are little-endian"
#endif
#if FLT_EVAL_METHOD != 0
#error "float arithmetic must be done in float32: additions in a wider type give other bits"
#endif
#ifdef __FAST_MATH__
#error "-ffast-math may reorder additions: the bits would differ"
#endif

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL_ROUNDS _Pragma("GCC unroll 10")
#else
#define UNROLL_ROUNDS
#endif

/* out may be in itself, and overlaps it in no other way: no element depends on another one. */
#if defined(__clang__)
#define ELEMENTS_ARE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ELEMENTS_ARE_INDEPENDENT _Pragma("GCC ivdep")
#else
#define ELEMENTS_ARE_INDEPENDENT
#endif

#define ABI_VERSION 1
#define ROUNDS 10
#define BITS_PER_COUNTER 256
#define TILE 4096 /* parameters: 16 KiB, half of a small first-level cache */

INLINE uint64_t multiply(uint64_t a, uint64_t b, uint64_t *high)
{
#ifdef __SIZEOF_INT128__
    __extension__ typedef unsigned __int128 wide;
    wide product = (wide)a * b;
    *high = (uint64_t)(product >> 64);
    return (uint64_t)product;
#else
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t middle = a1 * b0 + (a0 * b0 >> 32);
    uint64_t other = a0 * b1 + (uint32_t)middle;
    *high = a1 * b1 + (middle >> 32) + (other >> 32);
    return a * b;
#endif
}

/* The four words that counter `counter` gives. */
INLINE void philox(uint64_t words[4], uint64_t seed, uint64_t block, uint64_t counter)
{
    uint64_t x0 = counter, x1 = 0, x2 = 0, x3 = 0;
    UNROLL_ROUNDS
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t high0, high1;
        uint64_t low0 = multiply(UINT64_C(0xD2E7470EE14C6C93), x0, &high0);
        uint64_t low1 = multiply(UINT64_C(0xCA5A826395121157), x2, &high1);
        x0 = high1 ^ x1 ^ seed;
        x1 = low1;
        x2 = high0 ^ x3 ^ block;
        x3 = low0;
        seed += UINT64_C(0x9E3779B97F4A7C15);
        block += UINT64_C(0xBB67AE8584CAA73B);
    }
    words[0] = x0;
    words[1] = x1;
    words[2] = x2;
    words[3] = x3;
}

INLINE float as_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define SIGN UINT32_C(0x80000000)
#define FOUR_BITS(n) UINT32_C(1) << (n), UINT32_C(2) << (n), UINT32_C(4) << (n), UINT32_C(8) << (n)

static const uint32_t BIT[32] = {FOUR_BITS(0),  FOUR_BITS(4),  FOUR_BITS(8),  FOUR_BITS(12),
                                 FOUR_BITS(16), FOUR_BITS(20), FOUR_BITS(24), FOUR_BITS(28)};

/* 32 parameters. Compilers make vectors of both ways; a shift of its own for each lane exists from AVX2 on. */
INLINE void add_32(float *out, const float *in, uint32_t bits, uint32_t term, int lanes_shift)
{
    if (lanes_shift) {
        ELEMENTS_ARE_INDEPENDENT
        for (unsigned j = 0; j < 32; j++)
            out[j] = in[j] + as_float(term ^ ((bits << (31 - j)) & SIGN));
    } else {
        ELEMENTS_ARE_INDEPENDENT
        for (unsigned j = 0; j < 32; j++)
            out[j] = in[j] + as_float(bits & BIT[j] ? term ^ SIGN : term);
    }
}

/* The term of one seed: n parameters from `start` on. */
INLINE void add_term(float *out, const float *in, size_t n, uint64_t start, uint64_t seed, uint64_t block, float scale,
                     int lanes_shift)
{
    uint64_t words[4];
    uint32_t term;
    memcpy(&term, &scale, sizeof term);
    for (size_t done = 0; done < n;) {
        size_t skipped = (size_t)((start + done) % BITS_PER_COUNTER);
        philox(words, seed, block, (start + done) / BITS_PER_COUNTER);
        if (skipped == 0 && n - done >= BITS_PER_COUNTER) {
            for (unsigned half = 0; half < 8; half++) {
                uint32_t bits = (uint32_t)(words[half / 2] >> (32 * (half % 2)));
                add_32(out + done + 32 * half, in + done + 32 * half, bits, term, lanes_shift);
            }
            done += BITS_PER_COUNTER;
            continue;
        }
        for (size_t bit = skipped; bit < BITS_PER_COUNTER && done < n; bit++, done++)
            out[done] = in[done] + as_float(term ^ ((uint32_t)(words[bit / 64] >> (bit % 64)) << 31));
    }
}

INLINE void perturb(float *out, const float *clean, uint64_t n, uint64_t start, const uint64_t *seeds,
                    const float *scales, uint64_t n_seeds, uint64_t block, int lanes_shift)
{
    while (n > 0) {
        size_t size = (size_t)(TILE - start % TILE);
        if (size > n)
            size = (size_t)n;
        const float *in = clean;
        for (uint64_t s = 0; s < n_seeds; s++, in = out)
            add_term(out, in, size, start, seeds[s], block, scales[s], lanes_shift);
        out += size;
        clean += size;
        start += size;
        n -= size;
    }
}

/* x86-64 has wider vectors than a compiler may take for granted: the CPU is asked. WIDEST is for tests. */
#ifndef WIDEST
#define WIDEST 512
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#define ASK_THE_CPU
#define FOR_TARGET(name, target_name)                                                                                  \
    __attribute__((target(target_name))) static void name(float *out, const float *clean, uint64_t n, uint64_t start,  \
                                                          const uint64_t *seeds, const float *scales,                  \
                                                          uint64_t n_seeds, uint64_t block)                            \
    {                                                                                                                  \
        perturb(out, clean, n, start, seeds, scales, n_seeds, block, 1);                                               \
    }
#if WIDEST >= 256
FOR_TARGET(perturb_avx2, "avx2")
#endif
#if WIDEST >= 512
FOR_TARGET(perturb_avx512, "avx512f")
#endif
#endif

/* Args: out and clean hold n floats and are equal or apart; start is the first one's place in the block; seeds and
 * scales hold n_seeds values; n and n_seeds are at least 1, start + n at most 2^64 - 1. */
void covey_perturb(float *out, const float *clean, uint64_t n, uint64_t start, const uint64_t *seeds,
                   const float *scales, uint64_t n_seeds, uint64_t block)
{
#if defined(ASK_THE_CPU) && WIDEST >= 512
    if (__builtin_cpu_supports("avx512f")) {
        perturb_avx512(out, clean, n, start, seeds, scales, n_seeds, block);
        return;
    }
#endif
#if defined(ASK_THE_CPU) && WIDEST >= 256
    if (__builtin_cpu_supports("avx2")) {
        perturb_avx2(out, clean, n, start, seeds, scales, n_seeds, block);
        return;
    }
#endif
    perturb(out, clean, n, start, seeds, scales, n_seeds, block, 0);
}

/* Changes when covey_perturb's arguments do. */
uint32_t covey_perturb_abi(void)
{
    return ABI_VERSION;
}
