"""Count the parameters and MACs of a Wide ResNet (`teachers/wrn.py`) in closed form."""

from typing import NamedTuple

STEM_WIDTH = 16
N_STAGES = 3


class WrnDesign(NamedTuple):
    """The Wide ResNet WRN-`depth`-`widen`; depth = 6n + 4."""

    depth: int
    widen: int
    classes: int = 10
    image_size: int = 32  # height and width in pixels

    @property
    def summary(self) -> str:
        """A short name, `WRN-28-10`."""
        return f"WRN-{self.depth}-{self.widen}"

    @property
    def features(self) -> int:
        """The number of inputs of the linear layer: the channels of the last stage."""
        return self._blocks()[-1][1]

    @property
    def parameters(self) -> int:
        """The number of parameters: kernels, batch norms, and the linear layer with its bias."""
        kernels = sum(weights for weights, _ in self._kernels())
        return kernels + 2 * sum(self._norms()) + (self.features + 1) * self.classes

    @property
    def trainable(self) -> int:
        """The number of trained parameters: all of them."""
        return self.parameters

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the maps that can be read."""
        return ("stem", *(f"stages.{i}" for i in range(N_STAGES)), "maps", "features")

    @property
    def macs(self) -> int:
        """The multiply-accumulates for one image: all convolutions and the linear layer."""
        return (
            sum(weights * side**2 for weights, side in self._kernels())
            + self.features * self.classes
        )

    def _blocks(self) -> list[tuple[int, int, int]]:
        """Return (input channels, output channels, size of the output maps) of each block."""
        n, inputs, blocks = (self.depth - 4) // 6, STEM_WIDTH, []
        for stage in range(N_STAGES):
            outputs = STEM_WIDTH * self.widen * 2**stage
            for _ in range(n):
                blocks.append((inputs, outputs, -(-self.image_size // 2**stage)))
                inputs = outputs
        return blocks

    def _kernels(self) -> list[tuple[int, int]]:
        """Return (weights, size of the output map) of each convolution."""
        kernels = [(3 * 3 * 3 * STEM_WIDTH, self.image_size)]
        for inputs, outputs, side in self._blocks():
            kernels += [(9 * inputs * outputs, side), (9 * outputs * outputs, side)]
            if inputs != outputs:  # the skip is a 1x1 convolution
                kernels.append((inputs * outputs, side))
        return kernels

    def _norms(self) -> list[int]:
        """Return the channels of each batch norm: two in a block, and the last one."""
        in_blocks = [channels for block in self._blocks() for channels in block[:2]]
        return [*in_blocks, self.features]
