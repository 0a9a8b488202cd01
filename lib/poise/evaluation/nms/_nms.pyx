# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled kernels of box and OKS NMS. poise.evaluation.nms checks and sorts their inputs.

They return the same indices as numpy_nms.py. exp of the C library and of NumPy may differ in the
last bit. Where this could change a decision (an OKS within MARGIN of the threshold, decayed scores
that are nearly equal) NumPy decides. This is rare: duplicates and artificial data.

Uses typed memoryviews only, so that building needs no NumPy headers.
"""
from libc.math cimport exp, fabs

ctypedef long long index_t

ctypedef fused real:
    float
    double

# far above the rounding of an OKS (1e-15), far below relevant differences between persons
cdef double MARGIN = 1e-9
# exp(-40) is 4e-18: keypoints farther away change a sum of order 1 by less than MARGIN
cdef double FAR = 40.0


def box_nms(const double[:, ::1] boxes, const index_t[::1] order, double threshold,
            double[:, ::1] work, index_t[::1] kept):
    """Write the remaining box indices to `kept` (N,) and return their number.

    Same operations as in NumPy; +, -, *, / round the same everywhere, so no margin is needed.

    work: (N, 5) scratch array.
    """
    cdef Py_ssize_t n = order.shape[0], count = 0, i, j, last
    cdef double x1, y1, x2, y2, area, w, h, inter, union
    # kept[:count] is final; kept[count:rest] and these rows of `work` (x1, y1, x2, y2, area) remain
    cdef Py_ssize_t rest = n
    for i in range(n):
        j = order[i]
        kept[i] = j
        work[i, 0] = boxes[j, 0]
        work[i, 1] = boxes[j, 1]
        work[i, 2] = boxes[j, 2]
        work[i, 3] = boxes[j, 3]
        work[i, 4] = (boxes[j, 2] - boxes[j, 0] + 1) * (boxes[j, 3] - boxes[j, 1] + 1)
    while count < rest:
        x1, y1, x2, y2, area = work[count, 0], work[count, 1], work[count, 2], work[count, 3], work[count, 4]
        count += 1
        last = count
        for i in range(count, rest):
            w = (x2 if x2 < work[i, 2] else work[i, 2]) - (x1 if x1 > work[i, 0] else work[i, 0]) + 1
            h = (y2 if y2 < work[i, 3] else work[i, 3]) - (y1 if y1 > work[i, 1] else work[i, 1]) + 1
            inter = w * h if w > 0 and h > 0 else 0.0
            union = area + work[i, 4] - inter
            # most pairs do not overlap and need no division, except 0 / 0
            if (inter == 0 and union > 0 and threshold >= 0) or inter / union <= threshold:
                if last != i:
                    kept[last] = kept[i]
                    for j in range(5):
                        work[last, j] = work[i, j]
                last += 1
        rest = last
    return count


cdef inline double similarity(const real[:, :, ::1] keypoints, Py_ssize_t a, Py_ssize_t b, const double[::1] weights,
                              double inverse_area, double threshold, bint visible, double in_vis_thre) noexcept:
    """Return the OKS of two persons, -1 if it is more than MARGIN below `threshold`."""
    cdef Py_ssize_t joints = weights.shape[0], j
    cdef double counted = joints, left, low, total = 0.0, dx, dy, e
    if visible:
        counted = 0
        for j in range(joints):
            counted += keypoints[a, j, 2] > in_vis_thre and keypoints[b, j, 2] > in_vis_thre
        if counted == 0:
            return 0.0
    low = (threshold - MARGIN) * counted
    left = counted
    for j in range(joints):
        if visible and not (keypoints[a, j, 2] > in_vis_thre and keypoints[b, j, 2] > in_vis_thre):
            continue
        dx = <double>keypoints[b, j, 0] - <double>keypoints[a, j, 0]
        dy = <double>keypoints[b, j, 1] - <double>keypoints[a, j, 1]
        e = (dx * dx + dy * dy) * weights[j] * inverse_area
        if e < FAR:
            total += exp(-e)
        # a keypoint adds at most 1, so the loop ends early for distant persons
        left -= 1
        if total + left < low:
            return -1.0
    return total / counted


cdef inline double inverse_mean_area(double area_a, double area_b) noexcept:
    return 1.0 / ((area_a + area_b) / 2 + 2.220446049250313e-16)


def oks_nms_by_image(const real[:, :, ::1] keypoints, const double[::1] areas, const index_t[::1] order,
                     const index_t[::1] offsets, double threshold, const double[::1] weights, in_vis_thre,
                     index_t[::1] kept, unsigned char[::1] suppressed, exact):
    """Write the remaining person indices by image to `kept` (N,) and return their number.

    weights: (K,) 1 / (2 (2 sigma)^2). suppressed: (N,) zeros. exact(a, b): OKS of two persons by NumPy.
    """
    cdef Py_ssize_t m, i, j, a, b, count = 0
    cdef bint visible = in_vis_thre is not None
    cdef double vis = in_vis_thre if visible else 0.0, oks
    for m in range(offsets.shape[0] - 1):
        for i in range(offsets[m], offsets[m + 1]):
            if suppressed[i]:
                continue
            a = order[i]
            kept[count] = a
            count += 1
            for j in range(i + 1, offsets[m + 1]):
                if suppressed[j]:
                    continue
                b = order[j]
                oks = similarity(keypoints, a, b, weights, inverse_mean_area(areas[a], areas[b]), threshold, visible,
                                 vis)
                if fabs(oks - threshold) <= MARGIN:
                    oks = exact(a, b)
                suppressed[j] = oks > threshold
    return count


def soft_oks_nms_by_image(const real[:, :, ::1] keypoints, const double[::1] scores, const double[::1] areas,
                          const index_t[::1] order, const index_t[::1] offsets, double threshold,
                          const double[::1] weights, in_vis_thre, Py_ssize_t max_dets, index_t[::1] kept,
                          double[::1] score, index_t[::1] person, double[::1] sorted_score, index_t[::1] place,
                          descending, exact):
    """Write the remaining person indices by image to `kept` (N,) and return their number.

    score, person, sorted_score, place: scratch, as long as the largest image. descending(scores): NumPy's order, for
    ties. exact(m): the kept persons of image m by NumPy.
    """
    cdef Py_ssize_t m, k, n, size, found, first = 0
    cdef bint visible = in_vis_thre is not None
    cdef double vis = in_vis_thre if visible else 0.0
    # an error of 1e-15 in the OKS is one of 2e-15 / threshold in the decayed score
    cdef double gap = MARGIN * (1.0 / threshold if threshold < 1 else 1.0)
    for m in range(offsets.shape[0] - 1):
        n = offsets[m + 1] - offsets[m]
        size = n if n < max_dets else max_dets
        for k in range(n):
            person[k] = order[offsets[m] + k]
            score[k] = scores[person[k]]
        found = soft_image(keypoints, areas, threshold, gap, weights, visible, vis, size, n, kept[first:first + size],
                           score, person, sorted_score, place, descending)
        if found < 0:
            for k, a in enumerate(exact(m)):
                kept[first + k] = a
        first += size
    return first


cdef Py_ssize_t soft_image(const real[:, :, ::1] keypoints, const double[::1] areas, double threshold, double gap,
                           const double[::1] weights, bint visible, double vis, Py_ssize_t size, Py_ssize_t n,
                           index_t[::1] kept, double[::1] score, index_t[::1] person, double[::1] sorted_score,
                           index_t[::1] place, descending) except -2:
    """Fill `kept` (size,) with persons of one image, given best first; -1 if NumPy must decide."""
    cdef Py_ssize_t count, i, j, a
    cdef double oks, decay, s
    cdef bint tied
    for count in range(size):
        a = person[0]
        kept[count] = a
        n -= 1
        for i in range(n):
            oks = similarity(keypoints, a, person[i + 1], weights, inverse_mean_area(areas[a], areas[person[i + 1]]),
                             -1.0, visible, vis)
            decay = oks * oks / threshold
            if decay > 700:  # exp returns subnormal numbers, where libraries differ
                return -1
            s = score[i + 1] * exp(-decay)
            if 0 < fabs(s) < 1e-290:
                return -1
            # insertion sort, largest first: decayed scores are nearly in order already
            j = i
            while j > 0 and sorted_score[j - 1] < s:
                sorted_score[j] = sorted_score[j - 1]
                place[j] = place[j - 1]
                j -= 1
            sorted_score[j] = s
            place[j] = i
            score[i] = s
        tied = False
        for i in range(n - 1):
            if sorted_score[i] == 0 and sorted_score[i + 1] == 0:
                tied = True
            elif sorted_score[i] - sorted_score[i + 1] <= gap * fabs(sorted_score[i]):
                return -1
        if tied:  # zeros are exact, but their order is that of NumPy
            for i, j in enumerate(descending(score[:n])):
                place[i] = j
                sorted_score[i] = score[j]
        # `person` starts with the remaining one; reorder the others by `place`
        for i in range(n):
            score[i] = sorted_score[i]
            place[i] = person[place[i] + 1]
        for i in range(n):
            person[i] = place[i]
    return size
