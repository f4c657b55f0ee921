"""Loads PTX or machine code through the CUDA driver and launches it, as TensorRT would; GPU needed."""

import ctypes

import torch

MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""


def check(driver, status):
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver: {text.value.decode() if text.value else status}")


def launch(code, kernel, grid, scalars, tensors, *, raise_limit):
    """Run a kernel in PyTorch's context: inputs, scalars, outputs, in this order.

    Args:
        code: PTX or cubin.
        kernel: its record (`plugins.aot.objects.Compiled`).
        grid, scalars: of the launch.
        tensors: by name, for every pointer of the kernel.
        raise_limit: ask for more than 48 KiB of shared memory where the kernel needs it.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    check(driver, driver.cuModuleLoadData(ctypes.byref(module), ctypes.c_char_p(code)))
    check(driver, driver.cuModuleGetFunction(ctypes.byref(function), module, kernel.name.encode()))
    if raise_limit:
        check(driver, driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, kernel.shared))
    pointers = {name: ctypes.c_void_p(tensor.data_ptr()) for name, tensor in tensors.items()}
    inputs, outputs = ([pointers[name] for name in names] for names in (kernel.inputs, kernel.outputs))
    values = [*inputs, *map(ctypes.c_int32, scalars), *outputs]
    addresses = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    block = (kernel.block, 1, 1)
    check(driver, driver.cuLaunchKernel(function, *grid, *block, kernel.shared, stream, addresses, None))
    torch.cuda.synchronize()
    check(driver, driver.cuModuleUnload(module))
