"""Describe the network of a [student] or [teacher] table: its name, costs and taps, without torch.

The descriptions share `summary`, `parameters`, `trainable`, `macs` (multiply-accumulates for one
image) and `taps`.
"""

from distill.errors import UserError
from distill.recipe.schema import DEFAULT_SIZE, Student, Teacher
from networks import network_catalogue
from networks.network_catalogue import FixedNetwork
from students.design import Design, over_budget
from teachers.wrn_cost import WrnDesign

Description = Design | WrnDesign | FixedNetwork


def describe(
    table: Student | Teacher, classes: int = 10, size: int = DEFAULT_SIZE
) -> Description | None:
    """Return the description of a table's network; None if only building it shows its costs.

    `size`: height and width of the images in pixels. Raises UserError for an invalid design.
    """
    if table.network == "resnet" and (table.stages is None or table.blocks is None):
        raise UserError('network = "resnet" needs stages and blocks')
    if is_described_by_design(table):
        return Design.of(**table.spec(), classes=classes, image_size=size)
    if isinstance(table, Teacher) and table.network == "wrn":
        return WrnDesign(table.depth, table.widen, classes, size)
    if table.network in network_catalogue.FIXED:
        fixed = network_catalogue.FIXED[table.network]
        is_proportional = size % network_catalogue.LARGEST_STRIDE == 0
        return fixed._replace(classes=classes, image_size=size) if is_proportional else None
    return network_catalogue.wide_resnet(table.network, classes, size)


def is_described_by_design(table: Student | Teacher) -> bool:
    """Whether a `Design` describes a table's network."""
    return table.network == "resnet" or table.network in network_catalogue.RESIDUAL


def summary(table: Student | Teacher, classes: int = 10, size: int = DEFAULT_SIZE) -> str:
    """Return a short name: `WRN-28-10`, `ResNet [4, 4, 3] 64-128-256`, `resnet20`, `timm/NAME`.

    Raises UserError for an invalid design.
    """
    description = describe(table, classes, size)
    if description is None or table.network in network_catalogue.RESIDUAL:
        return table.network
    return description.summary


def budget_fault(student: Student, classes: int = 10, size: int = DEFAULT_SIZE) -> str | None:
    """Return by how much a student exceeds its budget, with advice; None if it does not, or if only
    building it shows its size. Raises UserError for an invalid design.
    """
    description = describe(student, classes, size)
    if description is None:
        return None
    if isinstance(description, Design) and student.network == "resnet":
        return over_budget(description, student.max_params)
    return size_fault(student, description.parameters)


def size_fault(student: Student, n_parameters: int) -> str | None:
    """Return by how much a student of this size exceeds its budget; None if it does not."""
    excess = n_parameters - student.max_params + 1
    if excess <= 0:
        return None
    return (
        f"{student.network} has {n_parameters:,} parameters, {excess:,} too many for fewer than "
        f"{student.max_params:,}; type --set student.max_params={n_parameters + 1}, or choose "
        "another network"
    )
