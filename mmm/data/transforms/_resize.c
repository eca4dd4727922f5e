/* Resizing of uint8 pictures, antialiased: the bits of torch's own kernel, in a third to a half of its time.

A picture shrinks or grows along its rows first, then along its columns; between the two it is rounded to uint8. Each sample is a
weighted sum of neighbours, with weights of 16 bits and sums of 32: as torch and Pillow do, so the results are equal and not merely
close (tests/data/test_resize.py compares them). What is different is the width: AVX-512 picks 64 bytes of a row at once by number
(VBMI) and multiplies and adds 32 pairs of 16 bits (VNNI). Where a processor has neither, or no compiler was there,
mmm/data/transforms/resize.py takes torch's kernel.

The filters are those of torch's antialias: a triangle (bilinear), or Keys' cubic with a = -1/2 (bicubic), as wide as the
picture shrinks.
*/

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))
#define LANES 16   /* results of one register of sums: bytes of a row, or a quarter of what a register of bytes gives */
#define WINDOW 128 /* bytes of a row from which LANES results can be picked */
#define ROWS 4     /* that are resized side by side, with one reading of the weights */

/* Which neighbours a result is made of: those from first on, their weights in fixed point. */
typedef struct {
    int size, taps, precision; /* results; the most neighbours of one, even; bits behind the point */
    int32_t *first, *count;    /* (size) */
    int16_t *weights;          /* (size, taps), zeros after count */
} Filter;

/* The same for rows of bytes: LANES results at a time, their neighbours by place in a window of the row. */
typedef struct {
    int groups, pairs, wide; /* wide: whether a window is longer than one register, 64 bytes */
    int32_t *start;   /* (groups) of the window, bytes */
    uint8_t *picks;   /* (groups, LANES, 4): the first two neighbours of each result */
    int16_t *weights; /* (pairs, groups, LANES, 2) */
} Plan;

/* Memory that one thread keeps from call to call, given out from its start. */
static _Thread_local struct {
    uint8_t *bytes;
    size_t size, used;
} store;

static void *take(size_t size)
{
    uint8_t *found = store.bytes + store.used;
    store.used += (size + 63) & ~(size_t)63;
    return found;
}

static double weight_of(double x, int cubic)
{
    x = x < 0 ? -x : x;
    if (!cubic)
        return x < 1 ? 1 - x : 0;
    if (x < 1)
        return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

static double support_of(int from, int to, int cubic)
{
    double scale = (double)from / to, radius = cubic ? 2 : 1;
    return scale > 1 ? radius * scale : radius;
}

static int taps_of(int from, int to, int cubic)
{
    return 2 * ((int)support_of(from, to, cubic) + 1) + 2;
}

static size_t filter_bytes(int from, int to, int cubic)
{
    return (size_t)to * (2 * sizeof(int32_t) + taps_of(from, to, cubic) * (sizeof(double) + sizeof(int16_t))) + 4 * 64;
}

static Filter make_filter(int from, int to, int cubic)
{
    double scale = (double)from / to, support = support_of(from, to, cubic), shrink = scale > 1 ? 1 / scale : 1, largest = 0;
    int most = taps_of(from, to, cubic);
    Filter filter = {.size = to, .taps = 0};
    filter.first = take(to * sizeof(int32_t));
    filter.count = take(to * sizeof(int32_t));
    filter.weights = take((size_t)to * most * sizeof(int16_t));
    double *exact = take((size_t)to * most * sizeof(double));
    for (int i = 0; i < to; i++) {
        double center = scale * (i + 0.5), total = 0, *mine = exact + (size_t)i * most;
        int64_t first = (int64_t)(center - support + 0.5), end = (int64_t)(center + support + 0.5);
        first = first < 0 ? 0 : first;
        end = end > from ? from : end;
        int count = (int)(end - first);
        for (int k = 0; k < count; k++)
            total += mine[k] = weight_of((k + first - center + 0.5) * shrink, cubic);
        for (int k = 0; k < count; k++) {
            mine[k] /= total;
            largest = mine[k] > largest ? mine[k] : largest;
        }
        filter.first[i] = (int32_t)first;
        filter.count[i] = count;
        filter.taps = count > filter.taps ? count : filter.taps;
    }
    filter.taps += filter.taps & 1;
    while (filter.precision < 22 && (int)(0.5 + largest * (1 << (filter.precision + 1))) < 1 << 15)
        filter.precision++;
    for (int i = 0; i < to; i++)
        for (int k = 0; k < filter.taps; k++) {
            double weight = k < filter.count[i] ? exact[(size_t)i * most + k] * (1 << filter.precision) : 0;
            filter.weights[(size_t)i * filter.taps + k] = (int16_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
    return filter;
}

static size_t plan_bytes(int from, int to, int channels, int cubic)
{
    size_t groups = ((size_t)to * channels + LANES - 1) / LANES;
    return groups * (sizeof(int32_t) + 4 * LANES + taps_of(from, to, cubic) * LANES * sizeof(int16_t)) + 3 * 64;
}

/* 0 where a window does not hold what its results are made of. */
static int make_plan(Plan *plan, const Filter *filter, int channels)
{
    int bytes = filter->size * channels;
    plan->groups = (bytes + LANES - 1) / LANES;
    plan->wide = 0;
    plan->pairs = filter->taps / 2;
    plan->start = take(plan->groups * sizeof(int32_t));
    plan->picks = take((size_t)plan->groups * 4 * LANES);
    plan->weights = take((size_t)plan->pairs * plan->groups * 2 * LANES * sizeof(int16_t));
    for (int g = 0; g < plan->groups; g++) {
        int start = plan->start[g] = filter->first[g * LANES / channels] * channels;
        for (int lane = 0; lane < LANES; lane++) {
            int byte = g * LANES + lane < bytes ? g * LANES + lane : bytes - 1, i = byte / channels;
            int place = filter->first[i] * channels + byte % channels - start;
            int last = place + (filter->count[i] - 1) * channels;
            if (last >= WINDOW)
                return 0;
            plan->wide |= last >= 64;
            uint8_t *pick = plan->picks + 4 * (g * LANES + lane);
            pick[0] = pick[1] = (uint8_t)place;
            pick[2] = pick[3] = (uint8_t)(place + channels);
            for (int k = 0; k < plan->pairs; k++)
                memcpy(plan->weights + 2 * LANES * ((size_t)k * plan->groups + g) + 2 * lane,
                       filter->weights + (size_t)i * filter->taps + 2 * k, 2 * sizeof(int16_t));
        }
    }
    return 1;
}

static inline __mmask64 first_bytes(int count)
{
    return count >= 64 ? ~(__mmask64)0 : count <= 0 ? 0 : ((__mmask64)1 << count) - 1;
}

/* Along rows: `rows` of them, `width` bytes each, to `size` bytes each. */
TARGET static inline __attribute__((always_inline)) void along_rows(const uint8_t *from, ptrdiff_t stride, int rows, int width,
                                                                    uint8_t *to, int size, const Plan *plan, int precision,
                                                                    int channels, int wide)
{
    const __mmask64 even = 0x5555555555555555; /* of 16 bits the upper 8 are zeros */
    const __m512i half = _mm512_set1_epi32(1 << (precision - 1)), zero = _mm512_setzero_si512();
    const __m512i next = _mm512_set1_epi8((char)(2 * channels));
    const __m128i shift = _mm_cvtsi32_si128(precision);
    for (int row = 0; row < rows; row += ROWS) {
        int here = rows - row < ROWS ? rows - row : ROWS;
        const uint8_t *line[ROWS];
        uint8_t *result[ROWS];
        for (int r = 0; r < ROWS; r++) { /* behind the last row the last again */
            int at = row + (r < here ? r : here - 1);
            line[r] = from + at * stride;
            result[r] = to + (size_t)at * size;
        }
        for (int g = 0; g < plan->groups; g++) {
            int start = plan->start[g];
            __mmask64 low = first_bytes(width - start), high = wide ? first_bytes(width - start - 64) : 0;
            __m512i pick = _mm512_loadu_si512(plan->picks + 4 * LANES * g);
            __m512i near[ROWS], far[ROWS], sum[ROWS];
            for (int r = 0; r < ROWS; r++) {
                near[r] = _mm512_maskz_loadu_epi8(low, line[r] + start);
                if (wide)
                    far[r] = _mm512_maskz_loadu_epi8(high, line[r] + start + 64);
                sum[r] = half;
            }
            for (int k = 0; k < plan->pairs; k++) {
                __m512i weights = _mm512_loadu_si512(plan->weights + 2 * LANES * ((size_t)k * plan->groups + g));
                for (int r = 0; r < ROWS; r++) {
                    __m512i picked = wide ? _mm512_maskz_permutex2var_epi8(even, near[r], pick, far[r])
                                          : _mm512_maskz_permutexvar_epi8(even, pick, near[r]);
                    sum[r] = _mm512_dpwssd_epi32(sum[r], picked, weights);
                }
                pick = _mm512_add_epi8(pick, next);
            }
            __mmask16 kept = (__mmask16)first_bytes(size - g * LANES);
            for (int r = 0; r < ROWS; r++) {
                __m512i value = _mm512_max_epi32(_mm512_sra_epi32(sum[r], shift), zero);
                _mm_mask_storeu_epi8(result[r] + g * LANES, kept, _mm512_cvtusepi32_epi8(value));
            }
        }
    }
}

TARGET static void along_rows_narrow(const uint8_t *from, ptrdiff_t stride, int rows, int width, uint8_t *to, int size,
                                     const Plan *plan, int precision, int channels)
{
    along_rows(from, stride, rows, width, to, size, plan, precision, channels, 0);
}

TARGET static void along_rows_wide(const uint8_t *from, ptrdiff_t stride, int rows, int width, uint8_t *to, int size,
                                   const Plan *plan, int precision, int channels)
{
    along_rows(from, stride, rows, width, to, size, plan, precision, channels, 1);
}

/* Along columns: to rows of `width` bytes. */
TARGET static void along_columns(const uint8_t *from, ptrdiff_t stride, int width, uint8_t *to, ptrdiff_t to_stride,
                                 const Filter *filter)
{
    const __m512i half = _mm512_set1_epi32(1 << (filter->precision - 1)), zero = _mm512_setzero_si512();
    const __m128i shift = _mm_cvtsi32_si128(filter->precision);
    for (int y = 0; y < filter->size; y++) {
        const uint8_t *top = from + filter->first[y] * stride;
        int count = filter->count[y];
        for (int x = 0; x < width; x += 64) {
            __mmask64 kept = first_bytes(width - x);
            __m512i sum[4] = {half, half, half, half};
            for (int k = 0; k < count; k += 2) {
                int32_t both;
                memcpy(&both, filter->weights + (size_t)y * filter->taps + k, sizeof both);
                __m512i weights = _mm512_set1_epi32(both);
                const uint8_t *line = top + k * stride + x;
                __m512i a = _mm512_maskz_loadu_epi8(kept, line);
                __m512i b = k + 1 < count ? _mm512_maskz_loadu_epi8(kept, line + stride) : zero;
                __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
                sum[0] = _mm512_dpwssd_epi32(sum[0], _mm512_unpacklo_epi8(low, zero), weights);
                sum[1] = _mm512_dpwssd_epi32(sum[1], _mm512_unpackhi_epi8(low, zero), weights);
                sum[2] = _mm512_dpwssd_epi32(sum[2], _mm512_unpacklo_epi8(high, zero), weights);
                sum[3] = _mm512_dpwssd_epi32(sum[3], _mm512_unpackhi_epi8(high, zero), weights);
            }
            for (int i = 0; i < 4; i++)
                sum[i] = _mm512_sra_epi32(sum[i], shift);
            __m512i value = _mm512_packus_epi16(_mm512_packs_epi32(sum[0], sum[1]), _mm512_packs_epi32(sum[2], sum[3]));
            _mm512_mask_storeu_epi8(to + y * to_stride + x, kept, value);
        }
    }
}

int mmm_resize_runs_here(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

/* Frames of height x width pixels to frames of to_height x to_width; pixels of a row follow each other, strides are in bytes.

   1, or 0 where nothing was written: the picture shrinks by more than a window holds, or there is no memory. */
int mmm_resize(const uint8_t *from, ptrdiff_t frame_stride, ptrdiff_t stride, int frames, int height, int width, int channels,
               uint8_t *to, ptrdiff_t to_frame_stride, ptrdiff_t to_stride, int to_height, int to_width, int cubic)
{
    int size = to_width * channels, wide = width != to_width, tall = height != to_height;
    size_t need = filter_bytes(width, to_width, cubic) + filter_bytes(height, to_height, cubic) +
                  plan_bytes(width, to_width, channels, cubic) + (size_t)height * size + 64;
    if (need > store.size) {
        free(store.bytes);
        store.size = 0;
        store.bytes = aligned_alloc(64, (need + 63) & ~(size_t)63);
        if (store.bytes == NULL)
            return 0;
        store.size = need;
    }
    store.used = 0;
    Filter rows = {0}, columns = {0};
    Plan plan = {0};
    if (wide) {
        rows = make_filter(width, to_width, cubic);
        if (!make_plan(&plan, &rows, channels))
            return 0;
    }
    if (tall)
        columns = make_filter(height, to_height, cubic);
    uint8_t *between = take((size_t)height * size);
    for (int t = 0; t < frames; t++) {
        const uint8_t *frame = from + t * frame_stride;
        uint8_t *result = to + t * to_frame_stride;
        ptrdiff_t apart = stride;
        if (wide) {
            uint8_t *there = tall ? between : result;
            (plan.wide ? along_rows_wide : along_rows_narrow)(frame, stride, height, width * channels, there, size, &plan,
                                                              rows.precision, channels);
            frame = there;
            apart = size;
        }
        if (tall)
            along_columns(frame, apart, size, result, to_stride, &columns);
        else if (!wide)
            for (int y = 0; y < height; y++)
                memcpy(result + y * to_stride, frame + y * apart, size);
    }
    return 1;
}

#else /* another processor or compiler */

int mmm_resize_runs_here(void)
{
    return 0;
}

int mmm_resize(const uint8_t *from, ptrdiff_t frame_stride, ptrdiff_t stride, int frames, int height, int width, int channels,
               uint8_t *to, ptrdiff_t to_frame_stride, ptrdiff_t to_stride, int to_height, int to_width, int cubic)
{
    return 0;
}

#endif
