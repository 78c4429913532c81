"""Describe the network of a [student] or [teacher] table: its name, costs and taps, without torch.

The descriptions share `summary`, `parameters`, `trainable`, `macs` (multiply-accumulates for one
image of 32x32 pixels) and `taps`.
"""

from distill.errors import UserError
from distill.recipe.schema import Student, Teacher
from networks import network_catalogue
from networks.network_catalogue import FixedNetwork
from students.design import Design, over_budget
from teachers.wrn_cost import WrnDesign

Description = Design | WrnDesign | FixedNetwork


def describe(table: Student | Teacher, classes: int = 10) -> Description | None:
    """Return the description of a table's network; None if only building it shows its costs.

    Raises UserError for an invalid design.
    """
    if table.network == "resnet" and (table.stages is None or table.blocks is None):
        raise UserError('network = "resnet" needs stages and blocks')
    if is_residual(table):
        return Design.of(**table.spec(), classes=classes)
    if isinstance(table, Teacher) and table.network == "wrn":
        return WrnDesign(table.depth, table.widen, classes)
    if table.network in network_catalogue.FIXED:
        return network_catalogue.FIXED[table.network]._replace(classes=classes)
    return network_catalogue.wide_resnet(table.network, classes)


def is_residual(table: Student | Teacher) -> bool:
    """Whether a `Design` describes a table's network."""
    return table.network == "resnet" or table.network in network_catalogue.RESIDUAL


def summary(table: Student | Teacher, classes: int = 10) -> str:
    """Return a short name: `WRN-28-10`, `ResNet [4, 4, 3] 64-128-256`, `resnet20`, `timm/NAME`.

    Raises UserError for an invalid design.
    """
    description = describe(table, classes)
    if description is None or table.network in network_catalogue.RESIDUAL:
        return table.network
    return description.summary


def budget_fault(student: Student, classes: int = 10) -> str | None:
    """Return by how much a student exceeds its budget, with advice; None if it does not, or if only
    building it shows its size. Raises UserError for an invalid design.
    """
    description = describe(student, classes)
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
