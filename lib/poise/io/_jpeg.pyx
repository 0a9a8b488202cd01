# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The pixels of a region of a JPEG, by libjpeg-turbo, whose jpeg_crop_scanline and jpeg_skip_scanlines leave out the rest.

A person is a third of a picture or less; Huffman decoding cannot be left out, the inverse DCT, upsampling and colors can.
The settings are those of OpenCV (accurate DCT, smooth upsampling), so the pixels are OpenCV's to the bit; poise.io.decoding
has the files that are not of the usual kind, and those with a fault, decoded by OpenCV.
"""

cdef extern from *:
    """
    #include <stdio.h>
    #include <setjmp.h>
    #include <jpeglib.h>

    #if !defined(LIBJPEG_TURBO_VERSION) || !defined(JCS_EXTENSIONS)
    #error "libjpeg-turbo 1.5 or newer is needed"
    #endif

    typedef struct {
        struct jpeg_error_mgr base;
        jmp_buf fault;
    } poise_errors;

    static void poise_fault(j_common_ptr info) { longjmp(((poise_errors *)info->err)->fault, 1); }
    static void poise_silent(j_common_ptr info) { (void)info; }

    static void poise_begin(struct jpeg_decompress_struct *info, poise_errors *errors) {
        info->err = jpeg_std_error(&errors->base);
        errors->base.error_exit = poise_fault;
        errors->base.output_message = poise_silent;
    }

    /* the kinds that every version decodes alike: baseline, one scan, 4:4:4, 4:2:2, 4:2:0 or gray */
    static int poise_is_usual(struct jpeg_decompress_struct *info) {
        int h, v;
        if (info->data_precision != 8 || info->progressive_mode || info->arith_code || jpeg_has_multiple_scans(info)) return 0;
        if (info->num_components == 1) return info->jpeg_color_space == JCS_GRAYSCALE;
        if (info->num_components != 3 || info->jpeg_color_space != JCS_YCbCr) return 0;
        h = info->comp_info[0].h_samp_factor;
        v = info->comp_info[0].v_samp_factor;
        if (!((h == 1 && v == 1) || (h == 2 && v == 1) || (h == 2 && v == 2))) return 0;
        return info->comp_info[1].h_samp_factor == 1 && info->comp_info[1].v_samp_factor == 1
            && info->comp_info[2].h_samp_factor == 1 && info->comp_info[2].v_samp_factor == 1;
    }

    static int poise_size(const unsigned char *data, unsigned long length, int *width, int *height) {
        struct jpeg_decompress_struct info;
        poise_errors errors;
        int usual;
        poise_begin(&info, &errors);
        if (setjmp(errors.fault)) {
            jpeg_destroy_decompress(&info);
            return 0;
        }
        jpeg_create_decompress(&info);
        jpeg_mem_src(&info, data, length);
        jpeg_read_header(&info, TRUE);
        *width = (int)info.image_width;
        *height = (int)info.image_height;
        usual = poise_is_usual(&info) && errors.base.num_warnings == 0;
        jpeg_destroy_decompress(&info);
        return usual;
    }

    /* out: height x width x 3; of it the columns left to right and the rows top to bottom, and some around them, are written */
    static int poise_region(const unsigned char *data, unsigned long length, unsigned char *out, int width, int height,
                            int left, int top, int right, int bottom) {
        struct jpeg_decompress_struct info;
        poise_errors errors;
        JDIMENSION first, columns;
        int good;
        poise_begin(&info, &errors);
        if (setjmp(errors.fault)) {
            jpeg_destroy_decompress(&info);
            return 0;
        }
        jpeg_create_decompress(&info);
        jpeg_mem_src(&info, data, length);
        jpeg_read_header(&info, TRUE);
        info.out_color_space = JCS_EXT_BGR;
        info.dct_method = JDCT_ISLOW;
        info.do_fancy_upsampling = TRUE;
        if ((int)info.image_width != width || (int)info.image_height != height) {
            jpeg_destroy_decompress(&info);
            return 0;
        }
        jpeg_start_decompress(&info);
        /* smooth upsampling looks at the neighbor: the columns at a border of what is decoded would be others */
        if (info.max_h_samp_factor > 1) {
            left = left > 16 ? left - 16 : 0;
            right = right + 16 < width ? right + 16 : width;
        }
        first = (JDIMENSION)left;
        columns = (JDIMENSION)(right - left);
        if (left > 0 || right < width) jpeg_crop_scanline(&info, &first, &columns);
        if (top > 0) jpeg_skip_scanlines(&info, (JDIMENSION)top);
        while ((int)info.output_scanline < bottom) {
            JSAMPROW rows[4];
            int i, count = bottom - (int)info.output_scanline;
            if (count > 4) count = 4;
            for (i = 0; i < count; i++)
                rows[i] = out + ((size_t)info.output_scanline + i) * width * 3 + (size_t)first * 3;
            jpeg_read_scanlines(&info, rows, (JDIMENSION)count);
        }
        good = errors.base.num_warnings == 0;
        jpeg_destroy_decompress(&info);
        return good;
    }
    """
    int poise_size(const unsigned char *data, unsigned long length, int *width, int *height) nogil
    int poise_region(const unsigned char *data, unsigned long length, unsigned char *out, int width, int height,
                     int left, int top, int right, int bottom) nogil


def size(const unsigned char[::1] data):
    """(width, height) of a JPEG of the usual kind; None for others and for what is no JPEG."""
    cdef int width = 0, height = 0, usual = 0
    if data.shape[0]:
        with nogil:
            usual = poise_size(&data[0], data.shape[0], &width, &height)
    return (width, height) if usual else None


def decode_region(const unsigned char[::1] data, unsigned char[:, :, ::1] image, int left, int top, int right, int bottom):
    """Fill columns left to right and rows top to bottom (ends not included) of `image` (H, W, 3), BGR; the rest of it may hold anything.

    data: a JPEG that `size` gave the size of `image` for. False where its data has a fault.
    """
    cdef int good, width = image.shape[1], height = image.shape[0]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height and image.shape[2] == 3 and data.shape[0]):
        raise ValueError(f"no region of {width} x {height} pixels: {left}, {top}, {right}, {bottom}")
    with nogil:
        good = poise_region(&data[0], data.shape[0], &image[0, 0, 0], width, height, left, top, right, bottom)
    return bool(good)
