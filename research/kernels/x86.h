/* Kernels for x86: AVX2, AVX-VNNI, AVX512-VNNI. Integer sums, so all give the same bits. */
#if X86
static int cpu_has(int leaf, int subleaf, int reg, int bit) {
    unsigned regs[4];
    return __get_cpuid_count((unsigned)leaf, (unsigned)subleaf, &regs[0], &regs[1], &regs[2], &regs[3]) && regs[reg] >> bit & 1;
}

/* Whether the operating system saves these registers (XCR0): without that they must not be used. */
static int system_saves(unsigned mask) {
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

/* Four int8 side by side, to be repeated in a vector. */
static INLINE int32_t load_four(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return four;
}

#define AVX2 TARGET("avx2")
COMPILED(avx2, AVX2)

/* Sums of pairs stay within 16 bits for four tiles: 4 * 16 * 2 * 2 * 127 < 2^15. */
AVX2 static INLINE void ternary_rows_avx2(
    const uint8_t *w, const int8_t *x, size_t stride, size_t tiles, int32_t *sums, const int rows) {
    const __m256i low = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    __m256i wide[2][2];
    for (int r = 0; r < rows; r++) wide[r][0] = wide[r][1] = _mm256_setzero_si256();
    for (size_t t = 0; t < tiles;) {
        __m256i narrow[2][2];
        for (int r = 0; r < rows; r++) narrow[r][0] = narrow[r][1] = _mm256_setzero_si256();
        for (size_t end = min_size(t + 4, tiles); t < end; t++, w += TILE, x += stride) {
            AHEAD(w), AHEAD(w + 64), AHEAD(w + 128), AHEAD(w + 192);
            for (int i = 0; i < 4; i++)
                UNROLL for (int h = 0; h < 2; h++) {
                    __m256i pairs = _mm256_loadu_si256((const __m256i *)(w + 64 * i + 32 * h));
                    UNROLL for (int s = 0; s < 4; s++) {
                        __m256i codes = _mm256_and_si256(_mm256_srli_epi16(pairs, 2 * s), low);
                        UNROLL for (int r = 0; r < rows; r++) {
                            __m256i of_x = _mm256_set1_epi32(load_four(x + r * INS + 16 * i + 4 * s));
                            narrow[r][h] = _mm256_add_epi16(narrow[r][h], _mm256_maddubs_epi16(codes, of_x));
                        }
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
            for (int h = 0; h < 2; h++) { /* |w| * (sign(w) x): a pair is at most 2 * 127 * 127 < 2^15 */
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

/* With one row there is a sum for each bit pair, unshifted; several rows share the work of shifting the pairs down. */
AVXVNNI static INLINE void ternary_rows_avxvnni(
    const uint8_t *w, const int8_t *x, size_t stride, size_t tiles, int32_t *sums, const int rows) {
    const int num_sums = rows == 1 ? 4 : 1;
    const __m256i low = _mm256_set1_epi8(3);
    __m256i sum[4][2][4];
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++)
            for (int s = 0; s < num_sums; s++) sum[r][h][s] = _mm256_setzero_si256();
    for (size_t t = 0; t < tiles; t++, w += TILE, x += stride) {
        AHEAD(w), AHEAD(w + 64), AHEAD(w + 128), AHEAD(w + 192);
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int h = 0; h < 2; h++) {
                __m256i pairs = _mm256_loadu_si256((const __m256i *)(w + 64 * i + 32 * h));
                UNROLL for (int s = 0; s < 4; s++) {
                    __m256i codes = num_sums == 4 ? _mm256_and_si256(pairs, _mm256_set1_epi8((char)(3 << 2 * s)))
                                              : _mm256_and_si256(_mm256_srli_epi16(pairs, 2 * s), low);
                    UNROLL for (int r = 0; r < rows; r++) {
                        __m256i *into = &sum[r][h][num_sums == 4 ? s : 0];
                        __m256i of_x = _mm256_set1_epi32(load_four(x + r * INS + 16 * i + 4 * s));
                        *into = _mm256_dpbusd_avx_epi32(*into, codes, of_x);
                    }
                }
            }
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) {
            __m256i total = sum[r][h][0];
            for (int s = 1; s < num_sums; s++) total = _mm256_add_epi32(total, _mm256_srai_epi32(sum[r][h][s], 2 * s));
            _mm256_storeu_si256((__m256i *)(sums + OUTS * r + 8 * h), total);
        }
}

TERNARY(avxvnni, AVXVNNI, 4)
#endif

#define AVX512 TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
COMPILED(avx512vnni, AVX512)

/* A sum for each row and bit pair, two for a single row: enough sums to hide the latency of VPDPBUSD. */
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
                    __m512i of_x = _mm512_set1_epi32(load_four(x + r * INS + 16 * i + 4 * s));
                    *into = _mm512_dpbusd_epi32(*into, codes, of_x);
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
