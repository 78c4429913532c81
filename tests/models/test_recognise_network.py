"""Weights of another program are recognised as those of a named network."""

import pytest

from distill.models.recognise_network import n_classes, networks_of
from networks import by_name
from tests.networks.published_networks import NETWORKS, published


@pytest.mark.parametrize("network", NETWORKS)
def test_published_weights_are_recognised(network: str) -> None:
    weights = published(network, 100).state_dict()
    assert list(networks_of(weights)) == [(network, 100)]
    assert n_classes(weights, network) == 100


def test_own_names_are_recognised() -> None:
    weights = by_name.build("wrn-16-2", classes=7).state_dict()
    assert list(networks_of(weights)) == [("wrn-16-2", 7)]


def test_unknown_weights_have_no_network() -> None:
    weights = dict(published("resnet20").state_dict())
    del weights["layer1.0.conv1.weight"]
    assert list(networks_of(weights)) == [] == list(networks_of({}))
    assert n_classes({}, "resnet20") is None
