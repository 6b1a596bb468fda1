/* Perturb and replay: out[i] = clean[i] + c_1 z_1[i] + c_2 z_2[i] + ..., one float32 addition per term, in this order.
 *
 * z_k[i] is +1 where bit i of the stream of Philox 4x64-10, keyed by (seed_k, block), is 0, and -1 where it is 1: see
 * edge_runtime/perturbation/perturb.py. The product c*z only flips c's sign bit. All terms are added to one tile while
 * it is in the first-level cache, so many seeds cost one pass over memory.
 *
 * Plain C11 without Python and without state. edge_runtime/perturbation/native_kernel.py loads it with ctypes, which
 * releases the interpreter's lock; the core for apps (core/) links it. The result has the same bits on every machine:
 * compile with -ffp-contract=off and without -ffast-math.
 */
#include "perturb.h"

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

/* out may be the same array as in, and does not overlap it in any other way: no element depends on another one. */
#if defined(__clang__)
#define ELEMENTS_ARE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ELEMENTS_ARE_INDEPENDENT _Pragma("GCC ivdep")
#else
#define ELEMENTS_ARE_INDEPENDENT
#endif

/* Compilers may not assume the wider vectors of x86-64, so the CPU is asked at run time. Tests set WIDEST. */
#ifndef WIDEST
#define WIDEST 512
#endif
#if defined(__x86_64__) && defined(__GNUC__) && WIDEST >= 256
#define ASK_THE_CPU
#if WIDEST >= 512
#define HAS_AVX512
#include <immintrin.h>
#endif
#endif

#define ABI_VERSION 1
#define ROUNDS 10
#define MULTIPLIER_0 UINT64_C(0xD2E7470EE14C6C93)
#define MULTIPLIER_1 UINT64_C(0xCA5A826395121157)
#define WEYL_0 UINT64_C(0x9E3779B97F4A7C15)
#define WEYL_1 UINT64_C(0xBB67AE8584CAA73B)
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

/* The four words of a counter. */
INLINE void philox(uint64_t words[4], uint64_t seed, uint64_t block, uint64_t counter)
{
    uint64_t x0 = counter, x1 = 0, x2 = 0, x3 = 0;
    UNROLL_ROUNDS
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t high0, high1;
        uint64_t low0 = multiply(MULTIPLIER_0, x0, &high0);
        uint64_t low1 = multiply(MULTIPLIER_1, x2, &high1);
        x0 = high1 ^ x1 ^ seed;
        x1 = low1;
        x2 = high0 ^ x3 ^ block;
        x3 = low0;
        seed += WEYL_0;
        block += WEYL_1;
    }
    words[0] = x0;
    words[1] = x1;
    words[2] = x2;
    words[3] = x3;
}

#ifdef HAS_AVX512
/* Eight 64-bit products, computed from 32-bit products. */
__attribute__((target("avx512f"))) static inline __m512i multiply_8(uint64_t a, __m512i b, __m512i *high)
{
    const __m512i a0 = _mm512_set1_epi64((int64_t)a), a1 = _mm512_srli_epi64(a0, 32), b1 = _mm512_srli_epi64(b, 32);
    const __m512i low_half = _mm512_set1_epi64(UINT32_MAX), lowest = _mm512_mul_epu32(a0, b);
    __m512i middle = _mm512_add_epi64(_mm512_mul_epu32(a0, b1), _mm512_srli_epi64(lowest, 32));
    __m512i other = _mm512_add_epi64(_mm512_mul_epu32(a1, b), _mm512_and_si512(middle, low_half));
    *high = _mm512_add_epi64(_mm512_add_epi64(_mm512_mul_epu32(a1, b1), _mm512_srli_epi64(middle, 32)),
                             _mm512_srli_epi64(other, 32));
    return _mm512_or_si512(_mm512_slli_epi64(other, 32), _mm512_and_si512(lowest, low_half));
}

/* philox for eight counters: words[8 * w + c] is word w of counter c. */
__attribute__((target("avx512f"))) static void philox_8(uint64_t words[32], uint64_t seed, uint64_t block,
                                                        uint64_t counter)
{
    __m512i x0 = _mm512_add_epi64(_mm512_set1_epi64((int64_t)counter), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    __m512i x1 = _mm512_setzero_si512(), x2 = x1, x3 = x1;
    UNROLL_ROUNDS
    for (int round = 0; round < ROUNDS; round++) {
        __m512i high0, high1;
        __m512i low0 = multiply_8(MULTIPLIER_0, x0, &high0);
        __m512i low1 = multiply_8(MULTIPLIER_1, x2, &high1);
        x0 = _mm512_xor_si512(_mm512_xor_si512(high1, x1), _mm512_set1_epi64((int64_t)seed));
        x1 = low1;
        x2 = _mm512_xor_si512(_mm512_xor_si512(high0, x3), _mm512_set1_epi64((int64_t)block));
        x3 = low0;
        seed += WEYL_0;
        block += WEYL_1;
    }
    _mm512_storeu_si512(words, x0);
    _mm512_storeu_si512(words + 8, x1);
    _mm512_storeu_si512(words + 16, x2);
    _mm512_storeu_si512(words + 24, x3);
}
#endif

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

/* One term, c or -c: the sign is flipped where bit j is 1. Compilers vectorise both variants; the first needs a
 * separate shift for each lane, which x86 has from AVX2 on. */
INLINE float term(uint32_t c, uint32_t bits, unsigned j, int width)
{
    if (width)
        return as_float(c ^ ((bits << (31 - j)) & SIGN));
    return as_float(c ^ (bits & BIT[j] ? SIGN : 0));
}

/* 32 parameters, one or two terms. */
INLINE void add_32(float *out, const float *in, const uint32_t *bits, const uint32_t *c, int n_terms, int width)
{
    if (n_terms == 2) {
        ELEMENTS_ARE_INDEPENDENT
        for (unsigned j = 0; j < 32; j++)
            out[j] = (in[j] + term(c[0], bits[0], j, width)) + term(c[1], bits[1], j, width);
    } else {
        ELEMENTS_ARE_INDEPENDENT
        for (unsigned j = 0; j < 32; j++)
            out[j] = in[j] + term(c[0], bits[0], j, width);
    }
}

/* The terms of one or two seeds: n parameters beginning at `start`. */
INLINE void add_terms(float *out, const float *in, size_t n, uint64_t start, const uint64_t *seeds, const float *scales,
                      int n_terms, uint64_t block, int width)
{
    const size_t counters = width == 512 ? 8 : 1;
    uint64_t words[2][32];
    uint32_t c[2], bits[2];
    memcpy(c, scales, (size_t)n_terms * sizeof *c);
    for (size_t done = 0; done < n;) {
        for (int t = 0; t < n_terms; t++) {
#ifdef HAS_AVX512
            if (width == 512) {
                philox_8(words[t], seeds[t], block, (start + done) / BITS_PER_COUNTER);
                continue;
            }
#endif
            philox(words[t], seeds[t], block, (start + done) / BITS_PER_COUNTER);
        }
        size_t bit = (size_t)((start + done) % BITS_PER_COUNTER);
        size_t whole = bit ? 0 : (n - done) / BITS_PER_COUNTER;
        if (whole > counters)
            whole = counters;
        for (size_t k = 0; k < whole; k++) {
            for (size_t half = 0; half < 8; half++, done += 32) {
                for (int t = 0; t < n_terms; t++)
                    bits[t] = (uint32_t)(words[t][half / 2 * counters + k] >> (32 * (half % 2)));
                add_32(out + done, in + done, bits, c, n_terms, width);
            }
        }
        if (whole)
            continue;
        for (; bit < BITS_PER_COUNTER && done < n; bit++, done++) {
            float sum = in[done];
            for (int t = 0; t < n_terms; t++)
                sum += term(c[t], (uint32_t)(words[t][bit / 64 * counters] >> (bit % 64)), 0, width);
            out[done] = sum;
        }
    }
}

INLINE void perturb(float *out, const float *clean, uint64_t n, uint64_t start, const uint64_t *seeds,
                    const float *scales, uint64_t n_seeds, uint64_t block, int width)
{
    while (n > 0) {
        size_t size = (size_t)(TILE - start % TILE);
        if (size > n)
            size = (size_t)n;
        const float *in = clean;
        uint64_t s = 0;
        for (; s + 2 <= n_seeds; s += 2, in = out)
            add_terms(out, in, size, start, seeds + s, scales + s, 2, block, width);
        if (s < n_seeds)
            add_terms(out, in, size, start, seeds + s, scales + s, 1, block, width);
        out += size;
        clean += size;
        start += size;
        n -= size;
    }
}

#ifdef ASK_THE_CPU
#define FOR_TARGET(name, target_name, width)                                                                           \
    __attribute__((target(target_name))) static void name(float *out, const float *clean, uint64_t n, uint64_t start,  \
                                                          const uint64_t *seeds, const float *scales,                  \
                                                          uint64_t n_seeds, uint64_t block)                            \
    {                                                                                                                  \
        perturb(out, clean, n, start, seeds, scales, n_seeds, block, width);                                           \
    }
FOR_TARGET(perturb_avx2, "avx2", 256)
#ifdef HAS_AVX512
FOR_TARGET(perturb_avx512, "avx512f", 512)
#endif
#endif

void covey_perturb(float *out, const float *clean, uint64_t n, uint64_t start, const uint64_t *seeds,
                   const float *scales, uint64_t n_seeds, uint64_t block)
{
#ifdef HAS_AVX512
    if (__builtin_cpu_supports("avx512f")) {
        perturb_avx512(out, clean, n, start, seeds, scales, n_seeds, block);
        return;
    }
#endif
#ifdef ASK_THE_CPU
    if (__builtin_cpu_supports("avx2")) {
        perturb_avx2(out, clean, n, start, seeds, scales, n_seeds, block);
        return;
    }
#endif
    perturb(out, clean, n, start, seeds, scales, n_seeds, block, 0);
}

uint32_t covey_perturb_abi(void)
{
    return ABI_VERSION;
}
