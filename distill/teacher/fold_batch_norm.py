"""Fold batch norms and cast weights of a frozen network, for fast inference.

In eval mode a batch norm is an affine map of each channel. If nothing else reads the output of the
convolution before it, the map is folded into the convolution's kernel and bias (Jacob et al., CVPR
2018, arXiv 1712.05877, section 3.2). Weights that autocast would cast in every forward pass are
cast once.
"""

import copy
from collections.abc import Collection, Iterator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from distill.models.convolutions_of_small_maps import SmallMapConv2d
from distill.models.features import tap_points

CHECKED_IMAGES = 16
TOLERANCE = 1e-4  # relative to the largest logit, in float32: about a hundred rounding errors


def prepare_for_inference(
    net: nn.Module, image_size: int, dtype: torch.dtype | None = None
) -> nn.Module:
    """Return a copy of a network, [B, 3, H, W] to logits [B, C], that is faster in inference.

    The copy is in eval mode. Its batch norms are folded if the network can be traced and its
    outputs on random images, of `image_size` pixels, stay the same. `dtype`: the type that autocast
    will use; the weights of convolutions and linear layers are cast to it. None casts nothing.
    """
    copied = copy.deepcopy(net).eval()
    folded = fold_batch_norms(copy.deepcopy(copied))
    chosen = folded if outputs_match(copied, folded, image_size) else copied
    if dtype is not None:
        for module in chosen.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(dtype)
    return chosen


def fold_batch_norms(net: nn.Module) -> nn.Module:
    """Fold batch norms into the convolutions before them if possible; changes and returns `net`.

    A convolution whose output a loss reads (a tap) is left unchanged.
    """
    tapped = {id(module) for module in tap_points(net).values()}
    for kernel_name, norm_name in _foldable_pairs(net):
        kernel, norm = net.get_submodule(kernel_name), net.get_submodule(norm_name)
        assert isinstance(kernel, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if id(kernel) not in tapped:
            net.set_submodule(kernel_name, fuse_conv_bn_eval(kernel, norm))
            net.set_submodule(norm_name, nn.Identity())
    return net


@torch.no_grad()
def outputs_match(net: nn.Module, other: nn.Module, image_size: int) -> bool:
    """Whether two networks in eval mode return the same logits on random images, up to rounding.

    The largest difference may be TOLERANCE times the largest logit. False if `other` raises an
    error. `image_size`: height and width in pixels.
    """
    example = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(CHECKED_IMAGES, 3, image_size, image_size, generator=generator)
    expected = net(images.to(example))
    try:
        actual = other(images.to(example))
    except Exception:  # the network reads attributes of its batch norms, which were replaced
        return False
    return bool((expected - actual).abs().max() <= TOLERANCE * expected.abs().max())


class _Tracer(fx.Tracer):
    """Traces a SmallMapConv2d as one operation, like torch's own convolutions."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SmallMapConv2d) or super().is_leaf_module(m, module_qualified_name)


def _foldable_pairs(net: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (convolution, batch norm), as module names, if only the batch norm reads the
    convolution's output.

    Yields nothing if the network cannot be traced.
    """
    try:
        graph = _Tracer().trace(net)
    except Exception:  # control flow on values may raise anything
        return
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        readers: Collection[fx.Node] = node.users
        if not _is_call_of(net, node, nn.Conv2d, SmallMapConv2d) or len(readers) != 1:
            continue
        [reader] = readers
        if _is_call_of(net, reader, nn.BatchNorm2d):
            pair = str(node.target), str(reader.target)
            if all(calls.count(name) == 1 for name in pair):  # not if a module is called twice
                yield pair


def _is_call_of(net: nn.Module, node: fx.Node, *kinds: type[nn.Module]) -> bool:
    """Whether a node calls a module whose type is one of `kinds`.

    Subclasses do not count, because they may compute something else.
    """
    return node.op == "call_module" and type(net.get_submodule(str(node.target))) in kinds
