/* Functions that are the same on every instruction set: written once, compiled for each. Then the portable kernels. */
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

#define MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds |x| < 2^22 to an integer, halves to even, as rint does */
#define MAGIC_BITS 0x4b400000

/* Quantize a row of n numbers to int8; each 64 codes go to the next `stride` bytes of q. Returns the row's scale, and the sum
 * of its codes in `sum`. A row that is not finite has the scale NaN, over codes that are all zero. */
static INLINE float quantize_row(const float *x, size_t n, int8_t *q, size_t stride, int32_t *sum) {
    int32_t top = 0, total = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t magnitude = bits_of(x[i]) & 0x7fffffff; /* ordered as the floats are, infinity and then NaN on top */
        top = magnitude > top ? magnitude : top;
    }
    int finite = top < 0x7f800000;
    float size = float_of(top) < 1e-5f ? 1e-5f : float_of(top);
    float inverse = finite ? 1.0f / size * 127.0f : 0.0f;
    for (size_t start = 0; start < n; start += INS, q += stride) {
        float part[INS] = {0};
        const float *from = x + start;
        for (int i = 0; i < INS; i += 16) __builtin_prefetch(from + n + i, 0, 3); /* load the next row meanwhile */
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

/* exp(x) to 2 units in the last place; x is clamped to [-87, 88]. With x = k ln 2 + r: 2^k times a polynomial of r. */
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

/* gate = act(gate) * up, act being SiLU, or the squared ReLU (arXiv 2002.05202, 2109.08668). */
static INLINE void apply_gate(float *gate, const float *up_, size_t n, int squared) {
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

/* y = (sums - offset) * (x_scale * scale), for up to sixteen outputs. */
static INLINE void scale_sums(const int32_t *sums, int32_t offset, float x_scale, const float *scale, size_t count, float *y) {
    if (count == OUTS) {
        float all[OUTS]; /* a local array cannot overlap y, so this is one vector instruction */
        for (size_t n = 0; n < OUTS; n++) all[n] = (float)(sums[n] - offset) * (x_scale * scale[n]);
        memcpy(y, all, sizeof all);
    } else
        for (size_t n = 0; n < count; n++) y[n] = (float)(sums[n] - offset) * (x_scale * scale[n]);
}

/* The common functions for one instruction set. */
#define COMPILED(suffix, target) \
    target static float quantize_##suffix(const float *x, size_t n, int8_t *q, size_t stride, int32_t *sum) { \
        return quantize_row(x, n, q, stride, sum); \
    } \
    target static void norm_##suffix(const float *x, const float *weight, size_t n, float *y) { rms_norm(x, weight, n, y); } \
    target static void gate_##suffix(float *gate, const float *up_, size_t n, int squared) { \
        apply_gate(gate, up_, n, squared); \
    } \
    target static void attend_##suffix( \
        const float *q, const float *k, const float *v, size_t count, size_t width, float *scores, float *y) { \
        attend_head(q, k, v, count, width, scores, y); \
    }
#define COMMON(suffix) quantize_##suffix, norm_##suffix, gate_##suffix, attend_##suffix

/* ternary_rows, compiled for fixed numbers of rows: `most` at a time, then two, then one. */
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
