"""Weights, gradients and optimizer states in parts, one on each process (FSDP2), for language models too large for one.

The launcher asks for it (configs/accelerate/fsdp.yaml). Each decoder layer is gathered while it computes; embeddings,
last norm and head belong to the root, gathered from the beginning of a forward pass to the end of its backward pass,
because the head is called piece by piece outside the decoder. Precision is autocast's, as without sharding: bf16 is
what it would make of a layer's matrices, so bf16 is what is gathered of them, half the bytes; all else stays fp32,
norms too, whose small steps bf16 would not show. Gradients are summed in fp32.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from graft.config.options import Config
from graft.errors import UserError
from graft.training.learner import Learner

# What the launcher may say: the sharding is as above, every process loads the weights.
REQUIRED = {"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_OFFLOAD_PARAMS": "false",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "FSDP_ACTIVATION_CHECKPOINTING": "false"}


def wanted(config: Config, world: int) -> bool:
    """Whether the launcher asks for sharding. Raises UserError if it asks for another, or the run cannot be sharded."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false") != "true":
        return False
    for name, value in REQUIRED.items():
        if (found := os.environ.get(name, "")) != value:
            raise UserError(f"accelerate fsdp_config: {name.lower()} must be {value}, got {found or 'nothing'}")
    if world < 2:
        raise UserError("accelerate fsdp_config: one process has nothing to share; use configs/accelerate/1gpu.yaml")
    if not config.reads_text:
        raise UserError(f"student.name: {config.student.name} cannot be sharded, only language models can; use "
                        "configs/accelerate/2gpu.yaml")
    if config.teacher.name == "context_lm" and (serve := config.teacher.args["serve"]) in ("adapter", "ema"):
        # Its forward passes are as many as the lengths of a process's own items ask for, and each is a collective.
        raise UserError(f"teacher.serve: {serve} cannot be used under FSDP; use cache")
    if config.teacher.name == "context_lm" and config.teacher.args["targets"] == "student":
        raise UserError("teacher.targets: student cannot be used under FSDP, where every token that one process "
                        "generates is everybody's; use gold or teacher, or configs/accelerate/2gpu.yaml")
    return True


def shard(learner: Learner, device: torch.device, half: bool) -> Learner:
    """Put the learner on the device, a part of every weight on each process; `half`: it computes under bf16 autocast.

    Optimizers come afterwards.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    lm = learner.student.model
    layers = [module for module in lm.modules() if type(module).__name__ in (lm._no_split_modules or ())]
    if not layers:
        raise UserError(f"student.model: {type(lm).__name__} does not say what its layers are; it cannot be sharded")
    # One by one, so that no device ever holds the whole model. A group's trained weights must have one type: adapters
    # are fp32, the frozen weights beside them may be bf16.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        for norm in _norms(layer) if half else ():
            fully_shard(norm, mesh=mesh, reshard_after_forward=False)
        fully_shard(layer, mesh=mesh, mp_policy=policy if half else MixedPrecisionPolicy())
    fully_shard(learner, mesh=mesh)
    register_fsdp_forward_method(learner, "lend")
    return learner


def _norms(layer: nn.Module) -> list[nn.Module]:
    """What has vectors alone, which autocast leaves as they are; a matrix's bias is cast with it."""
    own = {module: list(module.parameters(recurse=False)) for module in layer.modules()}
    return [module for module, weights in own.items() if weights and all(weight.ndim == 1 for weight in weights)]


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what its parts are together; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(state: Any, keep: bool) -> Any:
    """Nested state with whole tensors, on the CPU, in place of those in parts; all processes must ask.

    Those who do not `keep` them get None in their place.
    """
    if isinstance(state, DTensor):
        full = whole(state.detach())
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return {key: gathered(value, keep) for key, value in state.items()}
    return [gathered(value, keep) for value in state] if isinstance(state, list) else state


def parted(state: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors by name as those in `like` of their shape lie in memory: in parts, or in the same order."""
    return {name: _part(value, like.get(name)) for name, value in state.items()}


def parted_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's saved state, what belongs to a weight as that weight is.

    Fused kernels go through weight, gradient and state in the order of memory without a look at their strides.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {**state, "state": {index: parted(values, dict.fromkeys(values, params[index]))
                               for index, values in state["state"].items()}}


def _part(value: Tensor, like: Tensor | None) -> Tensor:
    if like is None or value.shape != like.shape:  # a step count, say
        return value
    if not isinstance(like, DTensor):  # it may have been saved on another device, in another memory format
        return value if value.stride() == like.stride() else torch.empty_like(
            like, dtype=value.dtype, device=value.device).copy_(value)
    # Every process has read the whole; a copy of its part lets go of the rest.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).clone()
