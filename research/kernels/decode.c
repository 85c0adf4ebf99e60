/* One token through a packed transformer: research/models/transformer.py in C, for what research/nn/decode.py accepts.
 *
 * ternary.c includes this file, which uses its static functions. One token has a few microseconds of work in each layer, so
 * the threads start once a token and wait for each other at barriers.
 */
typedef struct {
    const float *input_norm, *attention_norm, *post_norm, *feedforward_norm; /* the second and the fourth may be NULL */
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
    float *x, *qkv, *mixed, *gate, *up;  /* shared by all threads */
    float *normed, *scores;              /* of this thread */
    int8_t *codes;
} Pass;

/* Quantize norm(from) into p->codes. Each thread does it for itself, which saves a barrier. */
static void quantize_input(const Pass *p, const float *from, const float *norm, size_t n, float *scale, int32_t *sum) {
    const float *x = from;
    if (norm) p->isa->norm(from, norm, n, p->normed), x = p->normed;
    *scale = p->isa->quantize(x, n, p->codes, INS, sum);
}

/* Prefetch this thread's first weights of the layer that comes after the next barrier. */
static void prefetch_next(const Pass *p, const Matrix *m) {
    size_t from, to;
    split_work(ceil_div((size_t)m->out, OUTS), p->thread, p->threads, &from, &to);
    if (from < to) prefetch_strip(m, from);
}

/* y = matrix(p->codes), this thread's outputs. */
static void product(const Pass *p, const Matrix *m, float scale, int32_t sum, float *y) {
    size_t from, to;
    split_work(ceil_div((size_t)m->out, OUTS), p->thread, p->threads, &from, &to);
    multiply(p->isa, m, p->codes, 1, &scale, &sum, 1, y, from, to);
}

/* Rotary positions, on the halves of a head (arXiv 2104.09864, eq. 34). */
static void rotate(const Pass *p, float *x) {
    size_t half = (size_t)p->m->width / 2;
    const float *cos_ = p->m->cos + p->position * half, *sin_ = p->m->sin + p->position * half;
    for (size_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos_[i] - b * sin_[i];
        x[i + half] = b * cos_[i] + a * sin_[i];
    }
}

/* Attention of this thread's key and value heads, and of the query heads that share them. */
static void attention(const Pass *p, const Block *b) {
    const Model *m = p->m;
    size_t width = (size_t)m->width, heads = (size_t)m->heads, kv_heads = (size_t)m->kv_heads, per_kv = heads / kv_heads;
    size_t from, to;
    split_work(kv_heads, p->thread, p->threads, &from, &to);
    for (size_t kv = from; kv < to; kv++) {
        float *keys = b->keys + kv * (size_t)m->length * width, *values = b->values + kv * (size_t)m->length * width;
        float *key = keys + p->position * width;
        memcpy(key, p->qkv + (heads + kv) * width, width * sizeof *key);
        memcpy(values + p->position * width, p->qkv + (heads + kv_heads + kv) * width, width * sizeof *key);
        rotate(p, key);
        for (size_t head = kv * per_kv; head < (kv + 1) * per_kv; head++) {
            rotate(p, p->qkv + head * width);
            p->isa->attend(p->qkv + head * width, keys, values, p->position + 1, width, p->scores, p->mixed + head * width);
        }
    }
}

/* x += y, this thread's outputs of a matrix. */
static void add_output(const Pass *p, const Matrix *m, const float *y) {
    size_t from, to, out = (size_t)m->out;
    split_work(ceil_div(out, OUTS), p->thread, p->threads, &from, &to);
    for (size_t i = from * OUTS; i < min_size(to * OUTS, out); i++) p->x[i] += y[i];
}

static void block(const Pass *p, const Block *b, const Matrix *next) {
    size_t dim = (size_t)p->m->dim, hidden = (size_t)p->m->hidden, all = (size_t)(p->m->heads * p->m->width), from, to;
    size_t kv = (size_t)(p->m->kv_heads * p->m->width);
    float scale;
    int32_t sum;
    quantize_input(p, p->x, b->input_norm, dim, &scale, &sum);
    product(p, &b->q, scale, sum, p->qkv);
    product(p, &b->k, scale, sum, p->qkv + all);
    product(p, &b->v, scale, sum, p->qkv + all + kv);
    prefetch_next(p, &b->o);
#pragma omp barrier
    attention(p, b);
#pragma omp barrier
    quantize_input(p, p->mixed, b->attention_norm, all, &scale, &sum);
    product(p, &b->o, scale, sum, p->qkv);
    add_output(p, &b->o, p->qkv);
    prefetch_next(p, &b->gate);
#pragma omp barrier
    quantize_input(p, p->x, b->post_norm, dim, &scale, &sum);
    product(p, &b->gate, scale, sum, p->gate);
    product(p, &b->up, scale, sum, p->up);
    split_work(ceil_div(hidden, OUTS), p->thread, p->threads, &from, &to);
    to = min_size(to * OUTS, hidden);
    from *= OUTS;
    if (from < to) p->isa->gate(p->gate + from, p->up + from, to - from, p->m->squared);
    prefetch_next(p, &b->down);
#pragma omp barrier
    quantize_input(p, p->gate, b->feedforward_norm, hidden, &scale, &sum);
    product(p, &b->down, scale, sum, p->qkv);
    add_output(p, &b->down, p->qkv);
    prefetch_next(p, next);
#pragma omp barrier
}

/* Write the logits after one more token, at `position`; keys and values of earlier positions are in the caches. Returns 0, or
 * NO_MEMORY. The caller checks that token, position and all sizes fit. */
EXPORT int grokbit_decode(const Model *m, int32_t token, int32_t position, float *logits, int threads) {
    size_t dim = (size_t)m->dim, hidden = (size_t)m->hidden, qkv = (size_t)((m->heads + 2 * m->kv_heads) * m->width);
    size_t widest = dim > hidden ? dim : hidden, most = threads > 1 ? (size_t)threads : 1;
    size_t all = pad_to_line(4 * dim) + 2 * pad_to_line(4 * (qkv > dim ? qkv : dim)) + 2 * pad_to_line(4 * hidden);
    size_t per_thread = pad_to_line(4 * widest) + pad_to_line(4 * ((size_t)position + 1)) + pad_to_line(widest);
    char *memory = aligned_alloc(64, all + most * per_thread);
    if (!memory) return NO_MEMORY;
    Pass shared = {.m = m, .isa = current_isa, .position = (size_t)position, .x = (float *)memory};
    shared.qkv = (float *)(memory + pad_to_line(4 * dim));
    shared.mixed = (float *)((char *)shared.qkv + pad_to_line(4 * (qkv > dim ? qkv : dim)));
    shared.gate = (float *)((char *)shared.mixed + pad_to_line(4 * (qkv > dim ? qkv : dim)));
    shared.up = (float *)((char *)shared.gate + pad_to_line(4 * hidden));
    const int8_t *row = (const int8_t *)m->embed.weights + (size_t)token * ceil_div(dim, INS) * INS;
    for (size_t i = 0; i < dim; i++) shared.x[i] = (float)row[i] * m->embed.scale[token];
#pragma omp parallel num_threads((int)most) if (most > 1)
    {
        Pass p = shared;
        float scale;
        int32_t sum;
        p.thread = (size_t)omp_get_thread_num(), p.threads = (size_t)omp_get_num_threads();
        p.normed = (float *)(memory + all + p.thread * per_thread);
        p.scores = (float *)((char *)p.normed + pad_to_line(4 * widest));
        p.codes = (int8_t *)((char *)p.scores + pad_to_line(4 * ((size_t)position + 1)));
        for (int32_t i = 0; i < m->depth; i++) block(&p, &m->blocks[i], i + 1 < m->depth ? &m->blocks[i + 1].q : &m->head);
        quantize_input(&p, p.x, m->norm, dim, &scale, &sum);
        product(&p, &m->head, scale, sum, logits);
    }
    free(memory);
    return 0;
}

/* One row through each of `count` layers of one shape, the threads started once, as for a token of a model
 * (benchmarks/ternary_matmul.py). Returns 0, or NO_MEMORY. */
EXPORT int grokbit_row(const Matrix *layers, int32_t count, const float *x, float *y, int threads) {
    size_t per_thread = pad_to_line((size_t)layers->in), most = threads > 1 ? (size_t)threads : 1;
    int8_t *memory = aligned_alloc(64, most * per_thread);
    if (!memory) return NO_MEMORY;
#pragma omp parallel num_threads((int)most) if (most > 1)
    {
        Pass p = {.isa = current_isa, .thread = (size_t)omp_get_thread_num(), .threads = (size_t)omp_get_num_threads()};
        float scale;
        int32_t sum;
        p.codes = memory + p.thread * per_thread;
        for (int32_t i = 0; i < count; i++) {
            quantize_input(&p, x, NULL, (size_t)layers[i].in, &scale, &sum);
            product(&p, &layers[i], scale, sum, y);
            prefetch_next(&p, &layers[i + 1 < count ? i + 1 : i]);
#pragma omp barrier
        }
    }
    free(memory);
    return 0;
}

/* Return the sum of all 8-byte words: times how fast this machine reads memory (benchmarks/ternary_matmul.py). */
EXPORT uint64_t grokbit_read(const uint64_t *words, int64_t count, int threads) {
    uint64_t total = 0;
    (void)threads;
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static)
    for (int64_t i = 0; i < count; i++) total += words[i];
    return total;
}
