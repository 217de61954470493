"""What float32 means on a GPU, and which kernels cuDNN may take: set here alone, before the first step."""

import torch


def configure(device: torch.device, precision: str, tf32: bool, deterministic: bool) -> str:
    """Sets torch's switches for a CUDA device, and nothing for another; the words of the start line.

    By default torch rounds the factors of float32 convolutions to TF32, but not those of matrix products.
    Here both follow `tf32`. The older switches `allow_tf32` do the same in every supported version of torch;
    where libraries read them after the newer `fp32_precision` was set, torch raises an error.

    Args:
        precision: the recipe's.
        tf32: whether factors of float32 products and convolutions may be rounded to TF32.
        deterministic: whether cuDNN takes only deterministic kernels, and does not choose them by timing.
    """
    if device.type != "cuda":
        return precision
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    float32 = " (TF32)" if tf32 else " (IEEE)"
    kernels = "deterministic" if deterministic else "the fastest"
    return f"{precision}{float32 * (precision == 'float32')}, {kernels} cuDNN kernels"
