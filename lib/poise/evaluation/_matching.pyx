# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled matching of predicted with labelled persons; poise.evaluation.keypoint_ap prepares the arrays and has the NumPy twin.

Only comparisons are made here, no arithmetic, so the result equals the twin's in every bit. Typed memoryviews only, so no NumPy
headers are needed to build.
"""

ctypedef long long index_t


def match_persons(const double[::1] similarity, const index_t[::1] first_pair, const index_t[::1] image, const index_t[::1] persons,
                  const index_t[::1] first_person, const unsigned char[:, ::1] ignored, const unsigned char[::1] crowd, const double[::1] limits,
                  int[:, :, ::1] person, unsigned char[:, :, ::1] dismissed, unsigned char[::1] taken):
    """Fill person (A, T, D) with the labelled person that a prediction has found, dismissed with 1 where that person does not count.

    similarity (P,): of prediction d with the labelled persons of its image, from first_pair[d] to first_pair[d + 1]. image (D,): rising.
    persons (G,): labelled persons by image; those of image m begin at first_person[m]. ignored (A, G), crowd (G,): of a person's own
    number. limits (T,): the least OKS. taken (G,): room to work in.
    """
    cdef Py_ssize_t a, t, d, n, k, g, best, which, count = image.shape[0]
    cdef index_t pair, last
    cdef double least
    for a in range(ignored.shape[0]):
        for t in range(limits.shape[0]):
            last = -1
            for d in range(count):
                n = first_pair[d + 1] - first_pair[d]
                if n == 0:
                    continue
                k = first_person[image[d]]
                if image[d] != last:
                    last = image[d]
                    for best in range(n):
                        taken[persons[k + best]] = 0
                # persons that count come first; those that do not are taken only where none of them fits
                for which in range(2):
                    best, least = -1, limits[t]
                    for pair in range(n):
                        g = persons[k + pair]
                        # of equal similarities pycocotools takes the last
                        if ignored[a, g] == which and (not taken[g] or crowd[g]) and similarity[first_pair[d] + pair] >= least:
                            best, least = g, similarity[first_pair[d] + pair]
                    if best >= 0:
                        taken[best] = 1
                        person[a, t, d] = <int>best
                        dismissed[a, t, d] = which
                        break
