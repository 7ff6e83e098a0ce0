/* The Topological Sequence Model on a CPU: see tsm.h, and training/model.py for the mathematics.
 *
 * Projections are integer: weights of 8 or 4 bits a row, activations quantized to 8 bits a token as
 * they come. Sums are exact, so that every kind of instructions gives the same integers; the
 * floating-point rest is one source, in a fixed order of additions, without contraction
 * (-ffp-contract=off): the same model gives the same bits in plain C, on AVX2 and on AVX-512.
 */
#include "tsm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#endif

/* The same lines compiled for wider vectors, chosen when the library is loaded. */
#if defined(X86) && defined(__gnu_linux__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

enum { BLOCK = 16, LANES = 16, MOST_TAPS = 8, PLAIN = 0, AVX2 = 1, VNNI = 2 };

typedef struct {
    const uint8_t *codes; /* (out, in): int8, or two int4 a byte, the first in the low half */
    const float *scales;  /* (out,) */
    int32_t *sums;        /* (out,) of a row's codes, for AVX-512 */
    uint32_t out, in, bits;
} matrix;

typedef struct {
    const float *taps[MOST_TAPS], *radius;
    matrix in, back, up, down;
} layer;

typedef void (*product)(const matrix *, const int8_t *, const float *, uint32_t, float *);

struct tsm_model {
    tsm_spec spec;
    const float *embed;
    layer *layers;
    matrix head;
    product multiply8, multiply4;
    int simd;
    float *x, *normal, *shifted, *projected, *read, *hidden; /* BLOCK rows each */
    int8_t *codes;
};

/* Arithmetic */

/* LANES values at once, of which each compiler makes what its target has; and the same at any
 * address. Always inlined: as arguments they would be passed as the caller's target does. */
typedef float wide __attribute__((vector_size(4 * LANES)));
typedef int32_t wide_int __attribute__((vector_size(4 * LANES)));
typedef float wide_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
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

INLINE wide pick(wide_int mask, wide a, wide b) {
    return (wide)(((wide_int)a & mask) | ((wide_int)b & ~mask));
}

/* exp(-|x|) to 3e-7 of its value, exp(-87) at the least: 2^n times a polynomial in the rest, at
 * most ln 2 / 2 (Cephes' expf). */
INLINE wide exp_minus(wide x) {
    wide y = (wide)((wide_int)x | INT32_MIN), least = (wide){0} - 87;
    y = pick(y < least, least, y);
    wide_int n = __builtin_convertvector(y * 1.44269504f - 0.5f, wide_int);
    wide whole = __builtin_convertvector(n, wide);
    wide r = y - whole * 0.693359375f + whole * 2.12194440e-4f;
    wide p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1) * (wide)((n + 127) << 23);
}

/* 1 / (1 + exp(-x)) */
INLINE wide sigmoid(wide x) {
    wide p = exp_minus(x), one = (wide){0} + 1;
    return pick(x < 0, p, one) / (1 + p);
}

/* sin(pi/2 y), 0 <= y <= 1, to 1e-7: the power series. */
INLINE wide sin_quarter(wide y) {
    wide z = y * 1.57079633f, q = z * z;
    wide p = q * -2.5052108e-8f + 2.7557319e-6f;
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

/* x = codes * scale, |codes| <= 127, rounded to the nearest. Returns scale. */
WIDE static float quantize(const float *x, int8_t *codes, uint32_t n) {
    float greatest = 0;
    for (uint32_t i = 0; i < n; i++) {
        float size = fabsf(x[i]);
        greatest = size > greatest ? size : greatest;
    }
    float steps = greatest > 1e-30f ? 127 / greatest : 0;
    for (uint32_t i = 0; i < n; i++) {
        float scaled = x[i] * steps;
        codes[i] = (int8_t)(int32_t)(scaled + (scaled < 0 ? -0.5f : 0.5f));
    }
    return greatest / 127;
}

/* Products: y (count, out) = scales * (codes (out, in) x (count, in)), integers inside. A row of
 * int4 codes wants the even places of x first, then the odd ones: `split`. */

static void split(int8_t *x, uint32_t n) {
    int8_t odd[n / 2];
    for (uint32_t i = 0; i < n / 2; i++) odd[i] = x[2 * i + 1];
    for (uint32_t i = 0; i < n / 2; i++) x[i] = x[2 * i];
    memcpy(x + n / 2, odd, n / 2);
}

static void plain8(const matrix *m, const int8_t *x, const float *unit, uint32_t count, float *y) {
    for (uint32_t t = 0; t < count; t++)
        for (uint32_t o = 0; o < m->out; o++) {
            const int8_t *row = (const int8_t *)m->codes + (size_t)o * m->in;
            int32_t sum = 0;
            for (uint32_t i = 0; i < m->in; i++) sum += row[i] * x[(size_t)t * m->in + i];
            y[(size_t)t * m->out + o] = (float)sum * (unit[t] * m->scales[o]);
        }
}

static void plain4(const matrix *m, const int8_t *x, const float *unit, uint32_t count, float *y) {
    uint32_t half = m->in / 2;
    for (uint32_t t = 0; t < count; t++)
        for (uint32_t o = 0; o < m->out; o++) {
            const uint8_t *row = m->codes + (size_t)o * half;
            const int8_t *even = x + (size_t)t * m->in, *odd = even + half;
            int32_t sum = 0;
            for (uint32_t i = 0; i < half; i++) {
                int32_t first = ((row[i] & 15) ^ 8) - 8, second = ((row[i] >> 4) ^ 8) - 8;
                sum += first * even[i] + second * odd[i];
            }
            y[(size_t)t * m->out + o] = (float)sum * (unit[t] * m->scales[o]);
        }
}

#ifdef X86
/* ROWS rows against TOKENS tokens: what is loaded of either serves all of the other. */
#define TILED(name, isa, kernel)                                                                   \
    __attribute__((target(isa))) static void name(                                                 \
        const matrix *m, const int8_t *x, const float *unit, uint32_t count, float *y) {           \
        uint32_t t = 0;                                                                            \
        for (; t + 4 <= count; t += 4)                                                             \
            for (uint32_t o = 0; o < m->out; o += 2) kernel(2, 4)                                  \
        for (; t < count; t++)                                                                     \
            for (uint32_t o = 0; o < m->out; o += 4) kernel(4, 1)                                  \
    }

#define STORE(ROWS, TOKENS, totals, correction)                                                    \
    int32_t found[ROWS][TOKENS];                                                                   \
    for (int i = 0; i < ROWS * TOKENS; i += 4) totals(&sum[0][0] + i, &found[0][0] + i);           \
    for (int r = 0; r < ROWS; r++)                                                                 \
        for (int s = 0; s < TOKENS; s++)                                                           \
            y[(size_t)(t + s) * m->out + o + r] =                                                  \
                (float)(found[r][s] - (correction)) * (unit[t + s] * m->scales[o + r]);

/* The totals of four vectors at once. */
__attribute__((target("avx2"))) static inline void fold(__m128i a, __m128i b, __m128i c, __m128i d,
                                                        int32_t *totals) {
    __m128i ab = _mm_hadd_epi32(a, b), cd = _mm_hadd_epi32(c, d);
    _mm_storeu_si128((__m128i *)totals, _mm_hadd_epi32(ab, cd));
}

__attribute__((target("avx2"))) static inline __m128i half256(__m256i v) {
    return _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

__attribute__((target("avx2"))) static inline void totals256(const __m256i *v, int32_t *totals) {
    fold(half256(v[0]), half256(v[1]), half256(v[2]), half256(v[3]), totals);
}

__attribute__((target("avx2"))) static inline __m256i bytes256(const void *place) {
    return _mm256_loadu_si256((const __m256i *)place);
}

/* |codes| <= 127 on both sides, so that no sum of two products saturates. */
__attribute__((target("avx2"))) static inline __m256i add256(__m256i sum, __m256i w, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* What is left of a row, fewer than 32 bytes, a multiple of 4; zeros after it. */
__attribute__((target("avx2"))) static inline __m256i tail256(const void *place, uint32_t left) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left / 4), lane);
    return _mm256_maskload_epi32((const int *)place, mask);
}

#define WHOLE256(place) bytes256(place)
#define TAIL256(place) tail256(place, n - i)

#define AVX2_8_STEP(ROWS, TOKENS, LOAD)                                                            \
    for (int r = 0; r < ROWS; r++)                                                                 \
        for (int s = 0; s < TOKENS; s++)                                                           \
            sum[r][s] = add256(sum[r][s], LOAD(w + (size_t)r * n + i), LOAD(v + (size_t)s * n + i));
#define AVX2_8(ROWS, TOKENS)                                                                       \
    {                                                                                              \
        uint32_t n = m->in, i = 0;                                                                 \
        const uint8_t *w = m->codes + (size_t)o * n;                                               \
        const int8_t *v = x + (size_t)t * n;                                                       \
        __m256i sum[ROWS][TOKENS];                                                                 \
        memset(sum, 0, sizeof sum);                                                                \
        for (; i + 32 <= n; i += 32) AVX2_8_STEP(ROWS, TOKENS, WHOLE256)                           \
        if (i < n) AVX2_8_STEP(ROWS, TOKENS, TAIL256)                                              \
        STORE(ROWS, TOKENS, totals256, 0)                                                          \
    }
#define AVX2_4_STEP(ROWS, TOKENS, LOAD)                                                            \
    for (int r = 0; r < ROWS; r++) {                                                               \
        __m256i both = LOAD(w + (size_t)r * n + i);                                                \
        __m256i even = _mm256_and_si256(both, low);                                                \
        __m256i odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);                           \
        even = _mm256_sub_epi8(_mm256_xor_si256(even, eight), eight);                              \
        odd = _mm256_sub_epi8(_mm256_xor_si256(odd, eight), eight);                                \
        for (int s = 0; s < TOKENS; s++) {                                                         \
            sum[r][s] = add256(sum[r][s], even, LOAD(v + (size_t)s * 2 * n + i));                  \
            sum[r][s] = add256(sum[r][s], odd, LOAD(v + ((size_t)s * 2 + 1) * n + i));             \
        }                                                                                          \
    }
#define AVX2_4(ROWS, TOKENS)                                                                       \
    {                                                                                              \
        uint32_t n = m->in / 2, i = 0;                                                             \
        const uint8_t *w = m->codes + (size_t)o * n;                                               \
        const int8_t *v = x + (size_t)t * 2 * n;                                                   \
        const __m256i low = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);                     \
        __m256i sum[ROWS][TOKENS];                                                                 \
        memset(sum, 0, sizeof sum);                                                                \
        for (; i + 32 <= n; i += 32) AVX2_4_STEP(ROWS, TOKENS, WHOLE256)                           \
        if (i < n) AVX2_4_STEP(ROWS, TOKENS, TAIL256)                                              \
        STORE(ROWS, TOKENS, totals256, 0)                                                          \
    }
TILED(avx2_8, "avx2", AVX2_8)
TILED(avx2_4, "avx2", AVX2_4)

#define VNNI_TARGET "avx512f,avx512bw,avx512vl,avx512vnni"

__attribute__((target(VNNI_TARGET))) static inline __m512i bytes512(const void *place) {
    return _mm512_loadu_si512(place);
}

__attribute__((target(VNNI_TARGET))) static inline __m128i quarter512(__m512i v) {
    return half256(_mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)));
}

__attribute__((target(VNNI_TARGET))) static inline void totals512(const __m512i *v,
                                                                  int32_t *totals) {
    fold(quarter512(v[0]), quarter512(v[1]), quarter512(v[2]), quarter512(v[3]), totals);
}

#define WHOLE512(place) bytes512(place)
#define TAIL512(place) _mm512_maskz_loadu_epi8(~(__mmask64)0 >> (64 - (n - i)), place)

/* The first operand is unsigned: x + 128, whose surplus of 128 sum(row) is taken off. */
#define VNNI_8_STEP(ROWS, TOKENS, LOAD)                                                            \
    for (int s = 0; s < TOKENS; s++) {                                                             \
        __m512i raised = _mm512_xor_si512(LOAD(v + (size_t)s * n + i), raise);                     \
        for (int r = 0; r < ROWS; r++)                                                             \
            sum[r][s] = _mm512_dpbusd_epi32(sum[r][s], raised, LOAD(w + (size_t)r * n + i));       \
    }
#define VNNI_8(ROWS, TOKENS)                                                                       \
    {                                                                                              \
        uint32_t n = m->in, i = 0;                                                                 \
        const uint8_t *w = m->codes + (size_t)o * n;                                               \
        const int8_t *v = x + (size_t)t * n;                                                       \
        const __m512i raise = _mm512_set1_epi8((char)128);                                         \
        __m512i sum[ROWS][TOKENS];                                                                 \
        memset(sum, 0, sizeof sum);                                                                \
        for (; i + 64 <= n; i += 64) VNNI_8_STEP(ROWS, TOKENS, WHOLE512)                           \
        if (i < n) VNNI_8_STEP(ROWS, TOKENS, TAIL512)                                              \
        STORE(ROWS, TOKENS, totals512, 128 * m->sums[o + r])                                       \
    }
/* Here codes + 8 is unsigned, and the surplus is 8 sum(x). */
#define VNNI_4_STEP(ROWS, TOKENS, LOAD)                                                            \
    for (int s = 0; s < TOKENS; s++) {                                                             \
        __m512i even = LOAD(v + (size_t)s * 2 * n + i), odd = LOAD(v + ((size_t)s * 2 + 1) * n + i); \
        surplus[s] = _mm512_dpbusd_epi32(surplus[s], eights, even);                                \
        surplus[s] = _mm512_dpbusd_epi32(surplus[s], eights, odd);                                 \
        for (int r = 0; r < ROWS; r++) {                                                           \
            __m512i both = _mm512_xor_si512(LOAD(w + (size_t)r * n + i), flip);                    \
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);                      \
            sum[r][s] = _mm512_dpbusd_epi32(sum[r][s], _mm512_and_si512(both, low), even);         \
            sum[r][s] = _mm512_dpbusd_epi32(sum[r][s], high, odd);                                 \
        }                                                                                          \
    }
#define VNNI_4(ROWS, TOKENS)                                                                       \
    {                                                                                              \
        uint32_t n = m->in / 2, i = 0;                                                             \
        const uint8_t *w = m->codes + (size_t)o * n;                                               \
        const int8_t *v = x + (size_t)t * 2 * n;                                                   \
        const __m512i low = _mm512_set1_epi8(15), flip = _mm512_set1_epi8((char)0x88);             \
        const __m512i eights = _mm512_set1_epi8(8);                                                \
        __m512i sum[ROWS][TOKENS], surplus[TOKENS];                                                \
        memset(sum, 0, sizeof sum);                                                                \
        memset(surplus, 0, sizeof surplus);                                                        \
        for (; i + 64 <= n; i += 64) VNNI_4_STEP(ROWS, TOKENS, WHOLE512)                           \
        if (i < n) VNNI_4_STEP(ROWS, TOKENS, TAIL512)                                              \
        int32_t eightfold[TOKENS];                                                                 \
        for (int s = 0; s < TOKENS; s++) eightfold[s] = _mm512_reduce_add_epi32(surplus[s]);       \
        STORE(ROWS, TOKENS, totals512, eightfold[s])                                               \
    }
TILED(vnni_8, VNNI_TARGET, VNNI_8)
TILED(vnni_4, VNNI_TARGET, VNNI_4)
#endif

/* A model */

uint32_t tsm_version(void) { return TSM_VERSION; }

static int runs(const tsm_spec *s) {
    const uint32_t most = 1 << 14; /* of a width: no product of sizes below overflows */
    return s->vocabulary && s->vocabulary <= 256 && s->width && s->width <= most && s->layers &&
           s->layers <= 256 && s->channels && s->channels <= most && s->channels % LANES == 0 &&
           s->mlp_width && s->mlp_width <= 4 * most && s->taps && s->taps <= MOST_TAPS &&
           (s->bits == 8 || (s->bits == 4 && s->width % 2 == 0 && s->mlp_width % 2 == 0));
}

size_t tsm_place_count(const tsm_spec *s) {
    return runs(s) ? 1 + (size_t)s->layers * (s->taps + 1 + 8) + 2 : 0;
}

typedef struct {
    const uint8_t *file;
    size_t bytes;
    const uint64_t *next;
    int bad;
} reader;

static const uint8_t *take(reader *r, size_t bytes, size_t alignment) {
    uint64_t place = *r->next++;
    if (place > r->bytes || bytes > r->bytes - place || place % alignment) {
        r->bad = 1;
        return NULL;
    }
    return r->file + place;
}

static const float *take_floats(reader *r, size_t count) {
    return (const float *)(const void *)take(r, count * 4, 4);
}

static matrix take_matrix(reader *r, uint32_t out, uint32_t in, uint32_t bits) {
    matrix m = {NULL, NULL, NULL, out, in, bits};
    m.codes = take(r, (size_t)out * in * bits / 8, 1);
    m.scales = take_floats(r, out);
    return m;
}

/* The vectors' code takes four rows at a time, and of a row four bytes. */
static int fits(const matrix *m) { return m->in * m->bits / 8 % 4 == 0 && m->out % 4 == 0; }

static void choose(tsm_model *m, int simd) {
#ifdef X86
    if (simd >= VNNI && !(__builtin_cpu_supports("avx512vnni") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")))
        simd = AVX2;
    if (simd >= AVX2 && !__builtin_cpu_supports("avx2")) simd = PLAIN;
    int all = fits(&m->head);
    for (uint32_t l = 0; l < m->spec.layers; l++) {
        const layer *own = &m->layers[l];
        all = all && fits(&own->in) && fits(&own->back) && fits(&own->up) && fits(&own->down);
    }
    if (!all || simd < PLAIN) simd = PLAIN;
    if (simd > VNNI) simd = VNNI;
    m->multiply8 = simd == VNNI ? vnni_8 : simd == AVX2 ? avx2_8 : plain8;
    m->multiply4 = simd == VNNI ? vnni_4 : simd == AVX2 ? avx2_4 : plain4;
    m->simd = simd;
#else
    (void)simd;
    m->multiply8 = plain8;
    m->multiply4 = plain4;
    m->simd = PLAIN;
#endif
}

static int add_sums(matrix *m) {
    if (m->bits != 8) return 1;
    m->sums = calloc(m->out, sizeof *m->sums);
    if (!m->sums) return 0;
    for (uint32_t o = 0; o < m->out; o++)
        for (uint32_t i = 0; i < m->in; i++)
            m->sums[o] += ((const int8_t *)m->codes)[(size_t)o * m->in + i];
    return 1;
}

tsm_model *tsm_new(const tsm_spec *spec, const uint8_t *file, size_t file_bytes,
                   const uint64_t *places, size_t place_count, int simd) {
    if (!tsm_place_count(spec) || place_count != tsm_place_count(spec)) return NULL;
    const tsm_spec s = *spec;
    reader r = {file, file_bytes, places, 0};
    tsm_model *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->spec = s;
    m->layers = calloc(s.layers, sizeof *m->layers);
    if (!m->layers) goto failed;
    m->embed = take_floats(&r, (size_t)s.vocabulary * s.width);
    for (uint32_t l = 0; l < s.layers; l++) {
        layer *own = &m->layers[l];
        for (uint32_t tap = 0; tap < s.taps; tap++) own->taps[tap] = take_floats(&r, s.width);
        own->radius = take_floats(&r, s.channels);
        own->in = take_matrix(&r, 3 * s.channels, s.width, s.bits);
        own->back = take_matrix(&r, s.width, s.channels, s.bits);
        own->up = take_matrix(&r, s.mlp_width, s.width, s.bits);
        own->down = take_matrix(&r, s.width, s.mlp_width, s.bits);
    }
    m->head = take_matrix(&r, s.vocabulary, s.width, 8);
    if (r.bad) goto failed;

    choose(m, simd);
    if (m->simd == VNNI) {
        int enough = add_sums(&m->head);
        for (uint32_t l = 0; l < s.layers; l++) {
            layer *own = &m->layers[l];
            enough = enough && add_sums(&own->in) && add_sums(&own->back) && add_sums(&own->up) &&
                     add_sums(&own->down);
        }
        if (!enough) goto failed;
    }
    uint32_t widest = s.mlp_width > s.channels ? s.mlp_width : s.channels;
    widest = widest > s.width ? widest : s.width;
    m->x = calloc((size_t)BLOCK * s.width, 4);
    m->normal = calloc((size_t)(BLOCK + s.taps - 1) * s.width, 4);
    m->shifted = calloc((size_t)BLOCK * s.width, 4);
    m->projected = calloc((size_t)BLOCK * 3 * s.channels, 4);
    m->read = calloc((size_t)BLOCK * s.channels, 4);
    m->hidden = calloc((size_t)BLOCK * s.mlp_width, 4);
    m->codes = calloc((size_t)BLOCK * widest, 1);
    if (m->x && m->normal && m->shifted && m->projected && m->read && m->hidden && m->codes)
        return m;
failed:
    tsm_free(m);
    return NULL;
}

void tsm_free(tsm_model *m) {
    if (!m) return;
    for (uint32_t l = 0; m->layers && l < m->spec.layers; l++) {
        layer *own = &m->layers[l];
        free(own->in.sums);
        free(own->back.sums);
        free(own->up.sums);
        free(own->down.sums);
    }
    free(m->head.sums);
    free(m->layers);
    free(m->x);
    free(m->normal);
    free(m->shifted);
    free(m->projected);
    free(m->read);
    free(m->hidden);
    free(m->codes);
    free(m);
}

int tsm_simd(const tsm_model *m) { return m->simd; }

/* The function, for a block of at most BLOCK tokens */

static void project(tsm_model *m, const matrix *w, const float *x, uint32_t count, float *y) {
    float unit[BLOCK];
    for (uint32_t t = 0; t < count; t++) {
        int8_t *codes = m->codes + (size_t)t * w->in;
        unit[t] = quantize(x + (size_t)t * w->in, codes, w->in);
        if (w->bits == 4) split(codes, w->in);
    }
    (w->bits == 4 ? m->multiply4 : m->multiply8)(w, m->codes, unit, count, y);
}

/* The beam splitters: state = cos(rho) state + sin(rho) value; y = state. */
WIDE static void split_beams(float *state, const float *value, const float *radius,
                             const float *bias, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i += LANES) {
        wide share = sigmoid(*(const wide_at *)(radius + i) + *(const wide_at *)(bias + i));
        wide kept = sin_quarter(1 - share), coupling = sin_quarter(share);
        wide next = kept * *(const wide_at *)(state + i);
        next += coupling * *(const wide_at *)(value + i);
        *(wide_at *)(state + i) = next;
        *(wide_at *)(y + i) = next;
    }
}

WIDE static void gate(float *read, const float *gates, uint32_t n) {
    for (uint32_t i = 0; i < n; i += LANES) {
        wide g = *(const wide_at *)(gates + i);
        *(wide_at *)(read + i) *= g * sigmoid(g);
    }
}

WIDE static void add(float *x, const float *y, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

WIDE static void square_positive(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = x[i] > 0 ? x[i] * x[i] : 0;
}

WIDE static void convolve(const layer *own, const float *window, uint32_t taps, uint32_t width,
                          float *y) {
    memcpy(y, window + (size_t)(taps - 1) * width, width * sizeof *y);
    for (uint32_t tap = 0; tap < taps; tap++)
        for (uint32_t i = 0; i < width; i++)
            y[i] += window[(size_t)tap * width + i] * own->taps[tap][i];
}

static void mix(tsm_model *m, const layer *own, float *channels, float *history, uint32_t count) {
    const tsm_spec *s = &m->spec;
    uint32_t width = s->width, before = s->taps - 1, n = s->channels;
    memcpy(m->normal, history, (size_t)before * width * sizeof *history);
    for (uint32_t t = 0; t < count; t++) {
        const float *window = m->normal + (size_t)t * width;
        normalise(m->x + (size_t)t * width, m->normal + (size_t)(t + before) * width, width);
        convolve(own, window, s->taps, width, m->shifted + (size_t)t * width);
    }
    memcpy(history, m->normal + (size_t)count * width, (size_t)before * width * sizeof *history);
    project(m, &own->in, m->shifted, count, m->projected);
    for (uint32_t t = 0; t < count; t++) {
        const float *value = m->projected + (size_t)t * 3 * n, *radius = value + n;
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
    project(m, &own->up, m->shifted, count, m->hidden);
    square_positive(m->hidden, (size_t)count * m->spec.mlp_width);
    project(m, &own->down, m->hidden, count, m->shifted);
    add(m->x, m->shifted, (size_t)count * width);
}

int tsm_read(tsm_model *m, float *channels, float *history, const uint8_t *tokens, size_t count,
             float *logits, int every) {
    const tsm_spec *s = &m->spec;
    size_t one_history = (size_t)(s->taps - 1) * s->width;
    for (size_t i = 0; i < count; i++)
        if (tokens[i] >= s->vocabulary) return -1;
    while (count) {
        uint32_t block = count < BLOCK ? (uint32_t)count : BLOCK;
        for (uint32_t t = 0; t < block; t++)
            memcpy(m->x + (size_t)t * s->width, m->embed + (size_t)tokens[t] * s->width,
                   s->width * sizeof *m->x);
        for (uint32_t l = 0; l < s->layers; l++) {
            mix(m, &m->layers[l], channels + l * s->channels, history + l * one_history, block);
            feed_forward(m, &m->layers[l], block);
        }
        tokens += block;
        count -= block;
        if (!every && count) continue;
        uint32_t first = every ? 0 : block - 1;
        for (uint32_t t = first; t < block; t++)
            normalise(m->x + (size_t)t * s->width, m->shifted + (size_t)t * s->width, s->width);
        project(m, &m->head, m->shifted + (size_t)first * s->width, block - first, logits);
        logits += (size_t)(block - first) * s->vocabulary;
    }
    return 0;
}

/* Distributions */

WIDE void tsm_frequencies(const float *logits, uint32_t *cumulative) {
    float greatest = logits[0], weights[256];
    uint32_t likeliest = 0, sum = 0;
    for (uint32_t i = 1; i < 256; i++)
        if (logits[i] > greatest) greatest = logits[likeliest = i];
    wide sums = {0};
    for (uint32_t i = 0; i < 256; i += LANES) {
        wide weight = exp_minus(*(const wide_at *)(logits + i) - greatest);
        *(wide_at *)(weights + i) = weight;
        sums += weight;
    }
    float scale = (float)(TSM_FREQUENCIES - 256) / total(sums);
    for (uint32_t i = 0; i < 256; i++) sum += cumulative[i + 1] = 1 + (uint32_t)(weights[i] * scale);
    cumulative[likeliest + 1] += TSM_FREQUENCIES - sum; /* what rounding has left, or taken */
    cumulative[0] = 0;
    for (uint32_t i = 0; i < 256; i++) cumulative[i + 1] += cumulative[i];
}
