"""Estimate the memory that a training needs, and how much is available, before it starts.

    bytes = weights + gradients + optimizer state + averaged weights + images
            + images of a forward pass x activations saved for one image

The activations are measured with a few images. What the estimate leaves out makes it too
small, not too large: temporary buffers, the teacher's maps, and the loss terms (docs/methods.md).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from distill.components.build_network import build_network
from distill.data.free_memory import free_memory
from distill.data.image_set import CHANNELS, SIDE
from distill.errors import UnsuitableRecipe
from distill.format import format_size
from distill.models.cost import count_parameters
from distill.models.out_of_memory import smaller_step_advice
from distill.recipe.recipes import Recipe
from distill.recipe.schema import Optim
from distill.runs.run_folder import Role
from distill.training import build, optim
from distill.training.train_state import TrainState

MEASURED = (2, 4)  # images of the forward passes that are compared
SMALLER_RECIPE = {"teacher": "teacher_wrn+two_cores", "student": "kd_cutmix+two_cores"}


@dataclass(frozen=True)
class MemoryNeed:
    """The memory of one process of a training, in bytes.

    `state`: weights, gradients, optimizer state and averaged weights, as far as they are not yet
    allocated. `data`: the images. `per_image`: the activations saved for one image of a forward
    pass. `batch`: the images of one forward pass.
    """

    state: int
    data: int
    per_image: int
    batch: int

    @property
    def total(self) -> int:
        """The memory of a training step."""
        return self.state + self.data + self.batch * self.per_image

    def largest_batch(self, available: int) -> int:
        """Return the most images of a forward pass that fit into `available` bytes; 0 if none."""
        return max(0, (available - self.state - self.data) // max(1, self.per_image))

    def parts(self) -> str:
        """Describe the parts of the need: `weights and optimizer 0.6 GB, …`."""
        activations = format_size(self.batch * self.per_image)
        return (
            f"weights and optimizer {format_size(self.state)}, images {format_size(self.data)}, "
            f"activations of {self.batch:,} images {activations}"
        )


def check_memory(state: TrainState, recipe: Recipe) -> None:
    """Raise UnsuitableRecipe, on all processes, if a step cannot fit into the available memory.

    `state`: before its first step, so that its weights are allocated, and gradients and the
    optimizer's state are not.
    """
    accel = state.accelerator
    parameters = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    per_image = saved_bytes_per_image(state.model, accel.device, accel.autocast)
    batch = recipe.train.batch_size // (recipe.train.accumulate * accel.num_processes)
    gradients_and_optimizer = 4 * parameters * (1 + round(optimizer_copies(recipe.optim)))
    need = MemoryNeed(gradients_and_optimizer, 0, per_image, batch)
    fault = memory_fault(
        need, available_memory(accel.device), recipe, state.role, accel.num_processes
    )
    [fault] = broadcast_object_list([fault])  # the available memory changes: rank 0 decides
    if fault is not None:
        raise UnsuitableRecipe(fault)


def recipe_need(
    recipe: Recipe, role: Role, n_images: int, n_classes: int, device: torch.device
) -> MemoryNeed:
    """Return the memory that a training of the recipe needs in one process on `device`.

    The network is built on the CPU to measure it. `n_images`: the number of images of the train
    split. Raises UserError if the network cannot be built.
    """
    net = build_network(recipe, role, n_classes)
    parameters = count_parameters(net)
    copies = 2 + optimizer_copies(recipe.optim) + (recipe.ema is not None)
    precision = recipe.train.precision
    is_half = precision in ("bf16", "fp16") or (precision == "auto" and device.type == "cuda")
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=is_half)
    per_image = saved_bytes_per_image(net, torch.device("cpu"), autocast)
    batch = recipe.train.batch_size // recipe.train.accumulate
    data = n_images * CHANNELS * SIDE**2
    return MemoryNeed(round(4 * parameters * copies), data, per_image, batch)


def memory_fault(
    need: MemoryNeed, available: int | None, recipe: Recipe, role: Role, processes: int = 1
) -> str | None:
    """Return why a training cannot fit and what to type instead; None if it can, or is unknown.

    `available`: the bytes for one process; None if unknown.
    """
    if available is None or need.total <= available:
        return None
    found = (
        f"a training step needs at least {format_size(need.total)} more memory "
        f"({need.parts()}), but only {format_size(available)} is available."
    )
    smaller = f"train smaller networks, as in --recipe {SMALLER_RECIPE[role]}"
    fitting = need.largest_batch(available)
    accumulate = _accumulate_that_fits(recipe.train.batch_size, processes, fitting)
    if accumulate is None:
        return f"{found}\nNot even one image fits: end other programs, or {smaller}."
    advice = smaller_step_advice(recipe, accumulate)
    largest = fitting * processes * recipe.train.accumulate
    return f"{found}\n{advice.removesuffix('.')}: at most {largest:,}; or {smaller}."


def _accumulate_that_fits(batch_size: int, processes: int, fitting: int) -> int | None:
    """Return the smallest number of micro-batches of at most `fitting` images.

    They divide the batch evenly. None if that is impossible.
    """
    a_process = batch_size // processes
    parts = (n for n in range(1, a_process + 1) if a_process % n == 0 and a_process // n <= fitting)
    return next(parts, None)


def saved_bytes_per_image(net: nn.Module, device: torch.device, autocast: Callable[[], Any]) -> int:
    """Return the bytes of activations that a network saves for the gradient of one image.

    Costs forward passes of two and of four images in eval mode, which saves the same activations
    as the training mode, apart from dropout's masks, and changes neither statistics nor random
    numbers. The network's mode is restored.
    """
    was_training = net.training
    few, more = MEASURED
    try:
        net.eval()
        of_few, of_more = (_saved_bytes(net, n, device, autocast) for n in MEASURED)
    finally:
        net.train(was_training)
    return (of_more - of_few) // (more - few)


def _saved_bytes(
    net: nn.Module, n_images: int, device: torch.device, autocast: Callable[[], Any]
) -> int:
    """Return the bytes of all different tensors that are saved for the gradient of `n_images`."""
    images = torch.full((n_images, CHANNELS, SIDE, SIDE), 0.5, device=device)
    saved: dict[int, torch.UntypedStorage] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor)
    with hooks, autocast():
        outputs = net(images.to(memory_format=torch.channels_last))
    del outputs
    return sum(storage.nbytes() for storage in saved.values())


def optimizer_copies(settings: Optim) -> float:
    """Return how many numbers an optimizer stores for each weight, measured with a small layer."""
    layer = nn.utils.skip_init(nn.Linear, 64, 64, bias=False)  # draws no random numbers
    nn.init.zeros_(layer.weight).grad = torch.zeros(64, 64)
    arguments = settings.model_dump(include=build.OPTIMIZER_KEYS)
    chosen = optim.optimizer(nn.ModuleList([layer]), **arguments)
    chosen.step()
    states = [value for state in chosen.state.values() for value in state.values()]
    stored: int = sum(value.numel() for value in states if isinstance(value, Tensor))
    return stored / (64 * 64)


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that one process of this machine can still allocate; None if unknown.

    On a GPU its free memory; on a CPU that of `free_memory`, divided by the number of processes on
    this machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    of_host = free_memory()
    if device.type != "cpu" or of_host is None:
        return None
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return of_host // max(1, int(count) if count.isdecimal() else 1)
