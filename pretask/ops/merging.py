"""The loop of `agglomeration.agglomerate`, compiled by numba: imported only when clusters are merged.

Each cluster's row holds the clusters near it, as a linked list: a merge joins two lists and, in the rows of their
neighbours, turns two entries into one, so no list ever grows and nothing is allocated on the way.
"""

import numpy as np
from numba import njit


def compiled(function):
    """numba's compiler; the machine code is kept for the next process where some folder may be written."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache
        return njit(function)


@compiled
def joined(a, b, first, after, other, own, back, at):
    """Row b becomes part of row a; entries of one cluster add up. `at` is scratch, -1 everywhere, and left so."""
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
            own[at[c]] += own[e]
            back[at[c]] += back[e]
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
def crossed(a, b, graph, member, following, owner, first, after, other, back, at, into, out, touched):
    """Adds to S(c, a ∪ b) what is neither in S(c, a) nor in S(c, b): samples of c with one link to each.

    Walks the links of b, the smaller; row a is already joined. Scratch is 0 or -1 everywhere, and left so.
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
            back[at[owner[v]]] += extra
        into[v], out[v] = 0, 0
    e = first[a]
    while e >= 0:
        at[other[e]] = -1
        e = after[e]


@compiled
def renamed(c, a, b, own_a, back_a, first, after, other, own, back):
    """In row c, the entries of a and b become one of a."""
    before, e, found = -1, first[c], False
    while e >= 0:
        if other[e] == a or other[e] == b:
            if found:
                after[before] = after[e]
                e = after[e]
                continue
            found = True
            other[e], own[e], back[e] = a, back_a, own_a
        before = e
        e = after[e]


@compiled
def scored(c, first, after, other, own, back, size, weight, best):
    """How good the best merge of c is, and with whom; `best` (K,) is scratch. Rivals that are missing count as 0."""
    best[:] = 0.0
    partner, e = -1, first[c]
    while e >= 0:
        j = other[e]
        affinity = own[e] / (size[j] * size[j]) + back[e] / (size[c] * size[c])
        if affinity > best[0] or (affinity == best[0] and affinity > 0 and j < partner):
            partner = j
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
    return score, partner


@compiled
def nearest_mean(a, alive, total, size):
    """The cluster whose mean is nearest to that of a."""
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
def chosen(alive, score, partner, total, size, rescue, clusters, least):
    """The two clusters to merge; with `rescue`, one that is near to none goes first, to the nearest mean; without, the
    smallest goes first where no more than `clusters` are as large as `least`."""
    best, lonely, tiny, large = -1, -1, -1, 0
    for c in range(len(alive)):
        if not alive[c]:
            continue
        if size[c] >= least:
            large += 1
        elif tiny < 0 or size[c] < size[tiny]:
            tiny = c
        if partner[c] < 0:
            if lonely < 0 or size[c] < size[lonely]:
                lonely = c
        elif best < 0 or score[c] > score[best]:
            best = c
    if lonely >= 0 and (rescue or best < 0):
        return lonely, nearest_mean(lonely, alive, total, size)
    if not rescue and tiny >= 0 and large <= clusters:
        return tiny, partner[tiny] if partner[tiny] >= 0 else nearest_mean(tiny, alive, total, size)
    return best, partner[best]


@compiled
def merge(
    ptr, other, own, back, graph, owner, total, clusters, rescued, rivals, weight, exact, wanted, least
):
    """Merges until `clusters` are left. Rows in CSR order; owner (N,) is written, numbers of clusters with gaps."""
    n, count = len(owner), len(ptr) - 1
    first, after = np.full(count, -1), np.empty(len(other), np.int64)
    size, member, last = np.zeros(count), np.full(count, -1), np.full(count, -1)
    following, at = np.full(n, -1), np.full(count, -1)
    into, out, touched = np.zeros(n), np.zeros(n), np.empty(n, np.int64)
    alive, score, partner = np.ones(count, np.bool_), np.zeros(count), np.full(count, -1)
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

    best = np.zeros(rivals)
    for c in range(count):
        score[c], partner[c] = scored(c, first, after, other, own, back, size, weight, best)
    left = count
    while left > clusters:
        a, b = chosen(alive, score, partner, total, size, left > rescued, wanted, least)
        if size[b] > size[a] or (size[b] == size[a] and b < a):
            a, b = b, a  # the smaller one is walked through
        joined(a, b, first, after, other, own, back, at)
        if exact:
            crossed(a, b, graph, member, following, owner, first, after, other, back, at, into, out, touched)
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
            renamed(other[e], a, b, own[e], back[e], first, after, other, own, back)
            e = after[e]
        e = first[a]
        while e >= 0:
            c = other[e]
            score[c], partner[c] = scored(c, first, after, other, own, back, size, weight, best)
            e = after[e]
        score[a], partner[a] = scored(a, first, after, other, own, back, size, weight, best)
    return owner
