"""One step of a softmax over keys that arrive block by block, for the kernels of this package.

Origin: FlashAttention-2 (arXiv 2307.08691, algorithm 1), with exponentials to the base 2.
"""

import triton
import triton.language as tl


@triton.jit
def online_softmax(scores, filled, top, total):
    """A block of scores [Q, K], of which those of `filled` [K] keys count, after `top` and `total` [Q].

    Returns weights [Q, K] relative to the new maximum, what earlier sums shrink by [Q], and both anew.
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
    """As `online_softmax`, where all keys count, of scores that are still to be multiplied by `factor` > 0.

    The row's largest is multiplied alone, so that each score takes one multiply-add on the way to its weight.
    """
    higher = tl.maximum(top, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor - higher[:, None])
    shrink = tl.exp2(top - higher)
    return weights, shrink, higher, total * shrink + tl.sum(weights, 1)
