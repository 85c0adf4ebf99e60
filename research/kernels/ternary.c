/* Ternary and int8 layers on a CPU, and one token through a whole packed transformer.
 *
 * A layer rounds each row of its input to int8, q = rint(x * 127 / absmax), multiplies whole numbers, and scales:
 * y = sum(q w) * (absmax / 127 * step), in exactly the float32 operations of research/nn/quantize.py. Whole numbers add up
 * in any order without an error, so every kernel here gives the same bits.
 *
 * Ternary weights lie in tiles of 16 outputs x 64 inputs, 256 bytes (research/nn/packed.py): byte 64 i + 4 n + j holds, in
 * its bit pair s, the weight of output n and input 16 i + 4 s + j, plus one. So 64 bytes masked to one bit pair are four
 * inputs of sixteen outputs, as VPDPBUSD and AMX want them; and a pair that is not shifted down only makes a sum 4^s times
 * too large, which is undone once at the end. Int8 weights lie row by row, each row filled up with zeros to whole tiles.
 *
 * Needs a C11 compiler that speaks GNU C, and libc. Build: cc -O3 -ffp-contract=off -fopenmp -shared -fPIC ternary.c -lm
 * Without OpenMP one thread does it all.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

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
#elif __clang_major__ >= 16 /* before, arm_neon.h has what the whole file is compiled for */
#define DOTPROD TARGET("dotprod")
#endif
#ifdef DOTPROD
#define ARM 1
#endif
#endif
#if ARM && defined(__linux__)
#include <sys/auxv.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))
#define TARGET(features) __attribute__((target(features)))
/* Weights are read once, from one end to the other: to the second cache long before, to the first one shortly before. */
#define AHEAD(w) (__builtin_prefetch((w) + 4096, 0, 2), __builtin_prefetch((w) + 768, 0, 3))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define FP_EXACT _Pragma("STDC FP_CONTRACT OFF")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define FP_EXACT
#endif
FP_EXACT

enum { OUTS = 16, INS = 64, TILE = 256, GROUP = 16 };
enum { NO_MEMORY = 1 };

typedef struct {
    const void *weights; /* tiles of two bits, or rows of int8 */
    const float *step;   /* one an output */
    int32_t out, in;
    int32_t bits; /* 2 or 8 */
} Matrix;

static INLINE size_t up(size_t n, size_t unit) { return (n + unit - 1) / unit; }
static INLINE size_t less(size_t a, size_t b) { return a < b ? a : b; }

/* ---- what is the same everywhere: written once, compiled for each instruction set ------------------------------------- */

static INLINE int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static INLINE float float_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#define MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds |x| < 2^22 to a whole number, halves to even, as rint does */
#define MAGIC_BITS 0x4b400000

/* Round a row of n numbers; each 64 of them go to the next `stride` bytes of q. Returns its step: not a number, over codes
 * that are all zero, where the row is not finite. */
static INLINE float quantise_row(const float *x, size_t n, int8_t *q, size_t stride, int32_t *sum) {
    int32_t top = 0, total = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t magnitude = bits_of(x[i]) & 0x7fffffff; /* ordered as the numbers are, infinity and then NaN on top */
        top = magnitude > top ? magnitude : top;
    }
    int finite = top < 0x7f800000;
    float size = float_of(top) < 1e-5f ? 1e-5f : float_of(top);
    float inverse = finite ? 1.0f / size * 127.0f : 0.0f;
    for (size_t start = 0; start < n; start += INS, q += stride) {
        float part[INS] = {0};
        const float *from = x + start;
        for (int i = 0; i < INS; i += 16) __builtin_prefetch(from + n + i, 0, 3); /* the next row, meanwhile */
        if (n - start < INS || !finite) {
            if (finite) memcpy(part, from, (n - start) * sizeof *part);
            from = part;
        }
        for (int i = 0; i < INS; i++) {
            int32_t code = bits_of(from[i] * inverse + MAGIC) - MAGIC_BITS;
            q[i] = (int8_t)code;
            total += code;
        }
    }
    *sum = total;
    return finite ? size / 127.0f : NAN;
}

typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias)); /* sixteen partial sums */

static INLINE float dot_floats(const float *a, const float *b, size_t n) {
    Lanes sum = {0};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) sum += *(const Lanes *)(a + i) * *(const Lanes *)(b + i);
    float lane[16], total = 0;
    memcpy(lane, &sum, sizeof lane);
    for (int width = 8; width; width /= 2)
        for (int l = 0; l < width; l++) lane[l] += lane[l + width];
    for (; i < n; i++) total += a[i] * b[i];
    return lane[0] + total;
}

/* exp(x), to 2 units in the last place, for x from -87 to 88 and as at these beyond them: x = k ln 2 + r, a polynomial of r. */
static INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + MAGIC, k = shifted - MAGIC;
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * float_of((int32_t)((uint32_t)(bits_of(shifted) - MAGIC_BITS + 127) << 23));
}

/* y = x / sqrt(mean(x^2) + 1e-5) * weight (arXiv 1910.07467, eq. 4); without a weight y = x. */
static INLINE void rms_norm(const float *x, const float *weight, size_t n, float *y) {
    float inverse = weight ? 1.0f / sqrtf(dot_floats(x, x, n) / (float)n + 1e-5f) : 1.0f;
    for (size_t i = 0; i < n; i++) y[i] = weight ? x[i] * inverse * weight[i] : x[i];
}

/* gate = act(gate) * up: SiLU, or the squared ReLU. */
static INLINE void gated(float *gate, const float *up_, size_t n, int squared) {
    if (squared)
        for (size_t i = 0; i < n; i++) gate[i] = (gate[i] < 0 ? 0 : gate[i]) * (gate[i] < 0 ? 0 : gate[i]) * up_[i];
    else
        for (size_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up_[i];
}

/* One head over the keys and values of positions 0 to count - 1 (count x width): softmax(q k / sqrt(width)) v. */
static INLINE void attend_head(
    const float *q, const float *k, const float *v, size_t count, size_t width, float *scores, float *y) {
    float top = -INFINITY, total = 0, scale = 1.0f / sqrtf((float)width);
    for (size_t t = 0; t < count; t++) {
        scores[t] = dot_floats(q, k + t * width, width) * scale;
        top = scores[t] > top ? scores[t] : top;
    }
    for (size_t t = 0; t < count; t++) scores[t] = exponential(scores[t] - top);
    for (size_t t = 0; t < count; t++) total += scores[t];
    memset(y, 0, width * sizeof *y);
    for (size_t t = 0; t < count; t++)
        for (size_t i = 0; i < width; i++) y[i] += scores[t] * v[t * width + i];
    for (size_t i = 0; i < width; i++) y[i] /= total;
}

/* y = (sums - offset) * (x_step * step) of up to sixteen outputs. */
static INLINE void scaled(const int32_t *sums, int32_t offset, float x_step, const float *step, size_t count, float *y) {
    if (count == OUTS) {
        float all[OUTS]; /* which y cannot overlap: one instruction for all of them */
        for (size_t n = 0; n < OUTS; n++) all[n] = (float)(sums[n] - offset) * (x_step * step[n]);
        memcpy(y, all, sizeof all);
    } else
        for (size_t n = 0; n < count; n++) y[n] = (float)(sums[n] - offset) * (x_step * step[n]);
}

/* ---- kernels: sums of sixteen outputs for one to four rows ------------------------------------------------------------- */

/* Row r of x has its next 64 codes each `stride` bytes, at 64 r within them; sums[16 r + n] is of output n. */
typedef void Ternary(const uint8_t *w, const int8_t *x, size_t stride, int rows, size_t tiles, int32_t *sums);
/* `outs` rows of weights of 64 * tiles bytes each, times one row of x. */
typedef void Bytes(const int8_t *w, int outs, const int8_t *x, size_t stride, size_t tiles, int32_t *sums);

typedef struct {
    const char *name;
    int (*usable)(void);
    Ternary *ternary; /* sums of (w + 1) x */
    Bytes *bytes;     /* sums of w x */
    float (*quantise)(const float *x, size_t n, int8_t *q, size_t stride, int32_t *sum);
    void (*norm)(const float *x, const float *weight, size_t n, float *y);
    void (*gate)(float *gate, const float *up_, size_t n, int squared);
    void (*attend)(const float *q, const float *k, const float *v, size_t count, size_t width, float *scores, float *y);
} Isa;

/* The common functions for one instruction set. */
#define COMPILED(suffix, target) \
    target static float quantise_##suffix(const float *x, size_t n, int8_t *q, size_t stride, int32_t *sum) { \
        return quantise_row(x, n, q, stride, sum); \
    } \
    target static void norm_##suffix(const float *x, const float *weight, size_t n, float *y) { rms_norm(x, weight, n, y); } \
    target static void gate_##suffix(float *gate, const float *up_, size_t n, int squared) { gated(gate, up_, n, squared); } \
    target static void attend_##suffix( \
        const float *q, const float *k, const float *v, size_t count, size_t width, float *scores, float *y) { \
        attend_head(q, k, v, count, width, scores, y); \
    }
#define COMMON(suffix) quantise_##suffix, norm_##suffix, gate_##suffix, attend_##suffix

/* ternary_rows, compiled for each number of rows: `most` at a time, then two, then one. */
#define TERNARY(suffix, target, most) \
    target static void ternary_##suffix( \
        const uint8_t *w, const int8_t *x, size_t stride, int rows, size_t tiles, int32_t *sums) { \
        for (; rows >= most; rows -= most, x += most * INS, sums += most * OUTS) \
            ternary_rows_##suffix(w, x, stride, tiles, sums, most); \
        for (; rows >= 2; rows -= 2, x += 2 * INS, sums += 2 * OUTS) ternary_rows_##suffix(w, x, stride, tiles, sums, 2); \
        if (rows) ternary_rows_##suffix(w, x, stride, tiles, sums, 1); \
    }

static int always(void) { return 1; }

static void ternary_portable(const uint8_t *w, const int8_t *x, size_t stride, int rows, size_t tiles, int32_t *sums) {
    memset(sums, 0, sizeof *sums * OUTS * (size_t)rows);
    for (size_t t = 0; t < tiles; t++, w += TILE, x += stride)
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < 4; i++)
                for (int s = 0; s < 4; s++) {
                    const int8_t *four = x + r * INS + 16 * i + 4 * s;
                    for (int n = 0; n < OUTS; n++) {
                        int32_t sum = 0;
                        for (int j = 0; j < 4; j++) sum += (w[64 * i + 4 * n + j] >> (2 * s) & 3) * four[j];
                        sums[OUTS * r + n] += sum;
                    }
                }
}

static void bytes_portable(const int8_t *w, int outs, const int8_t *x, size_t stride, size_t tiles, int32_t *sums) {
    for (int n = 0; n < outs; n++) {
        int32_t sum = 0;
        for (size_t t = 0; t < tiles; t++, w += INS)
            for (int i = 0; i < INS; i++) sum += w[i] * x[t * stride + (size_t)i];
        sums[n] = sum;
    }
}
COMPILED(portable, )

#if X86
static int cpu_has(int leaf, int subleaf, int reg, int bit) {
    unsigned regs[4];
    return __get_cpuid_count((unsigned)leaf, (unsigned)subleaf, &regs[0], &regs[1], &regs[2], &regs[3]) && regs[reg] >> bit & 1;
}

static int system_saves(unsigned mask) { /* whether the operating system keeps these registers (XCR0) */
    unsigned low, high;
    if (!cpu_has(1, 0, 2, 27)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & mask) == mask;
}

static int has_avx2(void) { return system_saves(0x6) && cpu_has(7, 0, 1, 5); }
static int has_avx512vnni(void) { /* with F, DQ, BW, VL */
    return has_avx2() && system_saves(0xe6) && cpu_has(7, 0, 1, 16) && cpu_has(7, 0, 1, 17) && cpu_has(7, 0, 1, 30) &&
           cpu_has(7, 0, 1, 31) && cpu_has(7, 0, 2, 11);
}

#define AVX2 TARGET("avx2")
COMPILED(avx2, AVX2)

AVX2 static INLINE __m256i four_of(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Sums of pairs stay within 16 bits for four tiles: 4 * 16 * 2 * 2 * 127 < 2^15. */
AVX2 static INLINE void ternary_rows_avx2(
    const uint8_t *w, const int8_t *x, size_t stride, size_t tiles, int32_t *sums, const int rows) {
    const __m256i low = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    __m256i wide[2][2];
    for (int r = 0; r < rows; r++) wide[r][0] = wide[r][1] = _mm256_setzero_si256();
    for (size_t t = 0; t < tiles;) {
        __m256i narrow[2][2];
        for (int r = 0; r < rows; r++) narrow[r][0] = narrow[r][1] = _mm256_setzero_si256();
        for (size_t end = less(t + 4, tiles); t < end; t++, w += TILE, x += stride) {
            AHEAD(w), AHEAD(w + 64), AHEAD(w + 128), AHEAD(w + 192);
            for (int i = 0; i < 4; i++)
                UNROLL for (int h = 0; h < 2; h++) {
                    __m256i pairs = _mm256_loadu_si256((const __m256i *)(w + 64 * i + 32 * h));
                    UNROLL for (int s = 0; s < 4; s++) {
                        __m256i codes = _mm256_and_si256(_mm256_srli_epi16(pairs, 2 * s), low);
                        UNROLL for (int r = 0; r < rows; r++) narrow[r][h] = _mm256_add_epi16(
                            narrow[r][h], _mm256_maddubs_epi16(codes, four_of(x + r * INS + 16 * i + 4 * s)));
                    }
                }
        }
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < 2; h++) wide[r][h] = _mm256_add_epi32(wide[r][h], _mm256_madd_epi16(narrow[r][h], ones));
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) _mm256_storeu_si256((__m256i *)(sums + OUTS * r + 8 * h), wide[r][h]);
}

TERNARY(avx2, AVX2, 2)

AVX2 static INLINE int32_t total_avx2(__m256i v) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

AVX2 static void bytes_avx2(const int8_t *w, int outs, const int8_t *x, size_t stride, size_t tiles, int32_t *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int n = 0; n < outs; n++) {
        __m256i sum = _mm256_setzero_si256();
        for (size_t t = 0; t < tiles; t++, w += INS) {
            AHEAD(w);
            for (int h = 0; h < 2; h++) { /* |w| times x with the sign of w: a pair is at most 2 * 127 * 127 < 2^15 */
                __m256i of_w = _mm256_loadu_si256((const __m256i *)(w + 32 * h));
                __m256i of_x = _mm256_loadu_si256((const __m256i *)(x + t * stride + (size_t)(32 * h)));
                __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(of_w), _mm256_sign_epi8(of_x, of_w));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        sums[n] = total_avx2(sum);
    }
}

#ifdef AVXVNNI
static int has_avxvnni(void) { return has_avx2() && cpu_has(7, 1, 0, 4); }

/* One row keeps a sum for each bit pair as it lies; several rows share the work of shifting them down. */
AVXVNNI static INLINE void ternary_rows_avxvnni(
    const uint8_t *w, const int8_t *x, size_t stride, size_t tiles, int32_t *sums, const int rows) {
    const int kept = rows == 1 ? 4 : 1;
    const __m256i low = _mm256_set1_epi8(3);
    __m256i sum[4][2][4];
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            for (int s = 0; s < kept; s++) sum[r][h][s] = _mm256_setzero_si256();
    for (size_t t = 0; t < tiles; t++, w += TILE, x += stride) {
        AHEAD(w), AHEAD(w + 64), AHEAD(w + 128), AHEAD(w + 192);
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int h = 0; h < 2; h++) {
                __m256i pairs = _mm256_loadu_si256((const __m256i *)(w + 64 * i + 32 * h));
                UNROLL for (int s = 0; s < 4; s++) {
                    __m256i codes = kept == 4 ? _mm256_and_si256(pairs, _mm256_set1_epi8((char)(3 << 2 * s)))
                                              : _mm256_and_si256(_mm256_srli_epi16(pairs, 2 * s), low);
                    UNROLL for (int r = 0; r < rows; r++) {
                        __m256i *into = &sum[r][h][kept == 4 ? s : 0];
                        *into = _mm256_dpbusd_avx_epi32(*into, codes, four_of(x + r * INS + 16 * i + 4 * s));
                    }
                }
            }
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) {
            __m256i total = sum[r][h][0];
            for (int s = 1; s < kept; s++) total = _mm256_add_epi32(total, _mm256_srai_epi32(sum[r][h][s], 2 * s));
            _mm256_storeu_si256((__m256i *)(sums + OUTS * r + 8 * h), total);
        }
}

TERNARY(avxvnni, AVXVNNI, 4)
#endif

#define AVX512 TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
COMPILED(avx512vnni, AVX512)

AVX512 static INLINE __m512i fours_of(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

/* A sum for each row and bit pair, two for a single row: enough of them to hide the latency of VPDPBUSD. */
AVX512 static INLINE void ternary_rows_avx512vnni(
    const uint8_t *w, const int8_t *x, size_t stride, size_t tiles, int32_t *sums, const int rows) {
    const int sets = rows == 1 ? 2 : 1;
    __m512i sum[4][4][2];
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < 4; s++)
            for (int k = 0; k < sets; k++) sum[r][s][k] = _mm512_setzero_si512();
    for (size_t t = 0; t < tiles; t++, w += TILE, x += stride)
        UNROLL for (int i = 0; i < 4; i++) {
            __m512i pairs = _mm512_loadu_si512(w + 64 * i);
            AHEAD(w + 64 * i);
            UNROLL for (int s = 0; s < 4; s++) {
                __m512i codes = _mm512_and_si512(pairs, _mm512_set1_epi8((char)(3 << 2 * s)));
                UNROLL for (int r = 0; r < rows; r++) {
                    __m512i *into = &sum[r][s][i % sets];
                    *into = _mm512_dpbusd_epi32(*into, codes, fours_of(x + r * INS + 16 * i + 4 * s));
                }
            }
        }
    for (int r = 0; r < rows; r++) {
        __m512i total = _mm512_setzero_si512();
        for (int s = 0; s < 4; s++)
            for (int k = 0; k < sets; k++)
                total = _mm512_add_epi32(total, _mm512_srai_epi32(sum[r][s][k], (unsigned)(2 * s)));
        _mm512_storeu_si512(sums + OUTS * r, total);
    }
}

TERNARY(avx512vnni, AVX512, 4)

/* VPDPBUSD wants one side unsigned: sum(w x) = sum(w (x + 128)) - 128 sum(w). */
AVX512 static void bytes_avx512vnni(const int8_t *w, int outs, const int8_t *x, size_t stride, size_t tiles, int32_t *sums) {
    const __m512i offset = _mm512_set1_epi8((char)128), ones = _mm512_set1_epi8(1);
    for (int n = 0; n < outs; n++) {
        __m512i sum = _mm512_setzero_si512(), of_w = _mm512_setzero_si512();
        for (size_t t = 0; t < tiles; t++, w += INS) {
            __m512i bytes = _mm512_loadu_si512(w);
            AHEAD(w);
            sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(_mm512_loadu_si512(x + t * stride), offset), bytes);
            of_w = _mm512_dpbusd_epi32(of_w, ones, bytes);
        }
        sums[n] = _mm512_reduce_add_epi32(_mm512_sub_epi32(sum, _mm512_slli_epi32(of_w, 7)));
    }
}
#endif

#if ARM
static int has_dotprod(void) {
#if defined(__APPLE__) || defined(__ARM_FEATURE_DOTPROD)
    return 1;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0; /* ASIMDDP */
#else
    return 0;
#endif
}

DOTPROD static INLINE void ternary_rows_neon(
    const uint8_t *w, const int8_t *x, size_t stride, size_t tiles, int32_t *sums, const int rows) {
    const uint8x16_t low = vdupq_n_u8(3);
    int32x4_t sum[4][4];
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 4; h++) sum[r][h] = vdupq_n_s32(0);
    for (size_t t = 0; t < tiles; t++, w += TILE, x += stride)
        for (int i = 0; i < 4; i++) {
            int8x16_t of_x[4];
            AHEAD(w + 64 * i);
            for (int r = 0; r < rows; r++) of_x[r] = vld1q_s8(x + r * INS + 16 * i);
            UNROLL for (int h = 0; h < 4; h++) {
                uint8x16_t pairs = vld1q_u8(w + 64 * i + 16 * h);
#define PAIR(s, codes) \
    { \
        int8x16_t of_w = vreinterpretq_s8_u8(codes); \
        UNROLL for (int r = 0; r < rows; r++) sum[r][h] = vdotq_laneq_s32(sum[r][h], of_w, of_x[r], s); \
    }
                PAIR(0, vandq_u8(pairs, low))
                PAIR(1, vandq_u8(vshrq_n_u8(pairs, 2), low))
                PAIR(2, vandq_u8(vshrq_n_u8(pairs, 4), low))
                PAIR(3, vshrq_n_u8(pairs, 6))
#undef PAIR
            }
        }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 4; h++) vst1q_s32(sums + OUTS * r + 4 * h, sum[r][h]);
}

TERNARY(neon, DOTPROD, 4)

DOTPROD static void bytes_neon(const int8_t *w, int outs, const int8_t *x, size_t stride, size_t tiles, int32_t *sums) {
    for (int n = 0; n < outs; n++) {
        int32x4_t sum[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
        for (size_t t = 0; t < tiles; t++, w += INS) {
            AHEAD(w);
            for (int h = 0; h < 4; h++)
                sum[h] = vdotq_s32(sum[h], vld1q_s8(w + 16 * h), vld1q_s8(x + t * stride + (size_t)(16 * h)));
        }
        sums[n] = vaddvq_s32(vaddq_s32(vaddq_s32(sum[0], sum[1]), vaddq_s32(sum[2], sum[3])));
    }
}
#endif

/* This thread's share, of units of sixteen outputs. */
static INLINE void share(size_t count, size_t thread, size_t threads, size_t *from, size_t *to) {
    *from = count * thread / threads;
    *to = count * (thread + 1) / threads;
}

/* ---- AMX: 32 rows x 32 outputs at a time ------------------------------------------------------------------------------- */

#if AMX
#define TILES TARGET("amx-tile,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

static int has_amx(void) { /* Linux lends a process the tile registers when it asks */
    return has_avx512vnni() && cpu_has(7, 0, 3, 24) && cpu_has(7, 0, 3, 25) && system_saves(0x60000) &&
           !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

/* One output's inputs must lie four by four beside the other outputs': a 16 x 16 matrix of int32, transposed. */
TILES static INLINE void transposed(const int8_t *w, size_t pitch, size_t outs, int8_t *to) {
    int32_t turned[16][16] __attribute__((aligned(64)));
    memset(turned, 0, sizeof turned);
    for (size_t n = 0; n < outs; n++) {
        int32_t four[16];
        memcpy(four, w + n * pitch, sizeof four);
        for (int i = 0; i < 16; i++) turned[i][n] = four[i];
    }
    memcpy(to, turned, sizeof turned);
}

/* Sixteen outputs as int8, 1 kB each tile, from one tile on. */
TILES static void unpacked(const Matrix *m, size_t strip, size_t start, size_t count, int8_t *to) {
    size_t tiles = up((size_t)m->in, INS);
    const __m512i low = _mm512_set1_epi8(3), one = _mm512_set1_epi8(1);
    if (m->bits == 8) {
        const int8_t *w = (const int8_t *)m->weights + (strip * OUTS * tiles + start) * INS;
        size_t outs = less((size_t)m->out - strip * OUTS, OUTS);
        for (size_t t = 0; t < count; t++) transposed(w + t * INS, tiles * INS, outs, to + 1024 * t);
        return;
    }
    const uint8_t *w = (const uint8_t *)m->weights + (strip * tiles + start) * TILE;
    for (size_t i = 0; i < 4 * count; i++, w += 64, to += 256) {
        __m512i pairs = _mm512_loadu_si512(w);
        AHEAD(w);
        UNROLL for (int s = 0; s < 4; s++) {
            __m512i codes = _mm512_and_si512(_mm512_srli_epi16(pairs, (unsigned)(2 * s)), low);
            _mm512_storeu_si512(to + 64 * s, _mm512_sub_epi8(codes, one));
        }
    }
}

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileShapes;

/* Tiles of inputs at a time: DEPTH of them, of 32 rows, stay in the first cache while pairs of strips pass by; WIDE of them,
 * of these pairs, in the second one while all rows pass by. */
enum { DEPTH = 8, WIDE = 64 };

/* How many pairs of strips are unpacked at a time: the rows come from far away that many times less. */
static size_t pairs_at_once(const Matrix *m, size_t threads) {
    size_t pairs = up(up((size_t)m->out, 2 * OUTS), threads), tiles = up((size_t)m->in, INS);
    size_t fit = (768 << 10) / (2048 * less(tiles, WIDE));
    return less(pairs, fit);
}

/* Bytes that one thread needs: of each pair its weights, and its sums for 32 rows, or for all while more inputs come. */
static size_t amx_room(const Matrix *m, size_t rows, size_t at_once) {
    size_t tiles = up((size_t)m->in, INS);
    return at_once * (2048 * less(tiles, WIDE) + 4096 * (tiles > WIDE ? up(rows, 2 * GROUP) : 1));
}

/* 32 rows times 32 outputs over `count` tiles of inputs, on top of sums or from nothing. */
TILES static INLINE void square(const int8_t *x0, const int8_t *x1, const int8_t *w0, const int8_t *w1, size_t count, int more,
                                int32_t (*sums)[16 * 16]) {
    if (more) {
        _tile_loadd(0, sums[0], 64); _tile_loadd(1, sums[1], 64); _tile_loadd(2, sums[2], 64); _tile_loadd(3, sums[3], 64);
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    for (size_t t = 0; t < count; t++) {
        _tile_loadd(4, x0 + 1024 * t, 64); _tile_loadd(6, w0 + 1024 * t, 64);
        _tile_loadd(7, w1 + 1024 * t, 64); _tile_loadd(5, x1 + 1024 * t, 64);
        _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64); _tile_stored(1, sums[1], 64); _tile_stored(2, sums[2], 64); _tile_stored(3, sums[3], 64);
}

/* This thread's outputs; `codes` lie in groups of 16 rows, their number even. */
TILES static void multiply_amx(const Matrix *m, const int8_t *codes, const float *x_steps, size_t rows, float *y, int8_t *room,
                               size_t at_once, size_t thread, size_t threads) {
    size_t tiles = up((size_t)m->in, INS), strips = up((size_t)m->out, OUTS), wide = less(tiles, WIDE), from, to;
    int32_t(*sums)[4][16 * 16] = (void *)(room + at_once * 2048 * wide);
    TileShapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.bytes[i] = 64, shapes.rows[i] = 16;
    _tile_loadconfig(&shapes);
    share(up(strips, 2), thread, threads, &from, &to);
    for (size_t first = from; first < to; first += at_once)
        for (size_t begin = 0; begin < tiles; begin += wide) {
            size_t last = less(first + at_once, to), finish = less(begin + wide, tiles);
            for (size_t strip = 2 * first; strip < less(2 * last, strips); strip++)
                unpacked(m, strip, begin, finish - begin, room + (strip - 2 * first) * 1024 * wide);
            for (size_t row = 0; row < rows; row += 2 * GROUP)
                for (size_t start = begin; start < finish; start += DEPTH)
                    for (size_t pair = first; pair < last; pair++) {
                        const size_t both = 2 * pair + 1 < strips, end = less(start + DEPTH, finish);
                        const int8_t *x = codes + (row * tiles + GROUP * start) * INS;
                        const int8_t *w = room + ((pair - first) * 2 * wide + start - begin) * 1024;
                        int32_t(*c)[16 * 16] = sums[(wide < tiles ? row / (2 * GROUP) * at_once : 0) + pair - first];
                        square(x, x + tiles * 1024, w, w + both * 1024 * wide, end - start, start > 0, c);
                        for (size_t r = 0; end == tiles && r < less(rows - row, 2 * GROUP); r++)
                            for (size_t b = 0; b <= both; b++) {
                                size_t out = (2 * pair + b) * OUTS;
                                scaled(c[r / GROUP * 2 + b] + r % GROUP * OUTS, 0, x_steps[row + r], m->step + out,
                                       less((size_t)m->out - out, OUTS), y + (row + r) * (size_t)m->out + out);
                            }
                    }
        }
    _tile_release();
}
#endif

/* ---- dispatch --------------------------------------------------------------------------------------------------------- */

static const Isa ISAS[] = { /* the best first */
#if X86
#if AMX
    {"amx", has_amx, ternary_avx512vnni, bytes_avx512vnni, COMMON(avx512vnni)},
#endif
    {"avx512vnni", has_avx512vnni, ternary_avx512vnni, bytes_avx512vnni, COMMON(avx512vnni)},
#ifdef AVXVNNI
    {"avxvnni", has_avxvnni, ternary_avxvnni, bytes_avx2, COMMON(avx2)},
#endif
    {"avx2", has_avx2, ternary_avx2, bytes_avx2, COMMON(avx2)},
#elif ARM
    {"neon", has_dotprod, ternary_neon, bytes_neon, COMMON(portable)},
#endif
    {"portable", always, ternary_portable, bytes_portable, COMMON(portable)},
};
static const Isa *chosen = &ISAS[sizeof ISAS / sizeof *ISAS - 1];

/* The name of the place-th instruction set, the best first, or NULL past the last; whether it can be used here. */
EXPORT const char *grokbit_isa(int place, int *usable) {
    if (place < 0 || (size_t)place >= sizeof ISAS / sizeof *ISAS) return NULL;
    *usable = ISAS[place].usable();
    return ISAS[place].name;
}

EXPORT void grokbit_use(int place) {
    if (ISAS[place].usable()) chosen = &ISAS[place];
}

/* ---- layers ----------------------------------------------------------------------------------------------------------- */

/* y (rows x out) of outputs 16 * from to 16 * to: `rows` of at most 16 rows, whose codes lie one group. */
static void multiply(const Isa *isa, const Matrix *m, const int8_t *codes, size_t group, const float *x_steps,
                     const int32_t *x_sums, size_t rows, float *y, size_t from, size_t to) {
    size_t tiles = up((size_t)m->in, INS), stride = group * INS;
    for (size_t strip = from; strip < to; strip++) {
        size_t out = strip * OUTS, count = less((size_t)m->out - out, OUTS);
        for (size_t row = 0; row < rows; row += 4) {
            size_t block = less(rows - row, 4);
            int32_t sums[4 * OUTS];
            if (m->bits == 2)
                isa->ternary((const uint8_t *)m->weights + strip * tiles * TILE, codes + row * INS, stride, (int)block, tiles,
                             sums);
            else
                for (size_t r = 0; r < block; r++)
                    isa->bytes((const int8_t *)m->weights + out * tiles * INS, (int)count, codes + (row + r) * INS, stride, tiles,
                               sums + r * OUTS);
            for (size_t r = 0; r < block; r++)
                scaled(sums + r * OUTS, m->bits == 2 ? x_sums[row + r] : 0, x_steps[row + r], m->step + out, count,
                       y + (row + r) * (size_t)m->out + out);
        }
    }
}

/* Ask for the first weights of a share, while something else is waited for. */
static INLINE void ask(const Matrix *m, size_t strip) {
    const char *w = (const char *)m->weights + strip * up((size_t)m->in, INS) * (m->bits == 2 ? TILE : OUTS * INS);
    for (int i = 0; i < 4096; i += 64) __builtin_prefetch(w + i, 0, 2);
}

static size_t padded(size_t bytes) { return up(bytes, 64) * 64; }

/* y = layer(x): x rows x in, y rows x out, both contiguous. Returns 0, or NO_MEMORY. */
EXPORT int grokbit_linear(const Matrix *m, const float *x, int64_t count, float *y, int threads) {
    if (count <= 0 || m->out <= 0) return 0;
    const Isa *isa = chosen;
    size_t rows = (size_t)count, tiles = up((size_t)m->in, INS), strips = up((size_t)m->out, OUTS);
    int amx = 0;
#if AMX
    amx = isa == &ISAS[0] && rows > 8;
#endif
    size_t group = amx ? GROUP : less(rows, GROUP), groups = amx ? 2 * up(rows, 2 * GROUP) : up(rows, group);
    size_t most = less((size_t)(threads > 1 ? threads : 1), strips);
    size_t room = (rows == 1 ? most : groups * group) * tiles * INS; /* one row is rounded by each thread for itself */
    size_t at_once = 0, own = 0;
#if AMX
    if (amx) at_once = pairs_at_once(m, most), own = amx_room(m, rows, at_once);
#endif
    char *memory = aligned_alloc(64, padded(room) + 2 * padded(4 * rows) + most * own);
    if (!memory) return NO_MEMORY;
    int8_t *codes = (int8_t *)memory, *rooms = (int8_t *)memory + padded(room) + 2 * padded(4 * rows);
    float *steps = (float *)(memory + padded(room));
    int32_t *sums = (int32_t *)(memory + padded(room) + padded(4 * rows));
    if (rows > 1 && rows < groups * group) /* the last group's missing rows */
        memset(codes + rows / group * group * tiles * INS, 0, room - rows / group * group * tiles * INS);
#pragma omp parallel num_threads((int)most) if (most > 1)
    {
        size_t thread = (size_t)omp_get_thread_num(), all = (size_t)omp_get_num_threads(), from, to;
        share(strips, thread, all, &from, &to);
        if (from < to) ask(m, from);
        if (rows == 1) {
            int8_t *q = codes + thread * tiles * INS;
            float step;
            int32_t sum;
            step = isa->quantise(x, (size_t)m->in, q, INS, &sum);
            multiply(isa, m, q, 1, &step, &sum, 1, y, from, to);
        } else {
            share(rows, thread, all, &from, &to);
            for (size_t r = from; r < to; r++) {
                int8_t *q = codes + (r / group * tiles * group + r % group) * INS;
                steps[r] = isa->quantise(x + r * (size_t)m->in, (size_t)m->in, q, group * INS, sums + r);
            }
#pragma omp barrier
#if AMX
            if (amx) multiply_amx(m, codes, steps, rows, y, rooms + thread * own, at_once, thread, all);
#endif
            share(strips, thread, all, &from, &to);
            for (size_t first = 0; first < (amx ? 0 : rows); first += group)
                multiply(isa, m, codes + first * tiles * INS, group, steps + first, sums + first, less(rows - first, group),
                         y + first * (size_t)m->out, from, to);
        }
    }
    (void)rooms, (void)at_once;
    free(memory);
    return 0;
}

/* ---- one token through a transformer ---------------------------------------------------------------------------------- */

typedef struct {
    const float *input_norm, *attention_norm, *post_norm, *feedforward_norm; /* the second and the fourth may be missing */
    Matrix q, k, v, o, gate, up, down;
    float *keys, *values; /* kv_heads x length x width */
} Block;

typedef struct {
    const Block *blocks;
    const float *norm, *cos, *sin; /* tables: positions x width / 2 */
    Matrix embed, head;            /* int8 */
    int32_t depth, dim, heads, kv_heads, width, hidden, length, squared; /* squared: ReLU^2 in place of SiLU */
} Model;

typedef struct {
    const Model *m;
    const Isa *isa;
    size_t position, thread, threads;
    float *x, *qkv, *mixed, *gate, *up;  /* of all threads */
    float *normed, *scores;              /* of this thread */
    int8_t *codes;
} Pass;

/* norm(from), rounded: each thread does it for itself, which saves a barrier. */
static void rounded(const Pass *p, const float *from, const float *norm, size_t n, float *step, int32_t *sum) {
    const float *x = from;
    if (norm) p->isa->norm(from, norm, n, p->normed), x = p->normed;
    *step = p->isa->quantise(x, n, p->codes, INS, sum);
}

/* Ask for this thread's first weights of what comes after the next barrier. */
static void ask_ahead(const Pass *p, const Matrix *m) {
    size_t from, to;
    share(up((size_t)m->out, OUTS), p->thread, p->threads, &from, &to);
    if (from < to) ask(m, from);
}

/* y = matrix(what was rounded), this thread's outputs. */
static void product(const Pass *p, const Matrix *m, float step, int32_t sum, float *y) {
    size_t from, to;
    share(up((size_t)m->out, OUTS), p->thread, p->threads, &from, &to);
    multiply(p->isa, m, p->codes, 1, &step, &sum, 1, y, from, to);
}

static void turn(const Pass *p, float *x) { /* rotary positions, the halves of a head (arXiv 2104.09864, eq. 34) */
    size_t half = (size_t)p->m->width / 2;
    const float *cos_ = p->m->cos + p->position * half, *sin_ = p->m->sin + p->position * half;
    for (size_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos_[i] - b * sin_[i];
        x[i + half] = b * cos_[i] + a * sin_[i];
    }
}

/* This thread's key and value heads, and the query heads that share them. */
static void attention(const Pass *p, const Block *b) {
    const Model *m = p->m;
    size_t width = (size_t)m->width, heads = (size_t)m->heads, kv_heads = (size_t)m->kv_heads, each = heads / kv_heads;
    size_t from, to;
    share(kv_heads, p->thread, p->threads, &from, &to);
    for (size_t kv = from; kv < to; kv++) {
        float *keys = b->keys + kv * (size_t)m->length * width, *values = b->values + kv * (size_t)m->length * width;
        float *key = keys + p->position * width;
        memcpy(key, p->qkv + (heads + kv) * width, width * sizeof *key);
        memcpy(values + p->position * width, p->qkv + (heads + kv_heads + kv) * width, width * sizeof *key);
        turn(p, key);
        for (size_t head = kv * each; head < (kv + 1) * each; head++) {
            turn(p, p->qkv + head * width);
            p->isa->attend(p->qkv + head * width, keys, values, p->position + 1, width, p->scores, p->mixed + head * width);
        }
    }
}

/* x += y, this thread's outputs of a matrix. */
static void added(const Pass *p, const Matrix *m, const float *y) {
    size_t from, to, out = (size_t)m->out;
    share(up(out, OUTS), p->thread, p->threads, &from, &to);
    for (size_t i = from * OUTS; i < less(to * OUTS, out); i++) p->x[i] += y[i];
}

static void block(const Pass *p, const Block *b, const Matrix *next) {
    size_t dim = (size_t)p->m->dim, hidden = (size_t)p->m->hidden, all = (size_t)(p->m->heads * p->m->width), from, to;
    size_t kv = (size_t)(p->m->kv_heads * p->m->width);
    float step;
    int32_t sum;
    rounded(p, p->x, b->input_norm, dim, &step, &sum);
    product(p, &b->q, step, sum, p->qkv);
    product(p, &b->k, step, sum, p->qkv + all);
    product(p, &b->v, step, sum, p->qkv + all + kv);
    ask_ahead(p, &b->o);
#pragma omp barrier
    attention(p, b);
#pragma omp barrier
    rounded(p, p->mixed, b->attention_norm, all, &step, &sum);
    product(p, &b->o, step, sum, p->qkv);
    added(p, &b->o, p->qkv);
    ask_ahead(p, &b->gate);
#pragma omp barrier
    rounded(p, p->x, b->post_norm, dim, &step, &sum);
    product(p, &b->gate, step, sum, p->gate);
    product(p, &b->up, step, sum, p->up);
    share(up(hidden, OUTS), p->thread, p->threads, &from, &to);
    to = less(to * OUTS, hidden);
    from *= OUTS;
    if (from < to) p->isa->gate(p->gate + from, p->up + from, to - from, p->m->squared);
    ask_ahead(p, &b->down);
#pragma omp barrier
    rounded(p, p->gate, b->feedforward_norm, hidden, &step, &sum);
    product(p, &b->down, step, sum, p->qkv);
    added(p, &b->down, p->qkv);
    ask_ahead(p, next);
#pragma omp barrier
}

/* The logits after one more token, the position-th; keys and values of earlier positions are in the caches. Returns 0, or
 * NO_MEMORY. The caller sees to it that token, position and all sizes fit. */
EXPORT int grokbit_decode(const Model *m, int32_t token, int32_t position, float *logits, int threads) {
    size_t dim = (size_t)m->dim, hidden = (size_t)m->hidden, qkv = (size_t)((m->heads + 2 * m->kv_heads) * m->width);
    size_t widest = dim > hidden ? dim : hidden, most = threads > 1 ? (size_t)threads : 1;
    size_t all = padded(4 * dim) + 2 * padded(4 * (qkv > dim ? qkv : dim)) + 2 * padded(4 * hidden);
    size_t own = padded(4 * widest) + padded(4 * ((size_t)position + 1)) + padded(widest);
    char *memory = aligned_alloc(64, all + most * own);
    if (!memory) return NO_MEMORY;
    Pass shared = {.m = m, .isa = chosen, .position = (size_t)position, .x = (float *)memory};
    shared.qkv = (float *)(memory + padded(4 * dim));
    shared.mixed = (float *)((char *)shared.qkv + padded(4 * (qkv > dim ? qkv : dim)));
    shared.gate = (float *)((char *)shared.mixed + padded(4 * (qkv > dim ? qkv : dim)));
    shared.up = (float *)((char *)shared.gate + padded(4 * hidden));
    const int8_t *row = (const int8_t *)m->embed.weights + (size_t)token * up(dim, INS) * INS;
    for (size_t i = 0; i < dim; i++) shared.x[i] = (float)row[i] * m->embed.step[token];
#pragma omp parallel num_threads((int)most) if (most > 1)
    {
        Pass p = shared;
        float step;
        int32_t sum;
        p.thread = (size_t)omp_get_thread_num(), p.threads = (size_t)omp_get_num_threads();
        p.normed = (float *)(memory + all + p.thread * own);
        p.scores = (float *)((char *)p.normed + padded(4 * widest));
        p.codes = (int8_t *)((char *)p.scores + padded(4 * ((size_t)position + 1)));
        for (int32_t i = 0; i < m->depth; i++) block(&p, &m->blocks[i], i + 1 < m->depth ? &m->blocks[i + 1].q : &m->head);
        rounded(&p, p.x, m->norm, dim, &step, &sum);
        product(&p, &m->head, step, sum, logits);
    }
    free(memory);
    return 0;
}

/* One row through each of `count` layers of one shape, the threads started once: what a token of a model is made of
 * (benchmarks/ternary_matmul.py). Returns 0, or NO_MEMORY. */
EXPORT int grokbit_row(const Matrix *layers, int32_t count, const float *x, float *y, int threads) {
    size_t own = padded((size_t)layers->in), most = threads > 1 ? (size_t)threads : 1;
    int8_t *memory = aligned_alloc(64, most * own);
    if (!memory) return NO_MEMORY;
#pragma omp parallel num_threads((int)most) if (most > 1)
    {
        Pass p = {.isa = chosen, .thread = (size_t)omp_get_thread_num(), .threads = (size_t)omp_get_num_threads()};
        float step;
        int32_t sum;
        p.codes = memory + p.thread * own;
        for (int32_t i = 0; i < count; i++) {
            rounded(&p, x, NULL, (size_t)layers[i].in, &step, &sum);
            product(&p, &layers[i], step, sum, y);
            ask_ahead(&p, &layers[i + 1 < count ? i + 1 : i]);
#pragma omp barrier
        }
    }
    free(memory);
    return 0;
}

/* Sum of all bytes, eight by eight: how fast this machine reads memory (benchmarks/ternary_matmul.py). */
EXPORT uint64_t grokbit_read(const uint64_t *words, int64_t count, int threads) {
    uint64_t total = 0;
    (void)threads;
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static)
    for (int64_t i = 0; i < count; i++) total += words[i];
    return total;
}
