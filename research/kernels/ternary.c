/* Ternary and int8 layers on a CPU: the choice of the instruction set, and a layer over rows of input.
 *
 * A layer quantizes each row of its input to int8, q = rint(x * 127 / absmax), multiplies integers, and scales:
 * y = sum(q w) * (absmax / 127 * scale), in exactly the float32 operations of research/nn/quantize.py. Sums of integers
 * have no rounding error in any order, so every kernel here gives the same bits.
 *
 * One translation unit: decode.c and the headers are included, so the compiler can inline across them.
 * Needs a C11 compiler that speaks GNU C, and libc. Build: cc -O3 -ffp-contract=off -fopenmp -shared -fPIC ternary.c -lm
 * Without OpenMP one thread does all the work.
 */
/* In this order: each file uses what stands before it. */
#include "ternary.h"
#include "common.h"
#include "x86.h"
#include "neon.h"
#include "amx.h"

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
static const Isa *current_isa = &ISAS[sizeof ISAS / sizeof *ISAS - 1];

/* Return the name of an instruction set by index, the best first, or NULL past the last; `usable`: this machine has it. */
EXPORT const char *grokbit_isa(int index, int *usable) {
    if (index < 0 || (size_t)index >= sizeof ISAS / sizeof *ISAS) return NULL;
    *usable = ISAS[index].usable();
    return ISAS[index].name;
}

/* Compute with this instruction set from now on, if this machine has it. */
EXPORT void grokbit_use(int index) {
    if (ISAS[index].usable()) current_isa = &ISAS[index];
}

/* ---- layers ----------------------------------------------------------------------------------------------------------- */

/* y (rows x out), outputs 16 * from to 16 * to, for at most 16 rows whose codes lie in one group. */
static void multiply(const Isa *isa, const Matrix *m, const int8_t *codes, size_t group, const float *x_scales,
                     const int32_t *x_sums, size_t rows, float *y, size_t from, size_t to) {
    size_t tiles = ceil_div((size_t)m->in, INS), stride = group * INS;
    for (size_t strip = from; strip < to; strip++) {
        size_t out = strip * OUTS, count = min_size((size_t)m->out - out, OUTS);
        for (size_t row = 0; row < rows; row += 4) {
            size_t block = min_size(rows - row, 4);
            int32_t sums[4 * OUTS];
            if (m->bits == 2)
                isa->ternary((const uint8_t *)m->weights + strip * tiles * TILE, codes + row * INS, stride, (int)block, tiles,
                             sums);
            else
                for (size_t r = 0; r < block; r++)
                    isa->bytes((const int8_t *)m->weights + out * tiles * INS, (int)count, codes + (row + r) * INS, stride,
                               tiles, sums + r * OUTS);
            for (size_t r = 0; r < block; r++)
                scale_sums(sums + r * OUTS, m->bits == 2 ? x_sums[row + r] : 0, x_scales[row + r], m->scale + out, count,
                       y + (row + r) * (size_t)m->out + out);
        }
    }
}

/* Prefetch the first weights of a share, while the thread waits for something else. */
static INLINE void prefetch_strip(const Matrix *m, size_t strip) {
    const char *w = (const char *)m->weights + strip * ceil_div((size_t)m->in, INS) * (m->bits == 2 ? TILE : OUTS * INS);
    for (int i = 0; i < 4096; i += 64) __builtin_prefetch(w + i, 0, 2);
}

static size_t pad_to_line(size_t bytes) { return ceil_div(bytes, 64) * 64; }

/* y = layer(x): x rows x in, y rows x out, both contiguous. Returns 0, or NO_MEMORY. */
EXPORT int grokbit_linear(const Matrix *m, const float *x, int64_t count, float *y, int threads) {
    if (count <= 0 || m->out <= 0) return 0;
    const Isa *isa = current_isa;
    size_t rows = (size_t)count, tiles = ceil_div((size_t)m->in, INS), strips = ceil_div((size_t)m->out, OUTS);
    int amx = 0; /* tiles pay from 9 rows on */
#if AMX
    amx = isa == &ISAS[0] && rows > 8;
#endif
    size_t group = amx ? GROUP : min_size(rows, GROUP), groups = amx ? 2 * ceil_div(rows, 2 * GROUP) : ceil_div(rows, group);
    size_t most = min_size((size_t)(threads > 1 ? threads : 1), strips);
    size_t code_bytes = (rows == 1 ? most : groups * group) * tiles * INS; /* each thread quantizes a single row for itself */
    size_t at_once = 0, per_thread = 0;
#if AMX
    if (amx) at_once = pairs_at_once(m, most), per_thread = count_amx_bytes(m, rows, at_once);
#endif
    char *memory = aligned_alloc(64, pad_to_line(code_bytes) + 2 * pad_to_line(4 * rows) + most * per_thread);
    if (!memory) return NO_MEMORY;
    int8_t *codes = (int8_t *)memory, *scratch = (int8_t *)memory + pad_to_line(code_bytes) + 2 * pad_to_line(4 * rows);
    float *scales = (float *)(memory + pad_to_line(code_bytes));
    int32_t *sums = (int32_t *)(memory + pad_to_line(code_bytes) + pad_to_line(4 * rows));
    if (rows > 1 && rows < groups * group) /* pad the last group with zeros */
        memset(codes + rows / group * group * tiles * INS, 0, code_bytes - rows / group * group * tiles * INS);
#pragma omp parallel num_threads((int)most) if (most > 1)
    {
        size_t thread = (size_t)omp_get_thread_num(), all = (size_t)omp_get_num_threads(), from, to;
        split_work(strips, thread, all, &from, &to);
        if (from < to) prefetch_strip(m, from);
        if (rows == 1) {
            int8_t *q = codes + thread * tiles * INS;
            float scale;
            int32_t sum;
            scale = isa->quantize(x, (size_t)m->in, q, INS, &sum);
            multiply(isa, m, q, 1, &scale, &sum, 1, y, from, to);
        } else {
            split_work(rows, thread, all, &from, &to);
            for (size_t r = from; r < to; r++) {
                int8_t *q = codes + (r / group * tiles * group + r % group) * INS;
                scales[r] = isa->quantize(x + r * (size_t)m->in, (size_t)m->in, q, group * INS, sums + r);
            }
#pragma omp barrier
#if AMX
            if (amx) multiply_amx(m, codes, scales, rows, y, scratch + thread * per_thread, at_once, thread, all);
#endif
            split_work(strips, thread, all, &from, &to);
            for (size_t first = 0; first < (amx ? 0 : rows); first += group)
                multiply(isa, m, codes + first * tiles * INS, group, scales + first, sums + first,
                         min_size(rows - first, group), y + first * (size_t)m->out, from, to);
        }
    }
    (void)scratch, (void)at_once;
    free(memory);
    return 0;
}

#include "decode.c"
