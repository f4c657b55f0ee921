"""One step of a softmax over keys that arrive block by block, for the kernels of this package.

Origin: FlashAttention-2 (arXiv 2307.08691, algorithm 1), with exponentials to the base 2: a GPU has an
instruction for these alone, and the factor log2(e) is already in the scores' scale.
"""

import triton
import triton.language as tl


@triton.jit
def online_softmax(scores, filled, top, total):
    """A block of scores [Q, K], of which those of `filled` [K] keys count, after `top` and `total` [Q].

    Returns weights [Q, K] relative to the new maximum, the factors [Q] by which earlier sums shrink, and the
    new `top` and `total`.
    """
    scores = tl.where(filled[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    # A row that has met no valid key yet keeps -inf; the difference of two would be NaN.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    return weights, shrink, higher, total * shrink + tl.sum(weights, 1)


@triton.jit
def full_softmax(scores, factor, top, total):
    """The step of `online_softmax` where all keys count and scores still lack a `factor` > 0.

    Only the row's largest score is scaled by itself; every other takes one fused multiply-add on the way to
    its weight.
    """
    higher = tl.maximum(top, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - higher[:, None])
    shrink = tl.exp2(top - higher)
    return weights, shrink, higher, total * shrink + tl.sum(weights, 1)
