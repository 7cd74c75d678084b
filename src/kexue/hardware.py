"""What the machine can do that torch does not say in one call. The lowest layer, like the index."""

__all__ = ["bf16_in_hardware"]


def bf16_in_hardware(device_type: str) -> bool:
    """Whether matrix products in bfloat16 are in the hardware, not emulated.

    Args:
        device_type: "cpu" or "cuda"; any other is answered with False.
    """
    import torch

    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        return device_type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build of torch without oneDNN
        return False
