# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled matching of predicted and labeled persons, see poise.evaluation.keypoint_ap.

It only compares numbers, so the result equals that of NumPy. Uses typed memoryviews only, so that
building needs no NumPy headers.
"""

ctypedef long long index_t


def match_persons(const double[::1] similarity, const index_t[::1] first_pair, const index_t[::1] image, const index_t[::1] persons,
                  const index_t[::1] first_person, const unsigned char[:, ::1] ignored, const unsigned char[::1] crowd, const double[::1] limits,
                  int[:, :, ::1] person, unsigned char[:, :, ::1] dismissed, unsigned char[::1] taken):
    """Set person (A, T, D) to the match of a prediction, dismissed to 1 if that person is ignored.

    similarity: (P,) OKS of prediction d with the labeled persons of its image, from first_pair[d]
    to first_pair[d + 1]. image: (D,) increasing. persons: (G,) labeled persons by image; those of
    image m start at first_person[m]. ignored (A, G), crowd (G,): by index of the person. limits:
    (T,) minimum OKS. taken: (G,) scratch array.
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
                # ignored persons are matched only if no scored one can be
                for which in range(2):
                    best, least = -1, limits[t]
                    for pair in range(n):
                        g = persons[k + pair]
                        # pycocotools uses the last of equal similarities
                        if ignored[a, g] == which and (not taken[g] or crowd[g]) and similarity[first_pair[d] + pair] >= least:
                            best, least = g, similarity[first_pair[d] + pair]
                    if best >= 0:
                        taken[best] = 1
                        person[a, t, d] = <int>best
                        dismissed[a, t, d] = which
                        break
