/* What every file of the ternary kernels shares: the platform, the layout of weights, the table of an instruction set.
 *
 * Ternary weights lie in tiles of 16 outputs x 64 inputs, 256 bytes (research/nn/tiles.py): byte 64 i + 4 n + j holds, in
 * its bit pair s, the weight of output n and input 16 i + 4 s + j, plus one. So 64 bytes masked to one bit pair are four
 * inputs of sixteen outputs, as VPDPBUSD and AMX want them. A pair that is not shifted down makes its sum 4^s times too
 * large, which is corrected once at the end. Int8 weights lie row by row, each row padded with zeros to whole tiles.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "platform.h"
#include <stdlib.h>
#include <string.h>

#if (defined(__x86_64__) || defined(__amd64__)) && !defined(GROKBIT_PORTABLE)
#define X86 1
#include <cpuid.h>
#include <immintrin.h>
#if __GNUC__ >= 11 || __clang_major__ >= 12
#define AVXVNNI TARGET("avx2,avxvnni")
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define AMX 1
#endif
#endif
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(GROKBIT_PORTABLE)
#include <arm_neon.h>
#if defined(__ARM_FEATURE_DOTPROD)
#define DOTPROD
#elif !defined(__clang__)
#define DOTPROD TARGET("arch=armv8.2-a+dotprod")
#elif __clang_major__ >= 16 /* before, arm_neon.h offers only what the whole file is compiled for */
#define DOTPROD TARGET("dotprod")
#endif
#ifdef DOTPROD
#define ARM 1
#endif
#endif
#if ARM && defined(__linux__)
#include <sys/auxv.h>
#endif

#define TARGET(features) __attribute__((target(features)))
/* Weights are read once, in order: prefetch them to the second cache long before, to the first one shortly before. */
#define AHEAD(w) (__builtin_prefetch((w) + 4096, 0, 2), __builtin_prefetch((w) + 768, 0, 3))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { OUTS = 16, INS = 64, TILE = 256, GROUP = 16 };
enum { NO_MEMORY = 1 };

typedef struct {
    const void *weights; /* tiles of two bits, or rows of int8 */
    const float *scale;  /* one an output */
    int32_t out, in;
    int32_t bits; /* 2 or 8 */
} Matrix;

static INLINE size_t ceil_div(size_t n, size_t unit) { return (n + unit - 1) / unit; }

/* Row r of x has its next 64 codes each `stride` bytes, at 64 r within them; sums[16 r + n] is of output n. */
typedef void Ternary(const uint8_t *w, const int8_t *x, size_t stride, int rows, size_t tiles, int32_t *sums);
/* `outs` rows of weights of 64 * tiles bytes each, times one row of x. */
typedef void Bytes(const int8_t *w, int outs, const int8_t *x, size_t stride, size_t tiles, int32_t *sums);

/* The kernels of one instruction set, and whether this machine has it. */
typedef struct {
    const char *name;
    int (*usable)(void);
    Ternary *ternary; /* sums of (w + 1) x */
    Bytes *bytes;     /* sums of w x */
    float (*quantize)(const float *x, size_t n, int8_t *q, size_t stride, int32_t *sum);
    void (*norm)(const float *x, const float *weight, size_t n, float *y);
    void (*gate)(float *gate, const float *up_, size_t n, int squared);
    void (*attend)(const float *q, const float *k, const float *v, size_t count, size_t width, float *scores, float *y);
} Isa;

/* This thread's share of `count` units, as strips of sixteen outputs. */
static INLINE void split_work(size_t count, size_t thread, size_t threads, size_t *from, size_t *to) {
    *from = count * thread / threads;
    *to = count * (thread + 1) / threads;
}
