"""The Triton backend for GPUs. Importing it registers it, and does not import Triton.

It equals the reference to the bit where weights are packed and expanded, and up to the order of
sums where they are multiplied. Where Triton is missing or cannot run, the reference does the
work: that is said once in the log, and by `status`.

    kernels, products   what runs on the device
    launch, multiply    tensors in, kernels started, tensors out
    start, tuning       launch options, and those found at run time
    tables              constants in a device's memory
    proof               what a device must show first
    backend             registration, and the reference as the way out
    proven              the same for what proves itself at its first call

    norm, gated, rotary, cross_entropy    kernels of training, and what starts them
    training, training_proof              their registration, and what they must show

    steps, launch_steps         optimizer steps and their state in 8 bits
    optimizer, optimizer_proof  their registration, and what they must show

    paged_attention, lora_segments  kernels of serving, and what starts them
    serving, serving_proof          their registration, and what they must show
"""

from ince.ops.triton import optimizer, serving, training
from ince.ops.triton.backend import status

training.register()
optimizer.register()
serving.register()

__all__ = ["status"]
