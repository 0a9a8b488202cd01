# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The flip test's mean in one pass over the memory; poise.codecs.flip has the NumPy twin, whose results are the same to the bit."""


cdef void merge_row(const float *one, const float *other, float *out, Py_ssize_t width, bint shift) noexcept nogil:
    """out = (one + other backwards) / 2, the second moved one cell to the right by `shift`, its first cell then unmoved."""
    cdef Py_ssize_t x
    if shift:
        out[0] = (one[0] + other[width - 1]) * <float>0.5
        for x in range(1, width):
            out[x] = (one[x] + other[width - x]) * <float>0.5
    else:
        for x in range(width):
            out[x] = (one[x] + other[width - 1 - x]) * <float>0.5


def merge(const float[:, :, :, ::1] heatmaps, const float[:, :, :, ::1] mirrored, const long long[::1] order, bint shift, float[:, :, :, ::1] out):
    """Fill out (B, J, h, w) with the mean of heatmaps and of the mirrored images' maps, flipped back; order (J,): see poise.structures.skeleton."""
    cdef Py_ssize_t b, j, y, width = heatmaps.shape[3]
    if width == 0:
        return
    with nogil:
        for b in range(heatmaps.shape[0]):
            for j in range(heatmaps.shape[1]):
                for y in range(heatmaps.shape[2]):
                    merge_row(&heatmaps[b, j, y, 0], &mirrored[b, order[j], y, 0], &out[b, j, y, 0], width, shift)
