/* Grokfast and Adam in one pass over the tensors: each number is read and written once a step.
 *
 * The filter (Lee et al. 2024, arXiv 2405.20233), then Adam (arXiv 1412.6980) or AdamW (arXiv 1711.05101) in the float32
 * operations of torch's fused step. The gradient is only read. Each result depends on one position of the tensors alone, and
 * nothing is contracted to fused multiply-adds, so threads and instruction sets give the same bits.
 *
 * Needs a C11 compiler that speaks GNU C. Build: cc -O3 -ffp-contract=off -fno-math-errno -fopenmp -shared -fPIC adamw.c -lm
 * Without OpenMP one thread does all the work.
 */
#include "platform.h"

/* Tensors that overlap do so number by number, so the loop may be vectorised. */
#ifdef __clang__
#define NO_ALIAS _Pragma("clang loop vectorize(assume_safety)")
#else
#define NO_ALIAS _Pragma("GCC ivdep")
#endif

enum { PLAIN, EMA, WINDOW, SUMMED }; /* SUMMED: sum and ring are up to date already */
enum { LINE = 16, BLOCK = 64, AHEAD = 512, MIN_PER_THREAD = 1 << 14 }; /* floats */

/* A parameter group, as research/optim/fused.py writes it: numbers of 8 bytes only. */
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, coupled;
    double weight, gain; /* of the filter: 1 - alpha and lamb, or 0 and lamb / window */
} Group;

/* A parameter and its state. */
typedef struct {
    float *p;
    const float *g;
    float *exp_avg, *exp_avg_sq, *step;
    float *memory; /* EMA: the average; WINDOW, SUMMED: the running sum */
    float *slot;   /* WINDOW: the oldest gradient, which the newest one overwrites */
    int64_t size, filter, full; /* full: the window's sum is added to the gradient */
    const Group *group;
    float rate, root; /* written here: lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t) */
} Row;
_Static_assert(sizeof(Row) == 12 * 8, "fused.py writes rows of twelve numbers");

/* torch.lerp: the form that is exact at the nearer end. */
static INLINE float lerp(float from, float to, float weight, int near) {
    return near ? from + weight * (to - from) : to - (to - from) * (1.0f - weight);
}

static INLINE void block(const Row *row, size_t from, size_t to, int filter, int full, int coupled) {
    const Group *group = row->group;
    float *p = row->p, *m = row->exp_avg, *v = row->exp_avg_sq, *memory = row->memory, *slot = row->slot;
    const float *g = row->g;
    const float decay = coupled ? (float)group->weight_decay : (float)(1.0 - group->lr * group->weight_decay);
    const float weight = (float)group->weight, gain = (float)group->gain, eps = (float)group->eps;
    const float beta1 = (float)(1.0 - group->beta1), beta2 = (float)group->beta2, rest2 = (float)(1.0 - group->beta2);
    const float rate = row->rate, root = row->root;
    const int near = weight < 0.5f, near1 = beta1 < 0.5f;
    NO_ALIAS for (size_t i = from; i < to; i++) {
        float grad = g[i], x = p[i];
        if (filter == EMA) { /* Algorithm 2 */
            float mu = memory[i] = lerp(memory[i], grad, weight, near);
            grad = grad + gain * mu;
        } else if (filter == WINDOW) { /* Algorithm 1 */
            float sum = memory[i] = memory[i] + grad - slot[i];
            slot[i] = grad;
            if (full) grad = grad + gain * sum;
        } else if (filter == SUMMED) {
            grad = grad + gain * memory[i];
        }
        if (coupled)
            grad = grad + x * decay;
        else
            x = x * decay;
        float first = m[i] = lerp(m[i], grad, beta1, near1);
        float second = v[i] = beta2 * v[i] + rest2 * grad * grad;
        p[i] = x - rate * (first / (__builtin_sqrtf(second) * root + eps));
    }
}

/* Prefetch a later block of a tensor: six tensors at once are more streams than the hardware prefetches. */
static INLINE void prefetch_block(const float *x, size_t at) {
    for (size_t i = at + AHEAD; i < at + AHEAD + BLOCK; i += LINE) __builtin_prefetch(x + i, 1, 3);
}

static INLINE void update(const Row *row, size_t from, size_t to, int filter, int full, int coupled) {
    for (size_t at = from; at < to; at += BLOCK) {
        prefetch_block(row->p, at), prefetch_block(row->exp_avg, at);
        prefetch_block(row->exp_avg_sq, at), prefetch_block(row->g, at);
        if (filter != PLAIN) prefetch_block(row->memory, at);
        if (filter == WINDOW) prefetch_block(row->slot, at);
        block(row, at, min_size(at + BLOCK, to), filter, full, coupled);
    }
}

static INLINE void choose(const Row *row, size_t from, size_t to, int coupled) {
    switch (row->filter) {
    case EMA: update(row, from, to, EMA, 1, coupled); break;
    case SUMMED: update(row, from, to, SUMMED, 1, coupled); break;
    case WINDOW: row->full ? update(row, from, to, WINDOW, 1, coupled) : update(row, from, to, WINDOW, 0, coupled); break;
    default: update(row, from, to, PLAIN, 0, coupled);
    }
}

static void portable(const Row *row, size_t from, size_t to) {
    row->group->coupled ? choose(row, from, to, 1) : choose(row, from, to, 0);
}

#if (defined(__x86_64__) || defined(__amd64__)) && !defined(GROKBIT_PORTABLE)
/* Wider vectors would only wait for memory. */
__attribute__((target("avx2"))) static void avx2(const Row *row, size_t from, size_t to) {
    row->group->coupled ? choose(row, from, to, 1) : choose(row, from, to, 0);
}
static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
#else
#define avx2 portable
static int has_avx2(void) { return 0; }
#endif

/* Return where a bound over the numbers of all tensors lies within one tensor, rounded up to a cache line. */
static size_t clamp_to_tensor(size_t bound, size_t start, size_t size) {
    if (bound <= start) return 0;
    return min_size((bound - start + LINE - 1) / LINE * LINE, size);
}

/* Count one more step for each tensor and compute its bias corrections. Return the number of numbers. */
static size_t count_step(Row *rows, int64_t count) {
    size_t all = 0;
    for (int64_t i = 0; i < count; i++) {
        Row *row = &rows[i];
        const Group *group = row->group;
        float step = *row->step += 1;
        all += (size_t)row->size;
        if (i && row[-1].group == group && *row[-1].step == step) {
            row->rate = row[-1].rate, row->root = row[-1].root;
            continue;
        }
        row->rate = (float)(group->lr / (1.0 - pow(group->beta1, step)));
        row->root = (float)(1.0 / sqrt(1.0 - pow(group->beta2, step)));
    }
    return all;
}

/* Take one optimizer step of all rows. The threads get equal shares of the numbers, across tensors. */
EXPORT void grokbit_adamw(Row *rows, int64_t count, int threads) {
    size_t all = count_step(rows, count), most = all / MIN_PER_THREAD + 1;
    void (*pass)(const Row *, size_t, size_t) = has_avx2() ? avx2 : portable;
    if (threads < 1) threads = 1;
    if ((size_t)threads > most) threads = (int)most;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        size_t thread = (size_t)omp_get_thread_num(), of = (size_t)omp_get_num_threads();
        size_t from = all / of * thread, to = thread + 1 < of ? all / of * (thread + 1) : all, start = 0;
        for (int64_t i = 0; i < count && start < to; i++) {
            size_t size = (size_t)rows[i].size;
            size_t first = clamp_to_tensor(from, start, size), last = clamp_to_tensor(to, start, size);
            if (first < last) pass(&rows[i], first, last);
            start += size;
        }
    }
}
