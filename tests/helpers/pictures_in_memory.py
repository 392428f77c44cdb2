"""Near-duplicates by comparing all with all: what groups by files are checked against."""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from moe_core.clustering.neighbors import pairs_by_scan
from moe_core.data.duplicates import RADIUS, codes, is_plain, same_picture


def numbers_of(signatures):
    """(N,) equal for equal signatures."""
    return np.unique(signatures, axis=0, return_inverse=True)[1].ravel()


def groups_by_scan(signatures, levels):
    """(N,) first of the group of each, by all pairs of near codes."""
    _, first, number = np.unique(signatures, axis=0, return_index=True, return_inverse=True)
    different = signatures[first]
    code = codes(different)
    busy = np.flatnonzero(~is_plain(code))
    one, other = (busy[ends] for ends in pairs_by_scan(code[busy], code[busy], RADIUS))
    same = same_picture(different[one], different[other], levels)
    graph = coo_matrix((np.ones(same.sum()), (one[same], other[same])), shape=(len(different), len(different)))
    part = connected_components(graph, directed=False)[1][number.ravel()]
    _, earliest, group = np.unique(part, return_index=True, return_inverse=True)
    return earliest[group.ravel()]
