"""The labels of the designs: each beside its point, none on another."""

from itertools import combinations
from math import dist

from distill.show.design_plot import CLEAR, beside


def test_labels_stay_clear_of_points_and_of_each_other() -> None:
    crowd = [(x / 2, 0.0) for x in range(20)]
    labels = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(crowd, beside(crowd), strict=True)]
    assert min(dist(a, b) for a, b in combinations(labels, 2)) >= CLEAR
    assert min(dist(label, point) for label in labels for point in crowd) >= CLEAR
    assert max(map(dist, crowd, labels)) < 8 * CLEAR


def test_a_label_lies_to_the_right_where_there_is_room() -> None:
    assert beside([(0.0, 0.0), (100.0, 0.0)]) == [(CLEAR, 0), (CLEAR, 0)]
