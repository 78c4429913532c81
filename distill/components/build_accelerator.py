"""Create accelerate's Accelerator, which sets device, precision and processes."""

from datetime import timedelta
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)

from distill.components.check_processes import explain_launcher_variables
from distill.components.cpu_malloc import keep_freed_memory
from distill.recipe.recipes import Recipe

# Other processes wait this long for one that does not respond; they notice one that ends at once.
TIMEOUT = timedelta(minutes=10)


@explain_launcher_variables()
def build_accelerator(recipe: Recipe) -> Accelerator:
    """Create the Accelerator of a training, which sets device, precision and processes.

    The precision `auto` is bf16 on GPUs that support it, fp16 on older GPUs, fp32 on other devices.
    Raises UserError if the environment variables of a launcher are invalid.
    """
    precision: str = recipe.train.precision
    if precision == "auto":
        precision = _native_precision(PartialState(cpu=_is_on_cpu()).device)
    return _create_accelerator("no" if precision == "fp32" else precision, recipe.train.accumulate)


@explain_launcher_variables()
def evaluation_accelerator() -> Accelerator:
    """Create an Accelerator for evaluation in float32, whatever the precision of the training.

    Raises UserError if the environment variables of a launcher are invalid.
    """
    return _create_accelerator("no", 1)


@explain_launcher_variables()
def evaluation_device() -> torch.device:
    """Return the device of `evaluation_accelerator` without creating an Accelerator.

    A training that is going on in this process keeps its own. Raises UserError if the environment
    variables of a launcher are invalid.
    """
    _set_up_float32()
    device: torch.device = PartialState(cpu=_is_on_cpu()).device
    return device


def _create_accelerator(mixed_precision: str, accumulate: int) -> Accelerator:
    _set_up_float32()
    if AcceleratorState._shared_state.get("_mixed_precision") != mixed_precision:
        AcceleratorState._reset_state()  # accelerate refuses another precision in one process
    accelerator = Accelerator(
        cpu=_is_on_cpu(),
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=accumulate, sync_with_dataloader=False
        ),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    torch.zeros(1, device=accelerator.device).item()  # raises if the device cannot be used
    return accelerator


def _set_up_float32() -> None:
    if _is_on_cpu():
        keep_freed_memory()
    # Otherwise NVIDIA GPUs compute float32 convolutions in TF32, which has fewer bits.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _is_on_cpu() -> bool:
    """Whether to compute on the CPU: on request ($ACCELERATE_USE_CPU) or without a GPU.

    accelerate needs this flag to connect processes on CPUs.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def bf16_instructions() -> Literal["AMX", "AVX-512"] | None:
    """Return the name of this CPU's instructions for bf16; None if it has none.

    Without them, bf16 is many times slower than float32.
    """
    has = torch.cpu.get_capabilities()
    return "AMX" if has.get("amx_bf16") else "AVX-512" if has.get("avx512_bf16") else None


def _native_precision(device: torch.device) -> str:
    if device.type != "cuda":
        return "fp32"  # bf16 without its instructions is an order of magnitude slower
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
