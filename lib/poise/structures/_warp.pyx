# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR) for 8-bit color images, the border black: OpenCV 5's bits, several times as fast.

What OpenCV 5 computes where the processor has AVX2 and FMA: the matrix is inverted in doubles and rounded to floats; a pixel's place is one
fused multiply-add from its row's start, in the last columns, fewer than 16, rounded in another order; its four neighbors, black outside of
the image, are interpolated in x, then in y, by fused multiply-adds; the result is rounded to even. OpenCV gathers the neighbors byte by
byte; here two loads hold all four, and eight floats hold two pixels. A crop that is not turned takes a shorter way to the same bits. Other
versions of OpenCV and other processors compute otherwise: poise.structures.warp looks before it uses this.
"""

cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GNUC__)
    #include <immintrin.h>
    #include <math.h>
    #include <stdint.h>
    #include <string.h>

    #define POISE_WIDE __attribute__((target("avx2,fma")))
    #define POISE_INLINE POISE_WIDE __attribute__((always_inline)) static inline

    /* a wider crop is computed as if it were turned */
    #define POISE_STRAIGHT_COLUMNS 1024

    typedef struct { __m256i left, right, packed; } poise_order;
    typedef struct { const uint8_t *pixels; int width, height; intptr_t step, bytes; } poise_image;

    static int poise_has_wide(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }

    /* two pixels, one in each half: 32-bit channels between their left and right neighbors. 16 bytes are read at both addresses */
    POISE_INLINE __m256 poise_across(const uint8_t *one, const uint8_t *two, poise_order order, __m256 share) {
        __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)one)), _mm_loadu_si128((const __m128i *)two), 1);
        __m256i left = _mm256_shuffle_epi8(both, order.left), right = _mm256_shuffle_epi8(both, order.right);
        return _mm256_fmadd_ps(share, _mm256_cvtepi32_ps(_mm256_sub_epi32(right, left)), _mm256_cvtepi32_ps(left));
    }

    POISE_INLINE __m256i poise_down(__m256 top, __m256 bottom, __m256 share) {
        return _mm256_cvtps_epi32(_mm256_fmadd_ps(share, _mm256_sub_ps(bottom, top), top));
    }

    /* eight pixels (pairs 0 4, 1 5, 2 6, 3 7) to `out`, or the first `count` of them */
    POISE_INLINE void poise_store(uint8_t *out, int count, poise_order order, __m256i a, __m256i b, __m256i c, __m256i d) {
        __m256i bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)), order.packed);
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7));
        if (count >= 8) {
            _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(bytes));
            _mm_storel_epi64((__m128i *)(out + 16), _mm256_extracti128_si256(bytes, 1));
        } else {
            uint8_t all[32];
            _mm256_storeu_si256((__m256i *)all, bytes);
            memcpy(out, all, (size_t)count * 3);
        }
    }

    /* eight pixels whose upper left neighbors begin at base + at[i], `step` bytes above the lower ones */
    POISE_INLINE void poise_eight(const uint8_t *base, const int32_t *at, intptr_t step, poise_order order, __m256 right, __m256 down,
                                  uint8_t *out, int count) {
        __m256i pair[4];
        #define POISE_PAIR(n) { \
            __m256 share = _mm256_permute_ps(right, n * 0x55); \
            pair[n] = poise_down(poise_across(base + at[n], base + at[n + 4], order, share), \
                                 poise_across(base + step + at[n], base + step + at[n + 4], order, share), _mm256_permute_ps(down, n * 0x55)); }
        POISE_PAIR(0) POISE_PAIR(1) POISE_PAIR(2) POISE_PAIR(3)
        #undef POISE_PAIR
        poise_store(out, count, order, pair[0], pair[1], pair[2], pair[3]);
    }

    /* the neighbors of eight places that are in the image, the others black: 16 bytes for each upper pair, 16 for each lower one */
    POISE_WIDE static void poise_gather(const poise_image *image, const int32_t *columns, const int32_t *rows, uint8_t *block) {
        int i, below, right;
        memset(block, 0, 256);
        for (i = 0; i < 8; i++)
            for (below = 0; below < 2; below++)
                for (right = 0; right < 2; right++) {
                    /* as unsigned numbers: -1 is outside of the image, and so are the places that no 32-bit number holds */
                    uint32_t r = (uint32_t)rows[i] + below, c = (uint32_t)columns[i] + right;
                    if (r < (uint32_t)image->height && c < (uint32_t)image->width)
                        memcpy(block + i * 32 + below * 16 + right * 3, image->pixels + (intptr_t)r * image->step + (intptr_t)c * 3, 3);
                }
    }

    static const int32_t poise_block_at[8] = {0, 32, 64, 96, 128, 160, 192, 224};

    /* Where a crop is not turned, a row of the image is interpolated across once for all the rows of the crop that need it */
    typedef struct {
        float share[POISE_STRAIGHT_COLUMNS];
        int32_t column[POISE_STRAIGHT_COLUMNS], at[POISE_STRAIGHT_COLUMNS];
        intptr_t reach[POISE_STRAIGHT_COLUMNS / 8];     /* from a row's start to the end of what eight columns read, bytes; 0: some are outside of the image */
        float line[2][POISE_STRAIGHT_COLUMNS * 4];          /* of the last even and the last odd row: pairs of pixels, as poise_store has them */
        int row[2];
    } poise_straight;

    POISE_WIDE static const float *poise_line(poise_straight *s, const poise_image *image, int row, int columns, poise_order order) {
        static const float black[POISE_STRAIGHT_COLUMNS * 4];
        const uint8_t *pixels = image->pixels + (intptr_t)row * image->step;
        float *line = s->line[row & 1];
        int x;
        if (row < 0 || row >= image->height) return black;
        if (s->row[row & 1] == row) return line;
        s->row[row & 1] = row;
        for (x = 0; x < columns; x += 8) {
            __m256 share = _mm256_loadu_ps(s->share + x);
            const uint8_t *base = pixels;
            const int32_t *at = s->at + x;
            uint8_t block[256];
            if (s->reach[x / 8] == 0 || pixels + s->reach[x / 8] > image->pixels + image->bytes) {
                int32_t rows[8];
                int i;
                for (i = 0; i < 8; i++) rows[i] = row;
                poise_gather(image, s->column + x, rows, block);
                base = block;
                at = poise_block_at;
            }
            #define POISE_PAIR(n) \
                _mm256_storeu_ps(line + x * 4 + n * 8, poise_across(base + at[n], base + at[n + 4], order, _mm256_permute_ps(share, n * 0x55)));
            POISE_PAIR(0) POISE_PAIR(1) POISE_PAIR(2) POISE_PAIR(3)
            #undef POISE_PAIR
        }
        return line;
    }

    POISE_WIDE static void poise_straight_begin(poise_straight *s, const poise_image *image, int columns, float along, float start) {
        int x, i;
        s->row[0] = s->row[1] = -1;
        for (x = 0; x < columns; x += 8) {
            __m256 place = _mm256_add_ps(_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_ps((float)x));
            __m256i column;
            intptr_t most = 0;
            place = _mm256_fmadd_ps(_mm256_set1_ps(along), place, _mm256_set1_ps(start));
            column = _mm256_cvttps_epi32(_mm256_floor_ps(place));
            _mm256_storeu_ps(s->share + x, _mm256_sub_ps(place, _mm256_cvtepi32_ps(column)));
            _mm256_storeu_si256((__m256i *)(s->column + x), column);
            _mm256_storeu_si256((__m256i *)(s->at + x), _mm256_mullo_epi32(column, _mm256_set1_epi32(3)));
            for (i = x; i < x + 8; i++) {
                if (s->column[i] < 0 || s->column[i] >= image->width - 1) most = INTPTR_MAX;
                else if (most < s->at[i] + 16) most = s->at[i] + 16;
            }
            s->reach[x / 8] = most == INTPTR_MAX ? 0 : most;
        }
    }

    /* out: rows x columns pixels without gaps */
    POISE_WIDE static void poise_warp(const uint8_t *pixels, int width, int height, uint8_t *out, int columns, int rows, const double *matrix, int rgb) {
        const poise_image image = {pixels, width, height, (intptr_t)width * 3, (intptr_t)width * height * 3};
        double scale = matrix[0] * matrix[4] - matrix[1] * matrix[3], inverse[6];
        float m[6];
        int32_t at[8], column_of[8], row_of[8];
        uint8_t block[256];
        int i, x, y, straight, regular = columns / 16 * 16;
        const __m256i last_column = _mm256_set1_epi32(width - 1), last_row = _mm256_set1_epi32(height - 1), three = _mm256_set1_epi32(3);
        /* from there on, 16 bytes one row below a place would end behind the image */
        const __m256i end = _mm256_set1_epi32((int32_t)(image.bytes - image.step - 15 > 0 ? image.bytes - image.step - 15 : 0));
        const __m256i row_bytes = _mm256_set1_epi32((int32_t)image.step), none = _mm256_set1_epi32(-1);
        const __m256 lanes = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
        poise_straight s;
        poise_order order;
        /* a byte of the image and three zeros for each channel */
        order.left = rgb ? _mm256_setr_epi32(-254, -255, -256, -1, -254, -255, -256, -1) : _mm256_setr_epi32(-256, -255, -254, -1, -256, -255, -254, -1);
        order.right = _mm256_add_epi8(order.left, _mm256_set1_epi32(3));    /* what this puts into the fourth channels is dropped in the end */
        order.packed = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));

        scale = scale != 0 ? 1 / scale : 0;
        inverse[0] = matrix[4] * scale;
        inverse[1] = matrix[1] * -scale;
        inverse[3] = matrix[3] * -scale;
        inverse[4] = matrix[0] * scale;
        inverse[2] = -inverse[0] * matrix[2] - inverse[1] * matrix[5];
        inverse[5] = -inverse[3] * matrix[2] - inverse[4] * matrix[5];
        for (i = 0; i < 6; i++) m[i] = (float)inverse[i];

        /* rounding grows with its argument: where the last row moves nothing, none does */
        straight = regular <= POISE_STRAIGHT_COLUMNS && (float)(rows - 1) * m[1] + m[2] == m[2];
        if (straight) poise_straight_begin(&s, &image, regular, m[0], m[2]);
        for (y = 0; y < rows; y++, out += columns * 3) {
            const __m256 m0 = _mm256_set1_ps(m[0]), m3 = _mm256_set1_ps(m[3]);
            float moved_x = (float)y * m[1], moved_y = (float)y * m[4], start_y = moved_y + m[5];
            x = 0;
            if (straight && __builtin_fmaf(m[3], (float)(columns - 1), start_y) == start_y) {
                __m256 place = _mm256_set1_ps(start_y);
                __m256i row = _mm256_cvttps_epi32(_mm256_floor_ps(place));
                __m256 down = _mm256_sub_ps(place, _mm256_cvtepi32_ps(row));
                int top = _mm_cvtsi128_si32(_mm256_castsi256_si128(row));
                if (top < -1 || top >= height) memset(out, 0, (size_t)regular * 3);
                else {
                    const float *a = poise_line(&s, &image, top, regular, order), *b = poise_line(&s, &image, top + 1, regular, order);
                    for (; x < regular; x += 8, a += 32, b += 32)
                        poise_store(out + x * 3, 8, order,
                                    poise_down(_mm256_loadu_ps(a), _mm256_loadu_ps(b), down),
                                    poise_down(_mm256_loadu_ps(a + 8), _mm256_loadu_ps(b + 8), down),
                                    poise_down(_mm256_loadu_ps(a + 16), _mm256_loadu_ps(b + 16), down),
                                    poise_down(_mm256_loadu_ps(a + 24), _mm256_loadu_ps(b + 24), down));
                }
                x = regular;
            }
            for (; x < columns; x += 8) {
                __m256 along = _mm256_add_ps(lanes, _mm256_set1_ps((float)x)), source_x, source_y;
                __m256i column, row, place, inside;
                if (x < regular) {
                    source_x = _mm256_fmadd_ps(m0, along, _mm256_set1_ps(moved_x + m[2]));
                    source_y = _mm256_fmadd_ps(m3, along, _mm256_set1_ps(start_y));
                } else {
                    source_x = _mm256_add_ps(_mm256_fmadd_ps(m0, along, _mm256_set1_ps(moved_x)), _mm256_set1_ps(m[2]));
                    source_y = _mm256_add_ps(_mm256_fmadd_ps(m3, along, _mm256_set1_ps(moved_y)), _mm256_set1_ps(m[5]));
                }
                column = _mm256_cvttps_epi32(_mm256_floor_ps(source_x));
                row = _mm256_cvttps_epi32(_mm256_floor_ps(source_y));
                source_x = _mm256_sub_ps(source_x, _mm256_cvtepi32_ps(column));
                source_y = _mm256_sub_ps(source_y, _mm256_cvtepi32_ps(row));
                place = _mm256_add_epi32(_mm256_mullo_epi32(row, row_bytes), _mm256_mullo_epi32(column, three));
                inside = _mm256_and_si256(_mm256_cmpgt_epi32(last_column, column), _mm256_cmpgt_epi32(last_row, row));
                inside = _mm256_andnot_si256(_mm256_or_si256(column, row), _mm256_and_si256(inside, _mm256_cmpgt_epi32(end, place)));
                if (_mm256_movemask_ps(_mm256_castsi256_ps(inside)) == 255) {
                    _mm256_storeu_si256((__m256i *)at, place);
                    poise_eight(pixels, at, image.step, order, source_x, source_y, out + x * 3, columns - x);
                    continue;
                }
                /* above -2 and below the image's width and height: one of the four neighbors is in the image */
                inside = _mm256_and_si256(
                    _mm256_and_si256(_mm256_cmpgt_epi32(column, _mm256_add_epi32(none, none)), _mm256_cmpgt_epi32(row, _mm256_add_epi32(none, none))),
                    _mm256_and_si256(_mm256_cmpgt_epi32(last_column, _mm256_add_epi32(column, none)),
                                     _mm256_cmpgt_epi32(last_row, _mm256_add_epi32(row, none))));
                if (_mm256_movemask_ps(_mm256_castsi256_ps(inside)) == 0) {
                    memset(out + x * 3, 0, (size_t)(columns - x >= 8 ? 8 : columns - x) * 3);
                    continue;
                }
                _mm256_storeu_si256((__m256i *)column_of, column);
                _mm256_storeu_si256((__m256i *)row_of, row);
                poise_gather(&image, column_of, row_of, block);
                poise_eight(block, poise_block_at, 16, order, source_x, source_y, out + x * 3, columns - x);
            }
        }
    }
    #else
    static int poise_has_wide(void) { return 0; }
    static void poise_warp(const unsigned char *pixels, int width, int height, unsigned char *out, int columns, int rows, const double *matrix, int rgb) {}
    #endif
    """
    int poise_has_wide()
    void poise_warp(const unsigned char *pixels, int width, int height, unsigned char *out, int columns, int rows, const double *matrix, int rgb) nogil


def usable():
    """Whether the processor can do it."""
    return bool(poise_has_wide())


def warp(const unsigned char[:, :, ::1] image, const double[:, ::1] matrix, unsigned char[:, :, ::1] out, bint rgb):
    """Fill `out` (h, w, 3) with the image (H, W, 3), warped by the (2, 3) matrix from image to out; rgb: with the channels in reverse.

    The caller has asked `usable`. Raises ValueError for other shapes, and for sides above 32766 and images of 2 GiB: 32-bit numbers must suffice.
    """
    cdef Py_ssize_t most = max(image.shape[0], image.shape[1], out.shape[0], out.shape[1])
    cdef Py_ssize_t least = min(image.shape[0], image.shape[1], out.shape[0], out.shape[1])
    if not (image.shape[2] == out.shape[2] == 3 and matrix.shape[0] == 2 and matrix.shape[1] == 3 and least > 0 and most < 32767
            and image.shape[0] * image.shape[1] * 3 < 2147483647):
        raise ValueError("needs images of 3 channels, neither empty nor too large for 32-bit numbers, and a matrix (2, 3)")
    with nogil:
        poise_warp(&image[0, 0, 0], <int>image.shape[1], <int>image.shape[0], &out[0, 0, 0], <int>out.shape[1], <int>out.shape[0],
                   &matrix[0, 0], rgb)
