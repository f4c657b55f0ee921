"""Mends three things of Triton's interpreter (3.7 to 3.9), so that it computes as a GPU does.

It multiplies bfloat16 matrices as the integers that it stores them in, and it cuts off where a GPU
rounds to the nearest. Both are replaced by PyTorch's own conversions. PyTorch before 2.13 refuses an
interpreted kernel inside its operators, so that kernels are called without its wrapper, which a compiler
alone needs. Import before `plugins.triton`.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

STORED = {
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
}
"""What the bits of a type mean to PyTorch."""


def convert(data, source, target, rounding):
    bits = torch.from_numpy(np.ascontiguousarray(data)).view(STORED[source])
    out = bits.to(STORED[target])
    unsigned = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[out.element_size()]
    return out.view(unsigned).numpy().reshape(data.shape)


def dot(self, a, b, total, input_precision, max_num_imprecise_acc):
    a, b = (convert(x.data, x.dtype.scalar, tl.float32, None).view(np.float32) for x in (a, b))
    return interpreter.TensorHandle(a @ b + total.data, total.dtype.scalar)


torch.library.wrap_triton = lambda kernel: kernel
interpreter._convert_float = convert
interpreter.InterpreterBuilder.create_dot = dot
