/* Kernels for ARM: NEON with its dot products of four int8 pairs. */
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
