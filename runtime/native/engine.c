/* The function of the Topological Sequence Model on a CPU: training/model.py has the mathematics.
 *
 * Projections are integer: weights of 8 or 4 bits a row, activations quantized to 8 bits a token as
 * they come. Sums are exact, so that every kind of instructions gives the same integers; the
 * floating-point rest is one source, in a fixed order of additions, without contraction
 * (-ffp-contract=off): the same model gives the same bits in plain C, on AVX2, AVX-512 and NEON.
 */
#include "tsm.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if !defined(_WIN32) && !defined(__wasm__)
#include <pthread.h>
#include <sched.h>
#define THREADS 1
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define X86 1
#elif defined(__ARM_NEON) || \
    (defined(__arm__) && __ARM_ARCH >= 7 && defined(__ARM_FP) && !defined(__clang__))
#include <arm_neon.h>
#define NEON 1
#ifdef __linux__
#include <sys/auxv.h>
#endif
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#define WASM 1
#endif

/* The same lines compiled for wider vectors, chosen when the library is loaded; clang cannot. */
#if !defined(WIDE) && defined(X86) && defined(__gnu_linux__) && !defined(__clang__)
#if __GNUC__ >= 12
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#elif !defined(WIDE) && defined(__wasm__) /* once is enough where size counts */
#define WIDE __attribute__((noinline))
#elif !defined(WIDE)
#define WIDE
#endif

enum { BLOCK = 128, LANES = 16, MOST_TAPS = 8, ROWS = 16, PANEL = 64, TOKENS = 4, FEW = 9,
       ANGLES = 3 /* delta, radius and decay of a head */,
       MOST_THREADS = 16, SPINS = 1 << 14,
       AHEAD = 3072 /* bytes that are fetched before they are wanted: what was fastest */ };

typedef struct {
    const uint8_t *codes; /* (out, in): int8, or two int4 a byte, the first in the low half */
    const float *scales;  /* (out,) */
    uint32_t out, in, bits;
} matrix;

typedef struct {
    const float *taps[MOST_TAPS], *radius;
    const float *encoder, *delta, *decay; /* of an addressed splitter */
    matrix in, back, up, down;
} layer;

/* Activations of up to BLOCK tokens, quantized. */
typedef struct {
    const int8_t *codes; /* (count, in) */
    float unit[BLOCK];   /* codes * unit = activation */
    int32_t sum[BLOCK];  /* of codes */
    uint32_t count;
} input;

/* One kind of instructions: sums of `count` rows, a multiple of ROWS, against one token, and of a
 * panel's PANEL rows against TOKENS tokens. Where an instruction wants unsigned codes they are
 * raised, by 128 or 8, and that times the sum of the activations is taken off again: `raised` for
 * rows of 8 bits and panels, `raised4` for rows of 4. */
typedef void rows_kernel(const uint8_t *codes, const int8_t *x, uint32_t in, uint32_t count,
                         int32_t *sums);
typedef struct {
    rows_kernel *rows8, *rows4;
    void (*tile)(const uint8_t *panel, const int8_t *x, uint32_t in, int32_t *sums);
    int raised, raised4;
} kernels;

/* A thread's share of a product, and the room to compute it in. */
typedef struct {
    tsm_model *model;
    uint8_t *panel;
    uint32_t index;
#ifdef THREADS
    pthread_t thread;
#endif
} worker;

struct tsm_model {
    tsm_spec spec;
    uint8_t *file; /* where tsm_open_file has read it, else NULL */
    const char *metadata;
    size_t metadata_bytes;
    const float *embed;
    layer *layers;
    matrix head;
    kernels kernels;
    int simd;
    size_t state_parts[TSM_STATE_PARTS], state_values; /* as tsm_state_values */
    float *x, *normal, *shifted, *read, *inner; /* BLOCK rows each; inner: a mixer's, then an MLP's */
    float *qkv; /* queries, keys and values of one token, of all heads */
    int8_t *codes;
    worker workers[MOST_THREADS]; /* the first is the caller's thread */
    uint32_t threads;
    /* The product under way. */
    const matrix *weights;
    const input *activations;
    float *output;
#ifdef THREADS
    uint32_t round, left; /* products given out; workers that are not done */
    int ending;
    pthread_mutex_t mutex;
    pthread_cond_t begun;
#endif
};

/* Arithmetic */

/* LANES values at once, of which each compiler makes what its target has; and the same at any
 * address. Of sums and products alone: other loops are plain, for GCC takes vectors wider than its
 * target's apart, value by value, where they are compared or converted. */
typedef float wide __attribute__((vector_size(4 * LANES)));
typedef float wide_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t int_at __attribute__((may_alias));
/* As many bytes as a register has, and as 32-bit integers. */
#define VECTORS(size)                                                                              \
    typedef int32_t ints##size __attribute__((vector_size(size)));                                 \
    typedef uint8_t bytes##size __attribute__((vector_size(size)));                                \
    typedef uint8_t bytes##size##_at __attribute__((vector_size(size), aligned(1), may_alias));
VECTORS(16)
VECTORS(32)
VECTORS(64)
#define WHOLE(size, address) (*(const bytes##size##_at *)(address))
#define TAIL(size, address) tail##size(address, (uint32_t)(n - i))
#define INLINE static inline __attribute__((always_inline))
/* What need not be fast is small in WebAssembly, which is sent over a network. */
#ifdef __wasm__
#define SMALL _Pragma("clang attribute push(__attribute__((minsize)), apply_to = function)")
#define END_SMALL _Pragma("clang attribute pop")
#else
#define SMALL
#define END_SMALL
#endif
/* A loop whose turns do not depend on each other, though some of its arrays may be one. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* where there are no vectors */
#define EACH _Pragma("clang loop vectorize(assume_safety)")
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EACH _Pragma("GCC ivdep")
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints16){__VA_ARGS__})
#endif
#pragma GCC diagnostic ignored "-Wpsabi"

INLINE float total(wide v) {
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    return v[0];
}

INLINE float dot(const float *a, const float *b, uint32_t n) {
    wide even = {0}, odd = {0};
    float rest = 0;
    uint32_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even += *(const wide_at *)(a + i) * *(const wide_at *)(b + i);
        odd += *(const wide_at *)(a + i + LANES) * *(const wide_at *)(b + i + LANES);
    }
    for (; i < n; i++) rest += a[i] * b[i];
    return total(even + odd) + rest;
}

/* condition ? a : b, without a branch that would keep a loop from being vectorised. */
INLINE float pick(int condition, float a, float b) {
    int32_t mask = -condition, x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    x = (x & mask) | (y & ~mask);
    memcpy(&a, &x, sizeof a);
    return a;
}

/* exp(-|x|) to 3e-7 of its value, exp(-87) at the least: 2^n times a polynomial in the rest, at
 * most ln 2 / 2 (Cephes' expf). */
INLINE float exp_minus(float x) {
    float y = -fabsf(x), power;
    y = pick(y > -87, y, -87); /* and for what is not a number */
    int32_t n = (int32_t)(y * 1.44269504f - 0.5f), bits = (n + 127) << 23;
    float r = y - (float)n * 0.693359375f + (float)n * 2.12194440e-4f;
    float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1) * power;
}

/* 1 / (1 + exp(-x)) */
INLINE float sigmoid(float x) {
    float p = exp_minus(x);
    return pick(x < 0, p, 1) / (1 + p);
}

/* sin(pi/2 y), 0 <= y <= 1, to 1e-7: the power series. */
INLINE float sin_quarter(float y) {
    float z = y * 1.57079633f, q = z * z;
    float p = q * -2.5052108e-8f + 2.7557319e-6f;
    p = p * q - 1.9841270e-4f;
    p = p * q + 8.3333333e-3f;
    p = p * q - 1.6666667e-1f;
    return z + z * q * p;
}

/* y = x over its root mean square. */
WIDE static void normalise(const float *x, float *y, uint32_t n) {
    float scale = 1 / sqrtf(dot(x, x, n) / (float)n + 1e-6f);
    for (uint32_t i = 0; i < n; i++) y[i] = x[i] * scale;
}

/* x over its length. */
WIDE static void unit_length(float *x, uint32_t n) {
    const float scale = 1 / sqrtf((float)n);
    normalise(x, x, n);
    for (uint32_t i = 0; i < n; i++) x[i] *= scale;
}

/* x = codes * unit, |codes| <= 127, rounded to the nearest. Returns unit. */
WIDE static float quantize(const float *x, int8_t *codes, uint32_t n, int32_t *sum) {
    float greatest;
    int32_t most = 0, found = 0; /* without their signs, floats are in the order of their bits */
    for (uint32_t i = 0; i < n; i++) {
        int32_t size = ((const int_at *)x)[i] & INT32_MAX;
        most = size > most ? size : most;
    }
    memcpy(&greatest, &most, sizeof greatest);
    float steps = greatest > 1e-30f ? 127 / greatest : 0;
    EACH for (uint32_t i = 0; i < n; i++) {
        float scaled = x[i] * steps;
        scaled = pick(scaled == scaled, scaled, 0); /* not a number: a damaged model */
        int32_t rounded = (int32_t)(scaled + copysignf(0.5f, scaled));
        codes[i] = (int8_t)rounded;
        found += rounded;
    }
    *sum = found;
    return greatest / 127;
}

/* Products. A row of int4 codes wants the even elements of x first, then the odd ones: `split`. */

WIDE static void split(int8_t *x, uint32_t n) {
    int8_t pairs[n];
    memcpy(pairs, x, n);
    for (uint32_t i = 0; i < n / 2; i++) {
        uint16_t pair;
        memcpy(&pair, pairs + 2 * i, 2);
        x[i] = (int8_t)pair;
        x[n / 2 + i] = (int8_t)(pair >> 8);
    }
}

static void plain_rows8(const uint8_t *codes, const int8_t *x, uint32_t n, uint32_t count,
                        int32_t *sums) {
    for (uint32_t r = 0; r < count; r++) {
        const int8_t *row = (const int8_t *)codes + (size_t)r * n;
        int32_t sum = 0;
        for (uint32_t i = 0; i < n; i++) sum += row[i] * x[i];
        sums[r] = sum;
    }
}

static void plain_rows4(const uint8_t *codes, const int8_t *x, uint32_t n, uint32_t count,
                        int32_t *sums) {
    for (uint32_t r = 0; r < count; r++) {
        const uint8_t *row = codes + (size_t)r * (n / 2);
        int32_t sum = 0;
        for (uint32_t i = 0; i < n / 2; i++)
            sum += (((row[i] & 15) ^ 8) - 8) * x[i] + (((row[i] >> 4) ^ 8) - 8) * x[n / 2 + i];
        sums[r] = sum;
    }
}

/* Where `i` of row `r` lies in a panel: four codes of each of its rows stand side by side. */
static inline size_t in_panel(uint32_t r, uint32_t i) {
    return (size_t)(i / 4 * PANEL + r) * 4 + i % 4;
}

static inline int32_t word(const void *address) {
    int32_t value;
    memcpy(&value, address, 4);
    return value;
}

static inline void relax(void) {
#ifdef X86
    _mm_pause();
#endif
}

/* PANEL rows against TOKENS tokens, `count` registers of rows at a time. */
#define TILE(name, TARGET, size, count, DOT)                                                       \
    TARGET static void name##_tile(const uint8_t *panel, const int8_t *x, uint32_t n,              \
                                   int32_t *sums) {                                                \
        for (int first = 0; first < PANEL; first += size / 4 * count) {                            \
            ints##size sum[TOKENS][count] = {{{0}}};                                               \
            for (uint32_t i = 0; i < n; i += 4) {                                                  \
                const uint8_t *codes = panel + in_panel((uint32_t)first, i);                       \
                bytes##size w[count];                                                              \
                for (int k = 0; k < count; k++) w[k] = WHOLE(size, codes + size * k);              \
                for (int t = 0; t < TOKENS; t++) {                                                 \
                    ints##size four = word(x + (size_t)t * n + i) - (ints##size){0};               \
                    for (int k = 0; k < count; k++)                                                \
                        sum[t][k] = DOT(sum[t][k], w[k], (bytes##size)four);                       \
                }                                                                                  \
            }                                                                                      \
            for (int t = 0; t < TOKENS; t++)                                                       \
                memcpy(sums + t * PANEL + first, sum[t], sizeof sum[t]);                           \
        }                                                                                          \
    }

#ifdef X86
#define SOON(address) _mm_prefetch((const char *)(address) + AHEAD, _MM_HINT_T0)
#define AVX2 __attribute__((target("avx2")))

AVX2 static inline __m128i half256(ints32 v) {
    return _mm_add_epi32(_mm256_castsi256_si128((__m256i)v),
                         _mm256_extracti128_si256((__m256i)v, 1));
}

/* The totals of four vectors. */
AVX2 static inline void fold32(const ints32 *v, int32_t *totals) {
    __m128i ab = _mm_hadd_epi32(half256(v[0]), half256(v[1]));
    __m128i cd = _mm_hadd_epi32(half256(v[2]), half256(v[3]));
    _mm_storeu_si128((__m128i *)totals, _mm_hadd_epi32(ab, cd));
}

/* What is left of a row, fewer than 32 bytes, a multiple of 4; zeros after it. */
AVX2 static inline bytes32 tail32(const void *address, uint32_t left) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left / 4), lane);
    return (bytes32)_mm256_maskload_epi32((const int *)address, mask);
}

/* |codes| <= 127 on both sides, so that no sum of two products saturates. */
AVX2 static inline ints32 add32(ints32 sum, bytes32 codes, bytes32 x) {
    __m256i signs = _mm256_sign_epi8((__m256i)codes, (__m256i)x);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)x), signs);
    return sum + (ints32)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#define AVX2_8(LOAD)                                                                               \
    {                                                                                              \
        bytes32 v = LOAD(32, x + i);                                                               \
        for (size_t r = 0; r < 4; r++) SOON(codes + r * n + i);                                    \
        for (size_t r = 0; r < 4; r++) sum[r] = add32(sum[r], LOAD(32, codes + r * n + i), v);     \
    }
AVX2 static void avx2_rows8(const uint8_t *codes, const int8_t *x, uint32_t in, uint32_t count,
                            int32_t *sums) {
    const size_t n = in;
    for (const int32_t *end = sums + count; sums < end; sums += 4, codes += 4 * n) {
        ints32 sum[4] = {{0}};
        size_t i = 0;
        for (; i + 32 <= n; i += 32) AVX2_8(WHOLE)
        if (i < n) AVX2_8(TAIL)
        fold32(sum, sums);
    }
}

#define AVX2_4(LOAD)                                                                               \
    {                                                                                              \
        __m256i first = (__m256i)LOAD(32, x + i), second = (__m256i)LOAD(32, x + n + i);           \
        for (size_t r = 0; r < 4; r++) {                                                           \
            bytes32 both = LOAD(32, codes + r * n + i) ^ 0x88;                                     \
            __m256i odd = _mm256_srli_epi16((__m256i)(both & 0xf0), 4);                            \
            pairs[r] = _mm256_add_epi16(pairs[r],                                                  \
                                        _mm256_maddubs_epi16((__m256i)(both & 15), first));        \
            pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(odd, second));              \
        }                                                                                          \
    }
AVX2 static void avx2_rows4(const uint8_t *codes, const int8_t *x, uint32_t in, uint32_t count,
                            int32_t *sums) {
    const size_t n = in / 2;
    for (const int32_t *end = sums + count; sums < end; sums += 4, codes += 4 * n) {
        ints32 sum[4] = {{0}};
        for (size_t i = 0; i < n;) {
            /* 16 products of codes up to 15 and activations up to 127: no sum of them saturates. */
            __m256i pairs[4] = {0};
            size_t end_of_pairs = n - i < 128 ? n : i + 128;
            for (; i + 32 <= end_of_pairs; i += 32) AVX2_4(WHOLE)
            if (i < end_of_pairs) {
                AVX2_4(TAIL)
                i = end_of_pairs;
            }
            for (int r = 0; r < 4; r++)
                sum[r] += (ints32)_mm256_madd_epi16(pairs[r], _mm256_set1_epi16(1));
        }
        fold32(sum, sums);
    }
}
TILE(avx2, AVX2, 32, 2, add32)

/* VNNI: instructions that add four products of unsigned codes and signed activations to a sum. The
 * intrinsics make GCC copy the sum to and fro, and a tile take a third longer. */
#if defined(__clang__) && __clang_major__ >= 18 && __clang_major__ < 22
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,evex512")))
#else
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#endif
VNNI static inline ints64 dot64(ints64 sum, bytes64 codes, bytes64 x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
    return sum;
}

VNNI static inline bytes64 tail64(const void *address, uint32_t left) {
    return (bytes64)_mm512_maskz_loadu_epi8(~(__mmask64)0 >> (64 - left), address);
}

VNNI static inline void fold64(const ints64 *v, int32_t *totals) {
    const __m512i a = (__m512i)v[0], b = (__m512i)v[1], c = (__m512i)v[2], d = (__m512i)v[3];
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    _mm_storeu_si128((__m128i *)totals, half256((ints32)half));
}

/* Odd codes of 4 bits are taken times 16, as they lie. */
#define VNNI_8(size, LOAD)                                                                         \
    {                                                                                              \
        if (i % 64 == 0) SOON(codes + i);                                                          \
        even = dot##size(even, LOAD(size, codes + i) ^ 0x80, LOAD(size, x + i));                   \
    }
#define VNNI_4(size, LOAD)                                                                         \
    {                                                                                              \
        if (i % 64 == 0) SOON(codes + i);                                                          \
        bytes##size both = LOAD(size, codes + i) ^ 0x88;                                           \
        even = dot##size(even, both & 0x0f, LOAD(size, x + i));                                    \
        odd = dot##size(odd, both & 0xf0, LOAD(size, x + n + i));                                  \
    }
#define LINES(name, lines)                                                                         \
    case lines: name(lines, codes, x, n, count, sums); return;
/* n: bytes of a row, `lines` times 64 and a rest. Row after row by the same few instructions: where
 * `lines` is a constant, a row has no branch, and fetching nearly keeps up with reading alone. */
#define VNNI_ROWS(name, TARGET, size, bits)                                                        \
    TARGET __attribute__((always_inline)) static inline void name##_lines##bits(                   \
        size_t lines, const uint8_t *codes, const int8_t *x, size_t n, uint32_t count,             \
        int32_t *sums) {                                                                           \
        for (const int32_t *end = sums + count; sums < end; sums += 4) {                           \
            ints##size sum[4];                                                                     \
            _Pragma("GCC unroll 1") for (int r = 0; r < 4; r++, codes += n) {                      \
                ints##size even = {0}, odd = {0};                                                  \
                size_t i = 0;                                                                      \
                _Pragma("GCC unroll 48") for (; i < 64 * lines; i += size)                         \
                    VNNI_##bits(size, WHOLE)                                                       \
                if (size < 64 && i + size <= n) {                                                  \
                    VNNI_##bits(size, WHOLE)                                                       \
                    i += size;                                                                     \
                }                                                                                  \
                if (i < n) VNNI_##bits(size, TAIL)                                                 \
                sum[r] = even + (odd >> 4);                                                        \
            }                                                                                      \
            fold##size(sum, sums);                                                                 \
        }                                                                                          \
    }                                                                                              \
    TARGET static void name##_rows##bits(const uint8_t *codes, const int8_t *x, uint32_t in,       \
                                         uint32_t count, int32_t *sums) {                          \
        const size_t n = (size_t)in * bits / 8;                                                    \
        switch (n / 64) {                                                                          \
            LINES_##bits(name##_lines##bits)                                                       \
            default: name##_lines##bits(n / 64, codes, x, n, count, sums);                         \
        }                                                                                          \
    }
/* Widths up to 1,600. */
#define LINES_4(f)                                                                                 \
    LINES(f, 1) LINES(f, 2) LINES(f, 3) LINES(f, 4) LINES(f, 5) LINES(f, 6) LINES(f, 7)            \
    LINES(f, 8) LINES(f, 9) LINES(f, 10) LINES(f, 11) LINES(f, 12)
#define LINES_8(f)                                                                                 \
    LINES_4(f) LINES(f, 13) LINES(f, 14) LINES(f, 15) LINES(f, 16) LINES(f, 17) LINES(f, 18)       \
    LINES(f, 19) LINES(f, 20) LINES(f, 21) LINES(f, 22) LINES(f, 23) LINES(f, 24)
#define VNNI_KERNELS(name, TARGET, size, count)                                                    \
    VNNI_ROWS(name, TARGET, size, 8)                                                               \
    VNNI_ROWS(name, TARGET, size, 4)                                                               \
    TILE(name, TARGET, size, count, dot##size)
VNNI_KERNELS(vnni, VNNI, 64, 4)

#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define AVXVNNI __attribute__((target("avx2,avxvnni")))
AVXVNNI static inline ints32 dot32(ints32 sum, bytes32 codes, bytes32 x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
    return sum;
}
VNNI_KERNELS(avxvnni, AVXVNNI, 32, 2)
#endif

/* Which kinds there are, a bit each: 1, 2 and 3 of tsm_open. Not by __builtin_cpu_supports, whose library
 * zig does not have. */
static unsigned x86_kinds(void) {
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL;
    unsigned a, b, c, d, kept;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(kept), "=d"(d) : "c"(0)); /* the registers that the system keeps */
    if ((kept & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
    unsigned kinds = 1 << 1;
    if ((kept & 0xe6) == 0xe6 && (b & avx512) == avx512 && c & bit_AVX512VNNI) kinds |= 1 << 3;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1 << 4) kinds |= 1 << 2; /* AVX-VNNI */
    return kinds;
}
#endif

#ifdef NEON
#ifdef __ARM_NEON
#define NEON_TARGET
#else /* 32 bits, the compiler's own flags without it, as Debian's are */
#define NEON_TARGET __attribute__((target("fpu=neon")))
#endif

/* Products of 16 codes, into whichever lanes. |codes| <= 127: two of them fit into 16 bits. */
NEON_TARGET static inline int32x4_t neon_add(int32x4_t sum, int8x16_t w, int8x16_t x) {
    int16x8_t pairs = vmull_s8(vget_low_s8(w), vget_low_s8(x));
    return vpadalq_s16(sum, vmlal_s8(pairs, vget_high_s8(w), vget_high_s8(x)));
}

NEON_TARGET static inline int32_t neon_total(int32x4_t v) {
    int32x2_t half = vadd_s32(vget_low_s32(v), vget_high_s32(v));
    return vget_lane_s32(vpadd_s32(half, half), 0);
}

/* What is left of a row, fewer than 16 bytes, with zeros after it. */
NEON_TARGET static inline int8x16_t neon_tail(const void *address, size_t left) {
    int8_t bytes[16] = {0};
    memcpy(bytes, address, left);
    return vld1q_s8(bytes);
}

#define NEON_WHOLE(address) vld1q_s8((const int8_t *)(address))
#define NEON_TAIL(address) neon_tail(address, n - i)

/* Rows taken at once: what the registers hold. */
#ifdef __aarch64__
#define TOGETHER 8
#else
#define TOGETHER 4
#endif

#define NEON_8(LOAD, ADD)                                                                          \
    {                                                                                              \
        int8x16_t v = LOAD(x + i);                                                                 \
        for (size_t r = 0; r < TOGETHER; r++)                                                      \
            sum[r] = ADD(sum[r], LOAD(codes + r * n + i), v);                                      \
    }

/* Codes times 16, which is what a half of a byte is where it needs no shift to the right. */
#define NEON_4(LOAD, ADD)                                                                          \
    {                                                                                              \
        int8x16_t even = LOAD(x + i), odd = LOAD(x + n + i);                                       \
        for (size_t r = 0; r < TOGETHER; r++) {                                                    \
            int8x16_t both = LOAD(codes + r * n + i);                                              \
            sum[r] = ADD(sum[r], vshlq_n_s8(both, 4), even);                                       \
            sum[r] = ADD(sum[r], vandq_s8(both, vdupq_n_s8(-16)), odd);                            \
        }                                                                                          \
    }

/* n: bytes of a row. */
#define NEON_ROWS(name, TARGET, bits, SUMS, ADD, scale)                                            \
    TARGET static void name##_rows##bits(const uint8_t *codes, const int8_t *x, uint32_t in,       \
                                         uint32_t count, int32_t *sums) {                          \
        const size_t n = (size_t)in * bits / 8;                                                    \
        const int32_t *end = sums + count;                                                         \
        for (; sums < end; sums += TOGETHER, codes += TOGETHER * n) {                              \
            int32x4_t sum[TOGETHER] = {{0}};                                                       \
            size_t i = 0;                                                                          \
            for (; i + 16 <= n; i += 16) SUMS(NEON_WHOLE, ADD)                                     \
            if (i < n) SUMS(NEON_TAIL, ADD)                                                        \
            for (int r = 0; r < TOGETHER; r++) sums[r] = neon_total(sum[r]) / scale;               \
        }                                                                                          \
    }
#define NEON_KERNELS(name, TARGET, ADD)                                                            \
    NEON_ROWS(name, TARGET, 8, NEON_8, ADD, 1)                                                     \
    NEON_ROWS(name, TARGET, 4, NEON_4, ADD, 16)

/* No tile: one of these instructions executed as many a token as the rows do. */
NEON_KERNELS(neon, NEON_TARGET, neon_add)

#ifdef __aarch64__
#ifdef __ARM_FEATURE_DOTPROD
#define DOT_TARGET
#else
#define DOT_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
NEON_KERNELS(dot, DOT_TARGET, vdotq_s32)

#define DOT16(sum, w, x) ((ints16)vdotq_s32((int32x4_t)(sum), (int8x16_t)(w), (int8x16_t)(x)))
TILE(dot, DOT_TARGET, 16, 4, DOT16)
#endif

/* 0: no NEON, 1: NEON, 2: its dot product too. */
static int arm_simd(void) {
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    return 2;
#elif defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) & 1 << 20 /* HWCAP_ASIMDDP */ ? 2 : 1;
#elif defined(__ARM_NEON)
    return 1;
#elif defined(__linux__)
    return getauxval(AT_HWCAP) & 1 << 12 /* HWCAP_NEON */ ? 1 : 0;
#else
    return 0;
#endif
}
#endif

#ifdef WASM
#define SPLAT8(value) wasm_i8x16_const_splat(value)
#define SPLAT16(value) wasm_i16x8_const_splat(value)
#define HALF(address) wasm_v128_load64_zero(address)

/* The totals of four vectors. */
INLINE v128_t totals(v128_t a, v128_t b, v128_t c, v128_t d) {
    v128_t ab = wasm_i32x4_add(wasm_i32x4_shuffle(a, b, 0, 4, 1, 5), wasm_i32x4_shuffle(a, b, 2, 6, 3, 7));
    v128_t cd = wasm_i32x4_add(wasm_i32x4_shuffle(c, d, 0, 4, 1, 5), wasm_i32x4_shuffle(c, d, 2, 6, 3, 7));
    return wasm_i32x4_add(wasm_i32x4_shuffle(ab, cd, 0, 1, 4, 5), wasm_i32x4_shuffle(ab, cd, 2, 3, 6, 7));
}

/* What is left of a row, fewer than 16 bytes, with zeros after it. */
INLINE v128_t tail16(const void *address, size_t left) {
    v128_t bytes = {0};
    memcpy(&bytes, address, left);
    return bytes;
}

/* Four rows at once: `each` for so many bytes of them, n of a row. */
#define WASM_ROWS(name, bits, step, each, SUM)                                                     \
    static void name##_rows##bits(const uint8_t *codes, const int8_t *x, uint32_t in,              \
                                  uint32_t count, int32_t *sums) {                                 \
        const size_t n = (size_t)in * bits / 8;                                                    \
        for (const int32_t *end = sums + count; sums < end; sums += 4, codes += 4 * n) {           \
            v128_t sum[4] = {0};                                                                   \
            size_t i = 0;                                                                          \
            for (; i + step <= n; i += step) each(WHOLE##step, SUM)                                \
            if (i < n) each(TAIL##step, SUM)                                                       \
            wasm_v128_store(sums, totals(sum[0], sum[1], sum[2], sum[3]));                         \
        }                                                                                          \
    }
#define WHOLE8(address) HALF(address)
#define TAIL8(address) wasm_v128_load32_zero(address)
#define WHOLE16(address) wasm_v128_load(address)
#define TAIL16(address) tail16(address, n - i)

/* 8 codes as 16 bits each. */
#define SUM16(sum, w, x) wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(w, x))
#define SIMD128_8(LOAD, SUM)                                                                       \
    {                                                                                              \
        v128_t v = wasm_i16x8_load8x8(x + i);                                                      \
        for (size_t r = 0; r < 4; r++)                                                             \
            sum[r] = SUM(sum[r], wasm_i16x8_load8x8(codes + r * n + i), v);                        \
    }
#define SIMD128_4(LOAD, SUM)                                                                       \
    {                                                                                              \
        v128_t even = wasm_i16x8_extend_low_i8x16(LOAD(x + i));                                    \
        v128_t odd = wasm_i16x8_extend_low_i8x16(LOAD(x + n + i));                                 \
        for (size_t r = 0; r < 4; r++) {                                                           \
            v128_t both = LOAD(codes + r * n + i) ^ SPLAT8(-0x78);                                 \
            both = wasm_u16x8_extend_low_u8x16(both);                                              \
            sum[r] = SUM(sum[r], both & SPLAT16(15), even);                                        \
            sum[r] = SUM(sum[r], wasm_u16x8_shr(both, 4), odd);                                    \
        }                                                                                          \
    }
WASM_ROWS(simd128, 8, 8, SIMD128_8, SUM16)
WASM_ROWS(simd128, 4, 8, SIMD128_4, SUM16)

/* Those of two rows, for each token. */
INLINE void tile_totals(const v128_t *a, const v128_t *b, int32_t *sums) {
    for (int t = 0; t < TOKENS; t += 2) {
        v128_t all = totals(a[t], b[t], a[t + 1], b[t + 1]);
        wasm_v128_store64_lane(sums + t * PANEL, all, 0);
        wasm_v128_store64_lane(sums + (t + 1) * PANEL, all, 1);
    }
}

/* The tokens' codes are made 16 bits wide, eight of each token side by side. */
static void simd128_tile(const uint8_t *rows, const int8_t *x, uint32_t n, int32_t *sums) {
    int16_t codes[TOKENS * n];
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t i = 0; i < n; i += 8)
            wasm_v128_store(codes + TOKENS * i + 8 * t, wasm_i16x8_load8x8(x + (size_t)t * n + i));
    for (int r = 0; r < PANEL; r += 2, rows += 2 * (size_t)n) {
        const int16_t *v = codes;
        v128_t a[TOKENS] = {0}, b[TOKENS] = {0};
        for (uint32_t i = 0; i < n; i += 8, v += 8 * TOKENS) {
            v128_t first = wasm_i16x8_load8x8(rows + i), second = wasm_i16x8_load8x8(rows + n + i);
            for (int t = 0; t < TOKENS; t++) {
                v128_t token = wasm_v128_load(v + 8 * t);
                a[t] = SUM16(a[t], first, token);
                b[t] = SUM16(b[t], second, token);
            }
        }
        tile_totals(a, b, sums + r);
    }
}

#ifdef __wasm_relaxed_simd__
/* Products of 16 signed bytes and an operand of 7 bits, which every machine multiplies alike. SUM32 is an
 * instruction where the machine has one, ARM's or VNNI's, which takes 8 bits as well: signed ones, or
 * unsigned ones, for which codes are raised by `flip`. */
#define SUM32(sum, a, b) wasm_i32x4_relaxed_dot_i8x16_i7x16_add(a, b, sum)

INLINE void relaxed_rows(uint8_t flip, const uint8_t *codes, const int8_t *x, size_t n, uint32_t count,
                         int32_t *sums) {
    const v128_t flips = wasm_u8x16_splat(flip);
    for (const int32_t *end = sums + count; sums < end; sums += 4, codes += 4 * n) {
        v128_t sum[4] = {0};
        size_t i = 0;
        for (; i + 16 <= n; i += 16) {
            v128_t v = wasm_v128_load(x + i);
            for (size_t r = 0; r < 4; r++)
                sum[r] = SUM32(sum[r], v, wasm_v128_load(codes + r * n + i) ^ flips);
        }
        if (i < n) {
            v128_t v = tail16(x + i, n - i);
            for (size_t r = 0; r < 4; r++)
                sum[r] = SUM32(sum[r], v, tail16(codes + r * n + i, n - i) ^ flips);
        }
        wasm_v128_store(sums, totals(sum[0], sum[1], sum[2], sum[3]));
    }
}

INLINE void relaxed_tile(uint8_t flip, const uint8_t *rows, const int8_t *x, size_t n, int32_t *sums) {
    const v128_t flips = wasm_u8x16_splat(flip);
    v128_t codes[TOKENS * (n + 8) / 16]; /* 16 of each token side by side, with zeros after the last */
    for (size_t t = 0; t < TOKENS; t++) {
        for (size_t i = 0; i + 16 <= n; i += 16) codes[TOKENS * (i / 16) + t] = wasm_v128_load(x + t * n + i);
        if (n % 16) codes[TOKENS * (n / 16) + t] = HALF(x + t * n + n - 8);
    }
    for (int r = 0; r < PANEL; r += 2, rows += 2 * n) {
        v128_t a[TOKENS] = {0}, b[TOKENS] = {0};
        const v128_t *v = codes;
        size_t i = 0;
        _Pragma("clang loop unroll_count(2)") for (; i + 16 <= n; i += 16, v += TOKENS) {
            v128_t first = wasm_v128_load(rows + i) ^ flips, second = wasm_v128_load(rows + n + i) ^ flips;
            for (int t = 0; t < TOKENS; t++) {
                a[t] = SUM32(a[t], v[t], first);
                b[t] = SUM32(b[t], v[t], second);
            }
        }
        if (i < n) { /* 8 bytes */
            v128_t first = HALF(rows + i) ^ flips, second = HALF(rows + n + i) ^ flips;
            for (int t = 0; t < TOKENS; t++) {
                a[t] = SUM32(a[t], v[t], first);
                b[t] = SUM32(b[t], v[t], second);
            }
        }
        tile_totals(a, b, sums + r);
    }
}

#define RELAXED_KERNELS(name, flip)                                                                \
    static void name##_rows8(const uint8_t *codes, const int8_t *x, uint32_t in, uint32_t count,   \
                             int32_t *sums) {                                                      \
        relaxed_rows(flip, codes, x, in, count, sums);                                             \
    }                                                                                              \
    static void name##_tile(const uint8_t *rows, const int8_t *x, uint32_t in, int32_t *sums) {    \
        relaxed_tile(flip, rows, x, in, sums);                                                     \
    }
RELAXED_KERNELS(signed, 0)
RELAXED_KERNELS(unsigned, 128)

/* Where there is no such instruction, activations without their signs are the operand of 7 bits. The signs
 * go to the codes: where an activation is not negative, ~code = -code - 1, so that what comes out is the sum
 * with its sign turned, less the activations that are not negative: `surplus`. */
#define SUM16X(sum, a, b)                                                                          \
    SUM16(sum, SPLAT16(1), wasm_i16x8_relaxed_dot_i8x16_i7x16(a, b))
#define NOT_NEGATIVE(x) wasm_i8x16_gt(x, SPLAT8(-1))

INLINE void turn(int32_t *sums, uint32_t count, const int8_t *x, uint32_t n) {
    int32_t surplus = 0;
    for (uint32_t i = 0; i < n; i++) surplus += x[i] > 0 ? x[i] : 0;
    for (uint32_t i = 0; i < count; i++) sums[i] = -sums[i] - surplus;
}

#define RELAXED_8(LOAD, SUM)                                                                       \
    {                                                                                              \
        v128_t v = LOAD(x + i), mask = NOT_NEGATIVE(v), size = wasm_i8x16_abs(v);                  \
        for (size_t r = 0; r < 4; r++)                                                             \
            sum[r] = SUM(sum[r], LOAD(codes + r * n + i) ^ mask, size);                            \
    }
#define RELAXED_4(LOAD, SUM)                                                                       \
    {                                                                                              \
        v128_t even = LOAD(x + i), odd = LOAD(x + n + i);                                          \
        for (size_t r = 0; r < 4; r++) {                                                           \
            v128_t both = LOAD(codes + r * n + i) ^ SPLAT8(-0x78);                                 \
            sum[r] = SUM(sum[r], even, both & SPLAT8(15));                                         \
            sum[r] = SUM(sum[r], odd, wasm_u8x16_shr(both, 4));                                    \
        }                                                                                          \
    }
WASM_ROWS(pairs_turned, 8, 16, RELAXED_8, SUM16X)
static void pairs_rows8(const uint8_t *codes, const int8_t *x, uint32_t in, uint32_t count, int32_t *sums) {
    pairs_turned_rows8(codes, x, in, count, sums);
    turn(sums, count, x, in);
}
WASM_ROWS(pairs, 4, 16, RELAXED_4, SUM16X)

#define POSITIVE(LOAD)                                                                             \
    {                                                                                              \
        v128_t first = LOAD(rows + i), second = LOAD(rows + n + i);                                \
        for (size_t k = 0; k < 2; k++) {                                                           \
            v128_t v = LOAD(token + k * n + i);                                                    \
            sum[2 * k] = SUM16X(sum[2 * k], first, v);                                             \
            sum[2 * k + 1] = SUM16X(sum[2 * k + 1], second, v);                                    \
        }                                                                                          \
    }
/* In a tile that would cost more than it gains. Squares have no signs: two rows, two tokens at once, for
 * with more V8 keeps sums in memory. */
static void positive_tile(const uint8_t *rows, const int8_t *x, size_t n, int32_t *sums) {
    for (int r = 0; r < PANEL; r += 2, rows += 2 * n)
        for (size_t t = 0; t < TOKENS; t += 2) {
            const int8_t *token = x + t * n;
            v128_t sum[4] = {0};
            size_t i = 0;
            for (; i + 16 <= n; i += 16) POSITIVE(wasm_v128_load)
            if (i < n) POSITIVE(HALF)
            v128_t all = totals(sum[0], sum[1], sum[2], sum[3]);
            wasm_v128_store64_lane(sums + t * PANEL + r, all, 0);
            wasm_v128_store64_lane(sums + (t + 1) * PANEL + r, all, 1);
        }
}
static void pairs_tile(const uint8_t *rows, const int8_t *x, uint32_t n, int32_t *sums) {
    size_t i = 0, all = (size_t)TOKENS * n;
    while (i < all && !wasm_i8x16_bitmask(wasm_v128_load(x + i))) i += 16;
    if (i < all) simd128_tile(rows, x, n, sums);
    else positive_tile(rows, x, n, sums);
}
WASM_ROWS(relaxed, 4, 16, RELAXED_4, SUM32)
#endif
#endif

#ifdef WASM
/* PANEL rows as bytes, one a code, the even ones of int4 first; a panel is rows one after the other. */
static const uint8_t *unpack(const matrix *w, uint32_t first, int raised, uint8_t *panel) {
    const uint32_t row = w->in * w->bits / 8;
    const uint8_t *codes = w->codes + (size_t)first * row;
    const uint8_t eight = raised ? 128 : 8; /* raised by 128, they are 8 more */
    if (w->bits == 8) return codes;
    for (uint32_t r = 0; r < PANEL; r++)
        for (uint32_t i = 0; i < row; i++) {
            panel[(2 * r) * row + i] = (uint8_t)(((codes[r * row + i] & 15) ^ 8) - eight);
            panel[(2 * r + 1) * row + i] = (uint8_t)(((codes[r * row + i] >> 4) ^ 8) - eight);
        }
    return panel;
}
#else
/* `count` codes each of four rows to a panel. */
INLINE void put(const bytes16 *rows, uint32_t count, uint8_t *panel) {
    ints16 a = (ints16)rows[0], b = (ints16)rows[1], c = (ints16)rows[2], d = (ints16)rows[3];
    ints16 ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
    ints16 more_ab = SHUFFLE(a, b, 2, 6, 3, 7), more_cd = SHUFFLE(c, d, 2, 6, 3, 7);
    ints16 fours[4] = {SHUFFLE(ab, cd, 0, 1, 4, 5), SHUFFLE(ab, cd, 2, 3, 6, 7),
                       SHUFFLE(more_ab, more_cd, 0, 1, 4, 5),
                       SHUFFLE(more_ab, more_cd, 2, 3, 6, 7)};
    for (uint32_t i = 0; i < count / 4; i++) memcpy(panel + in_panel(0, 4 * i), &fours[i], 16);
}

/* `count` bytes each of four rows from `i` on, their codes `raised` or not, to a panel. */
INLINE void unpack_four(const uint8_t *rows, size_t row, uint32_t bits, int raised, uint32_t i,
                        uint32_t count, uint8_t *panel) {
    const uint8_t flip = raised ? 128 : 0, eight = raised ? 0 : 8;
    bytes16 both[4] = {{0}}, even[4], odd[4];
    for (size_t r = 0; r < 4; r++) {
        __builtin_prefetch(rows + r * row + i + 4 * AHEAD);
        memcpy(&both[r], rows + r * row + i, count);
        even[r] = bits == 8 ? both[r] ^ flip : ((both[r] & 15) ^ 8) - eight;
        odd[r] = ((both[r] >> 4) ^ 8) - eight;
    }
    put(even, count, panel + in_panel(0, i));
    if (bits == 4) put(odd, count, panel + in_panel(0, (uint32_t)row + i));
}

/* PANEL rows as bytes, one a code. */
WIDE static const uint8_t *unpack(const matrix *w, uint32_t first, int raised, uint8_t *panel) {
    const uint32_t row = w->in * w->bits / 8;
    for (uint32_t r = 0; r < PANEL; r += 4) {
        const uint8_t *rows = w->codes + (size_t)(first + r) * row;
        uint8_t *four_rows = panel + in_panel(r, 0);
        uint32_t i = 0;
        for (; i + 16 <= row; i += 16) unpack_four(rows, row, w->bits, raised, i, 16, four_rows);
        if (i < row) unpack_four(rows, row, w->bits, raised, i, row - i, four_rows);
    }
    return panel;
}
#endif

/* y (n,) of the sums of as many rows, which may be in the same memory. */
WIDE static void scale_rows(const void *sums, int32_t surplus, float unit, const float *scales,
                            uint32_t n, float *y) {
    EACH for (uint32_t i = 0; i < n; i++)
        y[i] = (float)(((const int_at *)sums)[i] - surplus) * (unit * scales[i]);
}

/* Whether a product is made of tiles: of a few tokens, rows one by one are faster. */
static int tiled(const tsm_model *m, const matrix *w, const input *x) {
    return m->kernels.tile && x->count > FEW && w->out >= PANEL;
}

/* y (t, first) and the `count` after it: so many rows against one token. */
static void multiply_rows(const kernels *k, const matrix *w, const input *x, uint32_t t,
                          uint32_t first, uint32_t count, float *y) {
    const size_t row = (size_t)w->in * w->bits / 8;
    const int8_t *token = x->codes + (size_t)t * w->in;
    uint32_t rest = count % ROWS, end = first + count;
    int32_t sums[ROWS], offset = w->bits == 8 ? 128 * k->raised : 8 * k->raised4;
    y += (size_t)t * w->out + first;
    rows_kernel *rows = w->bits == 8 ? k->rows8 : k->rows4;
    rows(w->codes + first * row, token, w->in, count - rest, (int32_t *)y);
    if (rest) { /* with rows before them */
        rows(w->codes + (end - ROWS) * row, token, w->in, ROWS, sums);
        memcpy(y + count - rest, sums + ROWS - rest, rest * sizeof *sums);
    }
    scale_rows(y, offset * x->sum[t], x->unit[t], w->scales + first, count, y);
}

/* y (count, out) = scales * (codes (out, in) x input (count, in)), integers inside: one worker's
 * part of the rows. */
static void multiply_part(const worker *own) {
    const tsm_model *m = own->model;
    const kernels *k = &m->kernels;
    const matrix *w = m->weights;
    const input *x = m->activations;
    float *y = m->output;
    uint32_t unit = tiled(m, w, x) ? PANEL : ROWS, units = (w->out + unit - 1) / unit;
    uint32_t first_row = units * own->index / m->threads * unit;
    uint32_t end = units * (own->index + 1) / m->threads * unit;
    int32_t offset = k->raised ? 1 << (w->bits - 1) : 0;
    if (end > w->out) end = w->out;
    if (unit == PANEL) {
        for (uint32_t o = first_row; o < end; o += PANEL) {
            uint32_t from = o + PANEL > w->out ? w->out - PANEL : o; /* the last may overlap */
            int32_t sums[TOKENS][PANEL];
            const uint8_t *panel = unpack(w, from, k->raised, own->panel);
            for (uint32_t t = 0; t < x->count; t++) {
                const int8_t *codes = x->codes + (size_t)t * w->in;
                if (t % TOKENS == 0) k->tile(panel, codes, w->in, sums[0]);
                scale_rows(sums[t % TOKENS], offset * x->sum[t], x->unit[t], w->scales + from,
                           PANEL, y + (size_t)t * w->out + from);
            }
        }
        return;
    }
    uint32_t step = x->count == 1 ? units * ROWS : ROWS; /* a row meets all tokens in the cache */
    for (uint32_t o = first_row; o < end; o += step)
        for (uint32_t t = 0; t < x->count; t++)
            multiply_rows(k, w, x, t, o, end - o < step ? end - o : step, y);
}

#ifdef THREADS
static uint32_t seen(const uint32_t *value) { return __atomic_load_n(value, __ATOMIC_ACQUIRE); }

/* A worker looks for the next product for a while, as it comes within microseconds, then sleeps. */
static void *work(void *argument) {
    const worker *own = argument;
    tsm_model *m = own->model;
    for (uint32_t round = 0;; round++) {
        for (uint32_t i = 0; i < SPINS && seen(&m->round) == round; i++) relax();
        if (seen(&m->round) == round) {
            pthread_mutex_lock(&m->mutex);
            while (seen(&m->round) == round) pthread_cond_wait(&m->begun, &m->mutex);
            pthread_mutex_unlock(&m->mutex);
        }
        if (m->ending) return NULL;
        multiply_part(own);
        __atomic_sub_fetch(&m->left, 1, __ATOMIC_RELEASE);
    }
}

static void begin(tsm_model *m) {
    m->left = m->threads - 1;
    pthread_mutex_lock(&m->mutex);
    __atomic_add_fetch(&m->round, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&m->begun);
    pthread_mutex_unlock(&m->mutex);
}
#endif

static void multiply(tsm_model *m, const matrix *w, const input *x, float *y) {
    m->weights = w;
    m->activations = x;
    m->output = y;
#ifdef THREADS
    if (m->threads > 1) {
        begin(m);
        multiply_part(&m->workers[0]);
        for (uint32_t i = 0; seen(&m->left); i++) i < SPINS ? relax() : (void)sched_yield();
        return;
    }
#endif
    multiply_part(&m->workers[0]);
}

/* A model */

SMALL

uint32_t tsm_version(void) { return TSM_VERSION; }

static uint32_t addressed_layers(const tsm_spec *s) {
    uint32_t count = 0;
    for (uint32_t l = 0; l < s->layers; l++) count += s->mixers[l] == TSM_ADDRESSED;
    return count;
}

/* Queries, keys and values of all heads. */
static uint32_t qkv_width(const tsm_spec *s) { return 2 * s->heads * s->key_width + s->channels; }

static int runs_addressed(const tsm_spec *s, uint32_t most) {
    uint32_t layers = addressed_layers(s);
    for (uint32_t l = 0; l < s->layers; l++)
        if (s->mixers[l] > TSM_ADDRESSED) return 0;
    return !layers || (s->heads && s->heads <= most && s->channels % (LANES * s->heads) == 0 && s->key_width &&
                       s->key_width <= most && (uint64_t)s->heads * s->key_width <= most &&
                       (uint64_t)layers * s->key_width * s->channels <= 1 << 24);
}

/* As LIMITS in runtime/engines/native.py. */
static int runs(const tsm_spec *s) {
    const uint32_t most = 1 << 14; /* of a width: no product of sizes below overflows */
    return s->vocabulary <= 256 && s->width <= most && s->layers &&
           s->layers <= TSM_MOST_LAYERS && s->channels && s->channels <= most && s->channels % LANES == 0 &&
           s->mlp_width <= 4 * most && s->taps && s->taps <= MOST_TAPS &&
           (s->bits == 8 || s->bits == 4) && s->vocabulary >= ROWS && s->width >= ROWS &&
           s->mlp_width >= ROWS && s->width % 8 == 0 && s->mlp_width % 8 == 0 &&
           runs_addressed(s, most);
}

size_t tsm_offset_count(const tsm_spec *s) {
    if (!runs(s)) return 0;
    return 1 + (size_t)s->layers * (s->taps + 1 + 8) + 3 * (size_t)addressed_layers(s) + 2;
}

size_t tsm_state_values(const tsm_spec *s, size_t parts[TSM_STATE_PARTS]) {
    const int known = runs(s); /* of another spec all are 0 */
    const size_t addressed = known ? addressed_layers(s) : 0, beams = known ? s->layers - addressed : 0;
    const size_t before = s->taps - 1;
    const size_t values[TSM_STATE_PARTS] = {addressed * s->key_width * s->channels, beams * s->channels,
                                            beams * before * s->width,
                                            addressed * before * qkv_width(s)};
    size_t sum = 0;
    for (int i = 0; i < TSM_STATE_PARTS; i++) {
        if (parts) parts[i] = values[i];
        sum += values[i];
    }
    return sum;
}

typedef struct {
    const uint8_t *file;
    size_t bytes;
    const uint64_t *next;
    int bad;
} reader;

static const uint8_t *take(reader *r, size_t bytes, size_t alignment) {
    uint64_t offset = *r->next++;
    if (offset > r->bytes || bytes > r->bytes - offset || offset % alignment) {
        r->bad = 1;
        return NULL;
    }
    return r->file + offset;
}

static const float *take_floats(reader *r, size_t count) {
    return (const float *)(const void *)take(r, count * 4, 4);
}

static matrix take_matrix(reader *r, uint32_t out, uint32_t in, uint32_t bits) {
    matrix m = {NULL, NULL, out, in, bits};
    m.codes = take(r, (size_t)out * (in * bits / 8), 1); /* at most 2^30 */
    m.scales = take_floats(r, out);
    return m;
}

#ifdef __wasm_relaxed_simd__
/* What SUM32 makes of four products of 127 and -1, or 255. */
static int32_t relaxed_sum(void) {
    volatile int8_t most = 127; /* or a compiler computes it, by rules of its own */
    v128_t sum = SUM32((v128_t){0}, wasm_i8x16_splat(most), wasm_i8x16_splat((int8_t)(most + 128)));
    return wasm_i32x4_extract_lane(sum, 0);
}

/* Whether both give the same sums, of all kinds of codes. A browser may have instructions that are wrong. */
static int agrees(const kernels *a, const kernels *b) {
    enum { IN = 2 * ROWS + 8 };
    uint8_t codes[PANEL * IN];
    int8_t x[TOKENS * IN];
    int32_t sums[2][TOKENS * PANEL] = {{0}};
    uint32_t random = 1;
    for (uint32_t i = 0; i < sizeof codes + sizeof x; i++) {
        random = random * 1664525 + 1013904223;
        int32_t value = (int32_t)(random >> 24) % 128 * (random >> 16 & 1 ? 1 : -1);
        if (i / IN % 3 == 0) value = value < 0 ? -127 : 127;
        if (i < sizeof codes) codes[i] = (uint8_t)value;
        else x[i - sizeof codes] = (int8_t)value;
    }
    for (uint32_t what = 0; what < 4; what++) { /* at last a tile of activations without signs */
        for (uint32_t i = 0; what == 3 && i < sizeof x; i++) x[i] = (int8_t)abs(x[i]);
        for (int k = 0; k < 2; k++) {
            const kernels *own = k ? a : b;
            if (what >= 2) own->tile(codes, x, IN, sums[k]);
            else (what ? own->rows4 : own->rows8)(codes, x + what * IN, IN, PANEL, sums[k]);
            const uint32_t tokens = !own->raised || what == 1 ? 0 : what ? TOKENS : 1;
            for (uint32_t i = 0; i < tokens * PANEL; i++)
                for (uint32_t j = 0; j < IN; j++) sums[k][i] -= 128 * x[i / PANEL * IN + j];
        }
        if (memcmp(sums[0], sums[1], sizeof sums[0])) return 0;
    }
    return 1;
}
#endif

static void choose(tsm_model *m, int simd) {
    const kernels plain = {plain_rows8, plain_rows4, NULL, 0, 0};
    m->kernels = plain;
    m->simd = 0;
#ifdef X86
    const unsigned kinds = x86_kinds();
    const kernels avx2 = {avx2_rows8, avx2_rows4, avx2_tile, 0, 1};
    const kernels vnni = {vnni_rows8, vnni_rows4, vnni_tile, 1, 1};
    if (simd >= 1 && kinds & 1 << 1) {
        m->kernels = avx2;
        m->simd = 1;
    }
#ifdef AVXVNNI
    const kernels avxvnni = {avxvnni_rows8, avxvnni_rows4, avxvnni_tile, 1, 1};
    if (simd >= 2 && kinds & 1 << 2) {
        m->kernels = avxvnni;
        m->simd = 2;
    }
#endif
    if (simd >= 3 && kinds & 1 << 3) {
        m->kernels = vnni;
        m->simd = 3;
    }
#elif defined(NEON)
    const kernels neon = {neon_rows8, neon_rows4, NULL, 0, 0};
    if (simd >= 1 && arm_simd() >= 1) {
        m->kernels = neon;
        m->simd = 1;
    }
#ifdef __aarch64__
    const kernels dot = {dot_rows8, dot_rows4, dot_tile, 0, 0};
    if (simd >= 2 && arm_simd() >= 2) {
        m->kernels = dot;
        m->simd = 2;
    }
#endif
#elif defined(WASM)
    const kernels simd128 = {simd128_rows8, simd128_rows4, simd128_tile, 0, 1};
    if (simd >= 1) {
        m->kernels = simd128;
        m->simd = 1;
    }
#ifdef __wasm_relaxed_simd__
    const kernels pairs = {pairs_rows8, pairs_rows4, pairs_tile, 0, 1};
    const kernels with_signed = {signed_rows8, relaxed_rows4, signed_tile, 0, 1};
    const kernels with_unsigned = {unsigned_rows8, relaxed_rows4, unsigned_tile, 1, 1};
    const int32_t sum = relaxed_sum();
    const kernels *best = sum == 4 * 127 * -1    ? &with_signed
                          : sum == 4 * 127 * 255 ? &with_unsigned
                                                 : &pairs;
    if (simd >= 2 && agrees(best, &simd128)) {
        m->kernels = *best;
        m->simd = 2;
    }
#endif
#else
    (void)simd;
#endif
}

/* Adds workers until there are so many, or no more can be had. 0: not even one. */
static int start(tsm_model *m, uint32_t threads, uint32_t widest) {
    for (; m->threads < threads && m->threads < MOST_THREADS; m->threads++) {
        worker *own = &m->workers[m->threads];
        own->model = m;
        own->index = m->threads;
        own->panel = calloc((size_t)PANEL * widest, 1);
        if (!own->panel) break;
#ifdef THREADS
        if (m->threads && pthread_create(&own->thread, NULL, work, own)) break;
#else
        if (m->threads) break;
#endif
    }
    return m->threads > 0;
}

tsm_model *tsm_new(const tsm_spec *spec, const uint8_t *file, size_t file_bytes,
                   const uint64_t *offsets, size_t offset_count, int simd, uint32_t threads) {
    if (!tsm_offset_count(spec) || offset_count != tsm_offset_count(spec)) return NULL;
    const tsm_spec s = *spec;
    reader r = {file, file_bytes, offsets, 0};
    tsm_model *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->spec = s;
    m->state_values = tsm_state_values(&s, m->state_parts);
#ifdef THREADS
    pthread_mutex_init(&m->mutex, NULL);
    pthread_cond_init(&m->begun, NULL);
#endif
    m->layers = calloc(s.layers, sizeof *m->layers);
    if (!m->layers) goto failed;
    m->embed = take_floats(&r, (size_t)s.vocabulary * s.width);
    uint32_t widest_in = 0; /* rows of a mixer's first product */
    for (uint32_t l = 0; l < s.layers; l++) {
        layer *own = &m->layers[l];
        const int addressed = s.mixers[l] == TSM_ADDRESSED;
        const uint32_t convolved = addressed ? qkv_width(&s) : s.width;
        const uint32_t in = addressed ? convolved + s.channels : 3 * s.channels; /* and a gate */
        for (uint32_t tap = 0; tap < s.taps; tap++) own->taps[tap] = take_floats(&r, convolved);
        if (addressed) {
            own->encoder = take_floats(&r, (size_t)ANGLES * s.heads * s.width);
            own->delta = take_floats(&r, s.heads);
        }
        own->radius = take_floats(&r, addressed ? s.heads : s.channels);
        if (addressed) own->decay = take_floats(&r, s.heads);
        own->in = take_matrix(&r, in, s.width, s.bits);
        widest_in = in > widest_in ? in : widest_in;
        own->back = take_matrix(&r, s.width, s.channels, s.bits);
        own->up = take_matrix(&r, s.mlp_width, s.width, s.bits);
        own->down = take_matrix(&r, s.width, s.mlp_width, s.bits);
    }
    m->head = take_matrix(&r, s.vocabulary, s.width, 8);
    if (r.bad) goto failed;

    choose(m, simd);
    uint32_t widest = s.mlp_width > s.channels ? s.mlp_width : s.channels;
    widest = widest > s.width ? widest : s.width;
    m->x = calloc((size_t)BLOCK * s.width, 4);
    m->normal = calloc((size_t)(BLOCK + s.taps - 1) * s.width, 4);
    m->shifted = calloc((size_t)BLOCK * s.width, 4);
    m->inner = calloc((size_t)BLOCK * (s.mlp_width > widest_in ? s.mlp_width : widest_in), 4);
    m->qkv = calloc(addressed_layers(&s) ? qkv_width(&s) : 1, 4);
    m->read = calloc((size_t)BLOCK * s.channels, 4);
    m->codes = calloc((size_t)BLOCK * widest, 1);
    if (m->x && m->normal && m->shifted && m->inner && m->qkv && m->read && m->codes &&
        start(m, threads, widest))
        return m;
failed:
    tsm_free(m);
    return NULL;
}

void tsm_free(tsm_model *m) {
    if (!m) return;
#ifdef THREADS
    m->ending = 1;
    if (m->threads > 1) begin(m);
    for (uint32_t i = 1; i < m->threads; i++) pthread_join(m->workers[i].thread, NULL);
    pthread_cond_destroy(&m->begun);
    pthread_mutex_destroy(&m->mutex);
#endif
    for (uint32_t i = 0; i < MOST_THREADS; i++) free(m->workers[i].panel);
    free(m->file);
    free(m->layers);
    free(m->x);
    free(m->normal);
    free(m->shifted);
    free(m->inner);
    free(m->qkv);
    free(m->read);
    free(m->codes);
    free(m);
}

int tsm_simd(const tsm_model *m) { return m->simd; }

END_SMALL

/* The function, for a block of at most BLOCK tokens */

static void project(tsm_model *m, const matrix *w, const float *x, uint32_t count, float *y) {
    input codes = {m->codes, {0}, {0}, count};
    for (uint32_t t = 0; t < count; t++) {
        int8_t *own = m->codes + (size_t)t * w->in;
        codes.unit[t] = quantize(x + (size_t)t * w->in, own, w->in, &codes.sum[t]);
        if (w->bits == 4) split(own, w->in);
    }
    multiply(m, w, &codes, y);
}

/* The beam splitters: state = cos(rho) state + sin(rho) value; y = state. In two passes, whose
 * chains of operations are short enough for several to be under way: 0.6 of the time of one. */
WIDE static void split_beams(float *state, const float *value, const float *radius,
                             const float *bias, uint32_t n, float *y) {
    EACH for (uint32_t i = 0; i < n; i++) y[i] = sigmoid(radius[i] + bias[i]);
    EACH for (uint32_t i = 0; i < n; i++) {
        float decay = sin_quarter(1 - y[i]), coupling = sin_quarter(y[i]);
        y[i] = state[i] = decay * state[i] + coupling * value[i];
    }
}

WIDE static void gate(float *read, const float *gates, uint32_t n) {
    EACH for (uint32_t i = 0; i < n; i++) read[i] *= gates[i] * sigmoid(gates[i]);
}

WIDE static void add(float *x, const float *y, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

WIDE static void square_positive(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float positive = pick(!(x[i] <= 0), x[i], 0); /* NaN stays NaN */
        x[i] = positive * positive;
    }
}

WIDE static void silu(float *x, uint32_t n) {
    EACH for (uint32_t i = 0; i < n; i++) x[i] *= sigmoid(x[i]);
}

/* y += taps * window, whose rows lie `row` apart. */
WIDE static void convolve(const float *const *taps, const float *window, size_t row, uint32_t count,
                          uint32_t width, float *y) {
    for (uint32_t tap = 0; tap < count; tap++)
        for (uint32_t i = 0; i < width; i++) y[i] += window[tap * row + i] * taps[tap][i];
}

typedef struct {
    float gain, coupling, decay;
} angles;

/* One token of one head: memory' = decay (memory + key (x) (gain - 1) held) + coupling key (x) value,
 * of which the query reads. memory: (keys, values), LANES values at a time. */
WIDE static void address(float *memory, const float *query, const float *key, const float *value,
                         uint32_t keys, uint32_t values, const angles *a, float *read) {
    const float change = a->decay * (a->gain - 1);
    for (uint32_t v = 0; v < values; v += LANES) {
        wide update = {0}, sum = {0};
        for (uint32_t i = 0; i < keys; i++)
            update += key[i] * *(const wide_at *)(memory + (size_t)i * values + v);
        update = change * update + a->coupling * *(const wide_at *)(value + v);
        for (uint32_t i = 0; i < keys; i++) {
            wide_at *at = (wide_at *)(memory + (size_t)i * values + v);
            *at = a->decay * *at + key[i] * update;
            sum += query[i] * *at;
        }
        *(wide_at *)(read + v) = sum;
    }
}

/* The addressed beam splitter: training/mixers/addressed.py. */
static void mix_addressed(tsm_model *m, const layer *own, float *memory, float *projected,
                          uint32_t count) {
    const tsm_spec *s = &m->spec;
    const uint32_t width = s->width, before = s->taps - 1, keys = s->key_width, heads = s->heads;
    const uint32_t values = s->channels / heads, qkv = qkv_width(s), row = qkv + s->channels;
    float *own_qkv = m->qkv;
    for (uint32_t t = 0; t < count; t++)
        normalise(m->x + (size_t)t * width, m->normal + (size_t)t * width, width);
    project(m, &own->in, m->normal, count, m->inner);
    for (uint32_t t = 0; t < count; t++) {
        const float *normal = m->normal + (size_t)t * width;
        float *read = m->read + (size_t)t * s->channels;
        const uint32_t old = before > t ? before - t : 0; /* taps on what was projected before */
        memset(own_qkv, 0, qkv * sizeof *own_qkv);
        convolve(own->taps, projected + (size_t)(before - old) * qkv, qkv, old, qkv, own_qkv);
        convolve(own->taps + old, m->inner + (size_t)(t + old - before) * row, row, s->taps - old, qkv,
                 own_qkv);
        silu(own_qkv, qkv);
        for (uint32_t h = 0; h < heads; h++) {
            float *query = own_qkv + (size_t)h * keys, *key = query + (size_t)heads * keys;
            const float *value = own_qkv + 2 * (size_t)heads * keys + (size_t)h * values;
            float raw[ANGLES], *out = read + (size_t)h * values;
            for (uint32_t i = 0; i < ANGLES; i++)
                raw[i] = dot(own->encoder + (size_t)(i * heads + h) * width, normal, width);
            const float turn = sin_quarter(fabsf(2 * sigmoid(2 * (raw[0] + own->delta[h])) - 1));
            const float radius = sigmoid(raw[1] + own->radius[h]);
            const float slow = sigmoid(raw[2] + own->decay[h]);
            /* cos(2 x) = 1 - 2 sin(x)^2 */
            const angles a = {sin_quarter(1 - radius) * (1 - 2 * turn * turn), sin_quarter(radius),
                              sin_quarter(1 - slow)};
            unit_length(query, keys);
            unit_length(key, keys);
            address(memory + (size_t)h * keys * values, query, key, value, keys, values, &a, out);
            normalise(out, out, values);
        }
        gate(read, m->inner + (size_t)t * row + qkv, s->channels);
    }
    for (uint32_t i = 0; i < before; i++) { /* what the convolution still reaches */
        const float *from = i + count < before ? projected + (size_t)(i + count) * qkv
                                               : m->inner + (size_t)(i + count - before) * row;
        memcpy(projected + (size_t)i * qkv, from, qkv * sizeof *from);
    }
    project(m, &own->back, m->read, count, m->shifted);
    add(m->x, m->shifted, (size_t)count * width);
}

static void mix(tsm_model *m, const layer *own, float *channels, float *history, uint32_t count) {
    const tsm_spec *s = &m->spec;
    uint32_t width = s->width, before = s->taps - 1, n = s->channels;
    memcpy(m->normal, history, (size_t)before * width * sizeof *history);
    for (uint32_t t = 0; t < count; t++) {
        const float *window = m->normal + (size_t)t * width;
        normalise(m->x + (size_t)t * width, m->normal + (size_t)(t + before) * width, width);
        float *shifted = m->shifted + (size_t)t * width;
        memcpy(shifted, window + (size_t)before * width, width * sizeof *shifted);
        convolve(own->taps, window, width, s->taps, width, shifted);
    }
    memcpy(history, m->normal + (size_t)count * width, (size_t)before * width * sizeof *history);
    project(m, &own->in, m->shifted, count, m->inner);
    for (uint32_t t = 0; t < count; t++) {
        const float *value = m->inner + (size_t)t * 3 * n, *radius = value + n;
        float *read = m->read + (size_t)t * n;
        split_beams(channels, value, radius, own->radius, n, read);
        normalise(read, read, n);
        gate(read, radius + n, n);
    }
    project(m, &own->back, m->read, count, m->shifted);
    add(m->x, m->shifted, (size_t)count * width);
}

static void feed_forward(tsm_model *m, const layer *own, uint32_t count) {
    uint32_t width = m->spec.width;
    for (uint32_t t = 0; t < count; t++)
        normalise(m->x + (size_t)t * width, m->shifted + (size_t)t * width, width);
    project(m, &own->up, m->shifted, count, m->inner);
    square_positive(m->inner, (size_t)count * m->spec.mlp_width);
    project(m, &own->down, m->inner, count, m->shifted);
    add(m->x, m->shifted, (size_t)count * width);
}

/* Whether none of them is infinite or NaN, whose bits, without the sign, are the greatest. */
WIDE static int all_finite(const float *x, size_t n) {
    const int32_t infinity = 0x7f800000;
    int32_t greatest = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t size = ((const int_at *)x)[i] & INT32_MAX;
        greatest = size > greatest ? size : greatest;
    }
    return greatest < infinity;
}

int tsm_read(tsm_model *m, float *state, const uint8_t *tokens, size_t count, float *logits,
             int every) {
    const tsm_spec *s = &m->spec;
    const size_t before = s->taps - 1;
    const size_t *parts = m->state_parts;
    for (size_t i = 0; i < count; i++)
        if (tokens[i] >= s->vocabulary) return TSM_BAD_TOKEN;
    while (count) {
        uint32_t block = count < BLOCK ? (uint32_t)count : BLOCK;
        for (uint32_t t = 0; t < block; t++)
            memcpy(m->x + (size_t)t * s->width, m->embed + (size_t)tokens[t] * s->width,
                   s->width * sizeof *m->x);
        float *memory = state, *channels = memory + parts[0];
        float *history = channels + parts[1], *projected = history + parts[2];
        for (uint32_t l = 0; l < s->layers; l++) {
            if (s->mixers[l] == TSM_ADDRESSED) {
                mix_addressed(m, &m->layers[l], memory, projected, block);
                memory += (size_t)s->key_width * s->channels;
                projected += before * qkv_width(s);
            } else {
                mix(m, &m->layers[l], channels, history, block);
                channels += s->channels;
                history += before * s->width;
            }
            feed_forward(m, &m->layers[l], block);
        }
        tokens += block;
        count -= block;
        if (!every && count) continue;
        uint32_t first = every ? 0 : block - 1;
        for (uint32_t t = first; t < block; t++)
            normalise(m->x + (size_t)t * s->width, m->shifted + (size_t)t * s->width, s->width);
        project(m, &m->head, m->shifted + (size_t)first * s->width, block - first, logits);
        if (!all_finite(logits, (size_t)(block - first) * s->vocabulary)) return TSM_NOT_FINITE;
        logits += (size_t)(block - first) * s->vocabulary;
    }
    return 0;
}

/* Distributions */

/* weights = exp(logits - greatest). Returns their sum. */
WIDE static float exponentials(const float *logits, float greatest, float *weights) {
    wide sums = {0};
    EACH for (uint32_t i = 0; i < 256; i++) weights[i] = exp_minus(logits[i] - greatest);
    for (uint32_t i = 0; i < 256; i += LANES) sums += *(const wide_at *)(weights + i);
    return total(sums);
}

void tsm_frequencies(const float *logits, uint32_t *cumulative) {
    float greatest = logits[0], weights[256];
    uint32_t likeliest = 0, sum = 0;
    for (uint32_t i = 1; i < 256; i++)
        if (logits[i] > greatest) greatest = logits[likeliest = i];
    float parts = (float)(TSM_FREQUENCIES - 256) / exponentials(logits, greatest, weights);
    for (uint32_t i = 0; i < 256; i++) {
        float part = weights[i] * parts;
        int damaged = !(part < TSM_FREQUENCIES); /* the greatest logit is no finite number */
        sum += cumulative[i + 1] = 1 + (damaged ? 0 : (uint32_t)part);
    }
    cumulative[likeliest + 1] += TSM_FREQUENCIES - sum; /* what rounding has left, or taken */
    cumulative[0] = 0;
    for (uint32_t i = 0; i < 256; i++) cumulative[i + 1] += cumulative[i];
}

SMALL

void tsm_nats(const float *logits, const uint8_t *bytes, size_t count, float *nats, float *entropy) {
    for (size_t n = 0; n < count; n++, logits += 256) {
        float greatest = logits[0], weights[256];
        for (int i = 1; i < 256; i++) greatest = logits[i] > greatest ? logits[i] : greatest;
        float sum = exponentials(logits, greatest, weights), log_sum = logf(sum) + greatest;
        nats[n] = log_sum - logits[bytes[n]];
        if (entropy) entropy[n] = log_sum - dot(weights, logits, 256) / sum;
    }
}

END_SMALL

/* `order`, `count` numbers below 256, by rising `keys`; equals stay as they are. First by the
 * higher bits of the keys and their positions: how many of these are less says where one belongs. */
WIDE static void sort(const double *keys, uint8_t *order, uint32_t count) {
    int32_t rough[256];
    uint8_t sorted[256];
    for (uint32_t i = 0; i < count; i++) {
        float key = (float)keys[order[i]] + 0.0f; /* no -0, which equals 0 */
        int32_t bits;
        memcpy(&bits, &key, sizeof bits);
        rough[i] = ((bits ^ (bits >> 31 & INT32_MAX)) & ~255) | (int32_t)i;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t less = 0;
        for (uint32_t j = 0; j < count; j++) less += rough[j] < rough[i];
        sorted[less] = order[i];
    }
    for (uint32_t i = 0, j; i < count; i++) {
        for (j = i; j && keys[sorted[i]] < keys[order[j - 1]]; j--) order[j] = order[j - 1];
        order[j] = sorted[i];
    }
}

/* How many of the first weights reach this share of them all together. */
static uint32_t reaching(const double *weights, const uint8_t *order, uint32_t count,
                         double share) {
    double all = 0, sum = 0;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) all += weights[order[i]];
    do sum += weights[order[kept++]];
    while (kept < count && sum < share * all);
    return kept;
}

SMALL

uint8_t tsm_draw(const float *logits, const float *adjust, double temperature, uint32_t top_k,
                 double typical_p, double top_p, double min_p, double uniform) {
    double keys[256], powers[256], weights[256], all = 0, sum = 0;
    uint8_t order[256];
    uint32_t count = top_k && top_k < 256 ? top_k : 256, drawn = 0;
    for (uint32_t i = 0; i < 256; i++) {
        keys[i] = -((double)logits[i] + (adjust ? (double)adjust[i] : 0));
        order[i] = (uint8_t)i;
    }
    if (temperature == 0) {
        for (uint32_t i = 1; i < 256; i++) drawn = keys[i] < keys[drawn] ? i : drawn;
        return (uint8_t)drawn;
    }
    sort(keys, order, 256);
    for (uint32_t i = 0; i < count; i++) { /* powers and weights by byte */
        uint8_t byte = order[i];
        powers[byte] = (keys[order[0]] - keys[byte]) / temperature;
        weights[byte] = exp(powers[byte]);
    }
    while (count > 1 && !(weights[order[count - 1]] > 0)) count--;
    if (typical_p < 1) { /* surprises nearest to their mean, the entropy: powers, but for a constant */
        double distances[256], mean = 0, total = 0;
        for (uint32_t i = 0; i < count; i++) total += weights[order[i]];
        for (uint32_t i = 0; i < count; i++) mean += weights[order[i]] * powers[order[i]];
        mean /= total;
        for (uint32_t i = 0; i < count; i++) distances[order[i]] = fabs(powers[order[i]] - mean);
        uint8_t nearest[256], kept[256] = {0};
        memcpy(nearest, order, count);
        sort(distances, nearest, count);
        uint32_t enough = reaching(weights, nearest, count, typical_p), left = 0;
        for (uint32_t i = 0; i < enough; i++) kept[nearest[i]] = 1;
        for (uint32_t i = 0; i < count; i++)
            if (kept[order[i]]) order[left++] = order[i];
        count = left;
    }
    double least = min_p * weights[order[0]];
    if (top_p < 1) count = reaching(weights, order, count, top_p);
    while (count > 1 && weights[order[count - 1]] < least) count--;
    all = 0;
    for (uint32_t i = 0; i < count; i++) all += weights[order[i]];
    for (; drawn + 1 < count; drawn++)
        if ((sum += weights[order[drawn]]) > uniform * all) break;
    return order[drawn];
}

END_SMALL
