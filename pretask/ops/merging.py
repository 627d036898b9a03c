"""The merging loop of `agglomerative.agglomerate`, compiled by numba; imported only when clusters are merged.

Each cluster's row is a linked list of its neighboring clusters, with S_ij (`forward`) and S_ji (`backward`). A merge joins two
lists and, in the rows of their neighbors, turns two entries into one, so no list grows and no memory is allocated.
"""

import numpy as np
from numba import njit


def compiled(function):
    """Compile by numba, with a cache on disk if a folder is writable."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # neither the folder of this file nor the user's cache is writable
        return njit(function)


@compiled
def join_rows(a, b, first, after, other, forward, backward, at):
    """Move row b into row a; entries of the same cluster are added. `at` is scratch, -1 everywhere before and after."""
    before, e = -1, first[a]
    while e >= 0:
        if other[e] == b:
            if before < 0:
                first[a] = after[e]
            else:
                after[before] = after[e]
        else:
            at[other[e]] = e
            before = e
        e = after[e]
    e = first[b]
    while e >= 0:
        following, c = after[e], other[e]
        if c != a and at[c] >= 0:
            forward[at[c]] += forward[e]
            backward[at[c]] += backward[e]
        elif c != a:
            after[e] = first[a]
            first[a] = e
        e = following
    first[b] = -1
    e = first[a]
    while e >= 0:
        at[other[e]] = -1
        e = after[e]


@compiled
def add_cross_terms(
    a, b, graph, member, following, owner, first, after, other, backward, at, into, out, touched
):
    """Add to S(c, a ∪ b) the terms missing in S(c, a) + S(c, b): samples of c with links to a and b in opposite directions.

    Iterates over the links of b, the smaller cluster; row a is already joined. Scratch is 0 or -1 before and after.
    """
    ptr, near, to, fro = graph
    count, m = 0, member[b]
    while m >= 0:
        for e in range(ptr[m], ptr[m + 1]):
            v = near[e]
            if owner[v] == a or owner[v] == b:
                continue
            if into[v] == 0 and out[v] == 0:
                touched[count] = v
                count += 1
            into[v] += to[e]
            out[v] += fro[e]
        m = following[m]
    e = first[a]
    while e >= 0:
        at[other[e]] = e
        e = after[e]
    for i in range(count):
        v = touched[i]
        from_a, to_a = 0.0, 0.0
        for e in range(ptr[v], ptr[v + 1]):
            if owner[near[e]] == a:
                to_a += to[e]
                from_a += fro[e]
        extra = from_a * out[v] + into[v] * to_a
        if extra > 0:
            backward[at[owner[v]]] += extra
        into[v], out[v] = 0, 0
    e = first[a]
    while e >= 0:
        at[other[e]] = -1
        e = after[e]


@compiled
def replace_entries(c, a, b, forward_a, backward_a, first, after, other, forward, backward):
    """Replace the entries of a and b in row c by one entry of a."""
    before, e, found = -1, first[c], False
    while e >= 0:
        if other[e] == a or other[e] == b:
            if found:
                after[before] = after[e]
                e = after[e]
                continue
            found = True
            other[e], forward[e], backward[e] = a, backward_a, forward_a
        before = e
        e = after[e]


@compiled
def best_merge(c, first, after, other, forward, backward, size, weight, best):
    """Score of the best merge of c, and the cluster to merge it with. `best` (K_c,) is scratch; missing neighbors have affinity 0."""
    best[:] = 0.0
    match, e = -1, first[c]
    while e >= 0:
        j = other[e]
        affinity = forward[e] / (size[j] * size[j]) + backward[e] / (size[c] * size[c])
        if affinity > best[0] or (affinity == best[0] and affinity > 0 and j < match):
            match = j
        k = len(best) - 1
        if affinity > best[k]:
            while k > 0 and best[k - 1] < affinity:
                best[k] = best[k - 1]
                k -= 1
            best[k] = affinity
        e = after[e]
    score = best[0]
    if len(best) > 1:
        for k in range(1, len(best)):
            score += weight * (best[0] - best[k]) / (len(best) - 1)
    return score, match


@compiled
def nearest_mean(a, alive, total, size):
    """The other cluster with the mean nearest to that of a."""
    found, least = -1, np.inf
    mean = total[a] / size[a]
    for c in range(len(alive)):
        if c == a or not alive[c]:
            continue
        distance = 0.0
        for d in range(total.shape[1]):
            gap = total[c, d] / size[c] - mean[d]
            distance += gap * gap
        if distance < least:
            found, least = c, distance
    return found


@compiled
def choose_merge(alive, score, match, total, size, isolated_first, final_clusters, min_size):
    """The two clusters to merge. With `isolated_first`, a cluster without affinity is merged first, with the nearest mean;
    otherwise the smallest is merged first if at most `final_clusters` have `min_size` or more samples."""
    best, isolated, tiny, large = -1, -1, -1, 0
    for c in range(len(alive)):
        if not alive[c]:
            continue
        if size[c] >= min_size:
            large += 1
        elif tiny < 0 or size[c] < size[tiny]:
            tiny = c
        if match[c] < 0:
            if isolated < 0 or size[c] < size[isolated]:
                isolated = c
        elif best < 0 or score[c] > score[best]:
            best = c
    if isolated >= 0 and (isolated_first or best < 0):
        return isolated, nearest_mean(isolated, alive, total, size)
    if not isolated_first and tiny >= 0 and large <= final_clusters:
        return tiny, match[tiny] if match[tiny] >= 0 else nearest_mean(tiny, alive, total, size)
    return best, match[best]


@compiled
def merge(
    ptr, other, forward, backward, graph, owner, total, clusters, isolated_first, neighbor_clusters, weight, exact,
    final_clusters, min_size,
):  # fmt: skip
    """Merge until `clusters` are left. Rows in CSR order; owner (N,) is overwritten by labels with gaps."""
    n, count = len(owner), len(ptr) - 1
    first, after = np.full(count, -1), np.empty(len(other), np.int64)
    size, member, last = np.zeros(count), np.full(count, -1), np.full(count, -1)
    following, at = np.full(n, -1), np.full(count, -1)
    into, out, touched = np.zeros(n), np.zeros(n), np.empty(n, np.int64)
    alive, score, match = np.ones(count, np.bool_), np.zeros(count), np.full(count, -1)
    for c in range(count):
        if ptr[c + 1] > ptr[c]:
            first[c] = ptr[c]
        for e in range(ptr[c], ptr[c + 1]):
            after[e] = e + 1 if e + 1 < ptr[c + 1] else -1
    for m in range(n):
        c = owner[m]
        if member[c] < 0:
            member[c] = m
        else:
            following[last[c]] = m
        last[c] = m
        size[c] += 1

    best = np.zeros(neighbor_clusters)
    for c in range(count):
        score[c], match[c] = best_merge(c, first, after, other, forward, backward, size, weight, best)
    left = count
    while left > clusters:
        a, b = choose_merge(alive, score, match, total, size, left > isolated_first, final_clusters, min_size)
        if size[b] > size[a] or (size[b] == size[a] and b < a):
            a, b = b, a  # b is the smaller one
        join_rows(a, b, first, after, other, forward, backward, at)
        if exact:
            add_cross_terms(
                a, b, graph, member, following, owner, first, after, other, backward, at, into, out, touched
            )
        m = member[b]
        while m >= 0:
            owner[m] = a
            m = following[m]
        following[last[a]], last[a] = member[b], last[b]
        size[a] += size[b]
        total[a] += total[b]
        alive[b] = False
        left -= 1
        e = first[a]
        while e >= 0:
            replace_entries(other[e], a, b, forward[e], backward[e], first, after, other, forward, backward)
            e = after[e]
        e = first[a]
        while e >= 0:
            c = other[e]
            score[c], match[c] = best_merge(c, first, after, other, forward, backward, size, weight, best)
            e = after[e]
        score[a], match[a] = best_merge(a, first, after, other, forward, backward, size, weight, best)
    return owner
