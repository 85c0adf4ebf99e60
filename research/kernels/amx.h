/* Kernels for AMX, Intel's matrix unit: 32 rows x 32 outputs at a time, from ternary weights unpacked to int8. */
#if AMX
#define TILES TARGET("amx-tile,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

/* Linux gives a process the tile registers only on request. */
static int has_amx(void) {
    return has_avx512vnni() && cpu_has(7, 0, 3, 24) && cpu_has(7, 0, 3, 25) && system_saves(0x60000) &&
           !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

/* AMX wants four inputs of each output side by side: transpose a 16 x 16 matrix of int32, each of them four int8. */
TILES static INLINE void transpose(const int8_t *w, size_t pitch, size_t outs, int8_t *to) {
    int32_t columns[16][16] __attribute__((aligned(64)));
    memset(columns, 0, sizeof columns);
    for (size_t n = 0; n < outs; n++) {
        int32_t four[16];
        memcpy(four, w + n * pitch, sizeof four);
        for (int i = 0; i < 16; i++) columns[i][n] = four[i];
    }
    memcpy(to, columns, sizeof columns);
}

/* Write sixteen outputs as int8, 1 kB a tile, for `count` tiles of inputs from tile `start` on. */
TILES static void unpack(const Matrix *m, size_t strip, size_t start, size_t count, int8_t *to) {
    size_t tiles = ceil_div((size_t)m->in, INS);
    const __m512i low = _mm512_set1_epi8(3), one = _mm512_set1_epi8(1);
    if (m->bits == 8) {
        const int8_t *w = (const int8_t *)m->weights + (strip * OUTS * tiles + start) * INS;
        size_t outs = min_size((size_t)m->out - strip * OUTS, OUTS);
        for (size_t t = 0; t < count; t++) transpose(w + t * INS, tiles * INS, outs, to + 1024 * t);
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

/* Tiles of inputs at a time. DEPTH tiles of 32 rows stay in the first cache while pairs of strips pass by; WIDE tiles of
 * these pairs stay in the second cache while all rows pass by. */
enum { DEPTH = 8, WIDE = 64 };

/* Pairs of strips that are unpacked at a time: so many times fewer reads of the rows from memory. */
static size_t pairs_at_once(const Matrix *m, size_t threads) {
    size_t pairs = ceil_div(ceil_div((size_t)m->out, 2 * OUTS), threads), tiles = ceil_div((size_t)m->in, INS);
    size_t fit = (768 << 10) / (2048 * min_size(tiles, WIDE));
    return min_size(pairs, fit);
}

/* Bytes that one thread needs: for each pair its weights, and sums for 32 rows, or for all rows if inputs come in parts. */
static size_t count_amx_bytes(const Matrix *m, size_t rows, size_t at_once) {
    size_t tiles = ceil_div((size_t)m->in, INS);
    return at_once * (2048 * min_size(tiles, WIDE) + 4096 * (tiles > WIDE ? ceil_div(rows, 2 * GROUP) : 1));
}

/* 32 rows times 32 outputs over `count` tiles of inputs; `more` adds to the sums, else they begin at zero. */
TILES static INLINE void multiply_square(const int8_t *x0, const int8_t *x1, const int8_t *w0, const int8_t *w1, size_t count,
                                         int more, int32_t (*sums)[16 * 16]) {
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

/* This thread's outputs. The codes lie in groups of 16 rows; the number of groups is even. */
TILES static void multiply_amx(const Matrix *m, const int8_t *codes, const float *x_scales, size_t rows, float *y,
                               int8_t *scratch, size_t at_once, size_t thread, size_t threads) {
    size_t tiles = ceil_div((size_t)m->in, INS), strips = ceil_div((size_t)m->out, OUTS);
    size_t wide = min_size(tiles, WIDE), from, to;
    int32_t(*sums)[4][16 * 16] = (void *)(scratch + at_once * 2048 * wide);
    TileShapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.bytes[i] = 64, shapes.rows[i] = 16;
    _tile_loadconfig(&shapes);
    split_work(ceil_div(strips, 2), thread, threads, &from, &to);
    for (size_t first = from; first < to; first += at_once)
        for (size_t begin = 0; begin < tiles; begin += wide) {
            size_t last = min_size(first + at_once, to), finish = min_size(begin + wide, tiles);
            for (size_t strip = 2 * first; strip < min_size(2 * last, strips); strip++)
                unpack(m, strip, begin, finish - begin, scratch + (strip - 2 * first) * 1024 * wide);
            for (size_t row = 0; row < rows; row += 2 * GROUP)
                for (size_t start = begin; start < finish; start += DEPTH)
                    for (size_t pair = first; pair < last; pair++) {
                        const size_t both = 2 * pair + 1 < strips, end = min_size(start + DEPTH, finish);
                        const int8_t *x = codes + (row * tiles + GROUP * start) * INS;
                        const int8_t *w = scratch + ((pair - first) * 2 * wide + start - begin) * 1024;
                        int32_t(*c)[16 * 16] = sums[(wide < tiles ? row / (2 * GROUP) * at_once : 0) + pair - first];
                        multiply_square(x, x + tiles * 1024, w, w + both * 1024 * wide, end - start, start > 0, c);
                        for (size_t r = 0; end == tiles && r < min_size(rows - row, 2 * GROUP); r++)
                            for (size_t b = 0; b <= both; b++) {
                                size_t out = (2 * pair + b) * OUTS;
                                scale_sums(c[r / GROUP * 2 + b] + r % GROUP * OUTS, 0, x_scales[row + r], m->scale + out,
                                       min_size((size_t)m->out - out, OUTS), y + (row + r) * (size_t)m->out + out);
                            }
                    }
        }
    _tile_release();
}
#endif
