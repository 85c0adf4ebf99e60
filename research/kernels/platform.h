/* What all C files share: OpenMP or one thread without it, attributes, floating point that is the same everywhere. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))

static INLINE size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
