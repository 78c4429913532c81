"""A design's parameters, multiply-accumulates, faults and text."""

import ast
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from students import design as design_module
from students import feature_map_sizes
from students.design import Design, over_budget, widest

ROWS = json.loads((Path(__file__).parent / "architectures.json").read_text())["rows"]
NOT_OF_THE_SHAPE = {"activation", "block_dropout"}


def shape_of(row):
    return {key: value for key, value in row["spec"].items() if key not in NOT_OF_THE_SHAPE}


def stated_parameters(row):
    return row.get("parameters_of_described_network", row["parameters"])


def test_every_network_of_reports_has_its_stated_parameters():
    found = {(row["source"], row["name"]): Design.of(**shape_of(row)).parameters for row in ROWS}

    assert len(ROWS) == 62
    assert found == {(row["source"], row["name"]): stated_parameters(row) for row in ROWS}


def test_misprints_of_reports_differ_from_the_count():
    by_name = {row["name"]: row for row in ROWS}
    printed_width = shape_of(by_name["table8-19"]) | {"width": 20}

    assert Design.of(**printed_width).parameters != by_name["table8-19"]["parameters"]
    assert Design.of(**shape_of(by_name["table8-19"])).channels[0] == 21
    assert Design.of(**shape_of(by_name["og.resnet"])).parameters == 4_997_802
    assert Design.of(**shape_of(by_name["og_64.resnet"])).parameters == 5_000_266


def test_parameters_by_hand():
    # Stem 3*4*9 + 8; stage 1: 2*(4*4*9 + 8); stage 2: 4*8*9 + 16, 8*8*9 + 16, skip 4*8 + 16;
    # linear layer 8*10 + 10.
    by_hand = 116 + 304 + 304 + 592 + 48 + 90

    assert Design.of(stages=2, blocks=1, width=4).parameters == by_hand


def test_macs_by_hand():
    # At 32x32 the stem 3*4*9 and 2*4*4*9; at 16x16 4*8*9, 8*8*9 and the skip 4*8; last 8*10.
    by_hand = (108 + 288) * 32**2 + (288 + 576 + 32) * 16**2 + 80

    assert Design.of(stages=2, blocks=1, width=4).macs == by_hand


def test_stem_stride_and_pool_divide_the_maps():
    plain = Design.of(stages=1, blocks=1, width=4)
    strided = Design.of(stages=1, blocks=1, width=4, stem_stride=2, stem_pool=True)

    assert plain.parameters == strided.parameters
    assert strided.macs == 108 * 16**2 + 288 * 8**2 + 40


def test_pool_that_does_not_divide_map_drops_rest():
    assert Design.of(stages=4, blocks=1, width=8, pool=3).features == 64  # 4x4 -> 1x1
    assert Design.of(stages=4, blocks=1, width=8, pool=2).features == 64 * 4


def test_the_shipped_student():
    student = Design.of(stages=3, blocks=[4, 4, 3], width=64)

    assert student.parameters == 4_697_162
    assert student.summary == "ResNet [4, 4, 3] 64-128-256"
    assert 0.75e9 < student.macs < 0.85e9


def test_integers_mean_the_same_at_every_stage():
    short = Design.of(stages=2, blocks=3, width=8, kernel=5, skip_kernel=3)
    long = Design.of(stages=2, blocks=[3, 3], channels=[8, 16], kernel=[5, 5], skip_kernel=[3, 3])

    assert short == long
    assert short.stem_kernel == 5
    assert short.stem_width == 8
    assert short.stage_strides == (1, 2)
    assert short.stages == 2
    assert Design.of(stages=2, blocks=1, width=8, stage_strides=2).stage_strides == (2, 2)


RESNET_9 = {
    "stages": 3,
    "blocks": [1, 0, 1],
    "channels": [128, 256, 512],
    "stem_width": 64,
    "downsample": "pool",
}


def test_resnet_9_has_its_published_weights_and_macs():
    """6,568,640 weights without norms and without a bias of its linear layer; 379 M MACs."""
    design = Design.of(**RESNET_9)
    norms = sum(2 * each.outputs for each in design.convolutions())

    assert design.parameters - norms - design.classes == 6_568_640
    assert round(design.macs / 1e6) == 379
    assert design.summary == "ResNet [1, 0, 1] 128-256-512 pooled"
    assert design.stage_strides == (2, 2, 2)


WHITENED = {"stem_kernel": 2, "stem_init": "whiten", "stem_norm": False, "stem_frozen": True}


@pytest.mark.parametrize(
    ("channels", "published", "macs"),
    [
        ([64, 256, 256], 3_188_728, 160_651_552),
        ([96, 256, 320], 4_173_464, 217_816_736),
        ([128, 256, 320], 4_383_224, 270_078_368),
        ([128, 384, 512], 9_915_704, 451_967_264),  # airbench96 itself
    ],
)
def test_airbench96_and_slimmer_ones_have_their_published_counts(channels, published, macs):
    """Which leave out the scales of the norms, all 1 there; its linear layer has no bias."""
    design = Design.of(stages=3, blocks=1, channels=channels, downsample="pool", **WHITENED)
    scales = sum(each.outputs for each in design.convolutions() if each.has_norm)

    assert (scales, design.stem_width) == (3 * sum(channels), 24)
    assert design.parameters - scales - design.classes == published
    assert design.macs == macs
    assert design.trainable == design.parameters - 24 * 12


def test_frozen_scales_are_counted_and_not_trained():
    spec = {"stages": 2, "blocks": 1, "width": 4}
    design = Design.of(**spec, norm_scale="frozen")

    assert design.parameters == Design.of(**spec).parameters
    assert design.parameters - design.trainable == 3 * 4 + 3 * 8  # the stem's, four, the skip's


def test_stem_without_norm_is_counted_by_hand():
    plain = Design.of(stages=2, blocks=1, width=4)
    design = Design.of(stages=2, blocks=1, width=4, stem_kernel=2, stem_norm=False)

    assert plain.parameters - design.parameters == 4 * 3 * (9 - 4) + 4
    assert [each.size for each in design.convolutions()] == [31, 31, 31, 16, 16, 16]
    assert design.trainable == design.parameters


@pytest.mark.parametrize(("kernel", "width"), [(2, 24), (3, 54), (5, 150)])
def test_whitened_stem_is_as_wide_as_its_filters(kernel, width):
    spec = {"stages": 2, "blocks": 1, "width": 8, "stem_init": "whiten", "stem_kernel": kernel}

    assert Design.of(**spec).stem_width == width
    assert Design.of(**spec, stem_width=width) == Design.of(**spec)
    with pytest.raises(UserError, match=rf"which makes {width} filters .* remove it, or give"):
        Design.of(**spec, stem_width=width - 1)


def test_width_of_whitened_stem_does_not_follow_budget():
    """It has 24 filters, which may be as many as the first stage has by chance."""
    design = Design.of(stages=2, blocks=1, width=24, stem_init="whiten", stem_kernel=2)
    fits = widest(20_000, stages=2, blocks=1, stem_init="whiten", stem_kernel=2)

    assert over_budget(design, 20_000).endswith(
        f"type --set student.width={fits}, the widest that fits"
    )


def test_a_pooled_stage_by_hand():
    # Stem 3*4*9 + 8 at 32x32. Stage 1: 4*4*9 + 8 at 32x32, two of 4*4*9 + 8 at 16x16. Stage 2:
    # 4*8*9 + 16 at 16x16, no block. Linear layer 8*10 + 10.
    design = Design.of(stages=2, blocks=[1, 0], width=4, downsample="pool")

    assert design.parameters == 116 + 3 * 152 + 304 + 90
    assert design.macs == (108 + 144) * 32**2 + (288 + 288) * 16**2 + 80


def test_pool_drops_the_remainder():
    design = Design.of(stages=2, blocks=1, width=4, downsample="pool", stage_strides=[3, 2], pool=1)

    assert [each.size for each in design.convolutions()] == [32, 32, 10, 10, 10, 5, 5]
    assert design.features == 8 * 5**2


POOLED = {"stages": 3, "blocks": 2, "width": 8, "downsample": "pool"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsample": "max"}, 'downsample = \'max\' must be "stride" or "pool"'),
        ({"blocks": [0, 0, 0]}, r"blocks = \[0, 0, 0\] has no residual block; give one stage 1"),
        ({"blocks": 0}, "blocks = 0 must be a positive integer or a list"),
        ({"blocks": [1, -1, 0]}, r"blocks = \[1, -1, 0\] must be a positive integer or a list"),
        ({"blocks": [1, False, 1]}, r"blocks = \[1, False, 1\] must be a positive integer"),
        ({"blocks": [1, 0]}, r"blocks = \[1, 0\] has length 2; stages is 3"),
        (
            {"downsample": "stride", "blocks": [1, 0, 1]},
            "must be a positive integer or a list of them, one per stage; a stage without blocks "
            'needs downsample = "pool"',
        ),
        ({"skip_kernel": 3}, 'skip_kernel = 3 has no effect with downsample = "pool", whose'),
        ({"skip_kernel": [1, 3, 1]}, r"skip_kernel = \[1, 3, 1\] has no effect"),
        (
            {"stage_strides": [2, 20, 2]},
            r"stage_strides = \[2, 20, 2\] pool a 32x32 map to nothing; use fewer stages, or",
        ),
        ({"stages": 6, "width": 1}, "stages = 6 pool a 32x32 map to nothing"),
        ({"pool": 5}, "pool = 5 is larger than the last map, 4x4"),
    ],
)
def test_faulty_pooled_spec_is_refused_with_its_value(change, message):
    with pytest.raises(UserError, match="1 fault in the student's design:\n  ") as caught:
        Design.of(**(POOLED | change))

    assert re.search(message, str(caught.value))


GOOD = {"stages": 3, "blocks": 2, "width": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": 0}, "stages = 0 must be a positive integer"),
        ({"stages": 2.0}, "stages = 2.0 must be a positive integer"),
        ({"blocks": -1}, "blocks = -1 must be a positive integer or a list"),
        ({"blocks": [1, 0, 1]}, r"blocks = \[1, 0, 1\] must be a positive integer or a list"),
        ({"blocks": [1, 2]}, r"blocks = \[1, 2\] has length 2; stages is 3"),
        ({"kernel": [3, 3, 3, 5]}, r"kernel = \[3, 3, 3, 5\] has length 4; stages is 3"),
        ({"stage_strides": [1]}, r"stage_strides = \[1\] has length 1; stages is 3"),
        ({"width": 0}, "width = 0 must be a positive integer"),
        ({"width": True}, "width = True must be a positive integer"),
        ({"width": None}, "neither width nor channels is given; width = 64 doubles"),
        ({"channels": [8, 8, 8]}, r"width = 8 and channels = \[8, 8, 8\] exclude each other"),
        ({"width": None, "channels": 9}, "channels = 9 must be a list, one per stage"),
        ({"kernel": 4}, "kernel = 4 must be odd"),
        ({"skip_kernel": [1, 2, 1]}, r"skip_kernel = \[1, 2, 1\] must be odd"),
        ({"stem_kernel": 6}, "stem_kernel = 6 must be odd or 2, which has no padding"),
        ({"norm_scale": "fixed"}, 'norm_scale = \'fixed\' must be "trained" or "frozen"'),
        ({"stem_init": "zca"}, 'stem_init = \'zca\' must be "random" or "whiten"'),
        ({"stem_width": -3}, "stem_width = -3 must be a positive integer"),
        ({"stem_stride": 0}, "stem_stride = 0 must be a positive integer"),
        ({"convs_per_block": 1}, "convs_per_block = 1 must be 2 or more"),
        ({"classes": 0}, "classes = 0 must be a positive integer"),
        ({"image_size": 0}, "image_size = 0 must be a positive integer"),
        ({"pool": 9}, 'pool = 9 is larger than the last map, 8x8; "global" fits any'),
        ({"pool": "all"}, "pool = 'all' must be \"global\" or a positive integer"),
        ({"pool": 0}, 'pool = 0 must be "global" or a positive integer'),
    ],
)
def test_a_faulty_spec_is_refused_with_its_value(change, message):
    with pytest.raises(UserError, match=f"1 fault in the student's design:\n  {message}"):
        Design.of(**(GOOD | change))


def test_all_faults_come_in_one_message():
    with pytest.raises(UserError, match="6 faults") as caught:
        Design.of(
            stages=3,
            blocks=[1, 1],
            width=8,
            channels=[8, 16],
            kernel=2,
            convs_per_block=0,
            pool=99,
        )

    lines = str(caught.value).splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        "blocks",
        "channels",
        "width",
        "kernel",
        "convs_per_block",
        "pool",
    ]


SPECS = st.integers(1, 3).flatmap(
    lambda stages: st.fixed_dictionaries(
        {
            "stages": st.just(stages),
            "blocks": st.lists(st.integers(1, 2), min_size=stages, max_size=stages),
            "kernel": st.sampled_from([1, 3]),
            "skip_kernel": st.sampled_from([1, 3]),
            "stem_width": st.sampled_from([None, 1, 16]),
            "stem_stride": st.integers(1, 2),
            "pool": st.sampled_from(["global", 1, 4]),
        }
    )
)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(spec=SPECS, max_params=st.integers(0, 3_000))
def test_widest_misses_no_wider_legal_width(spec, max_params):
    legal = [w for w in range(1, 80) if Design.of(width=w, **spec).parameters < max_params]

    assert Design.of(width=80, **spec).parameters > 3_000
    assert widest(max_params, **spec) == max(legal, default=None)


@pytest.mark.parametrize("width", [2, 8, 11, 85])
def test_widest_is_strict(width):
    parameters = Design.of(stages=2, blocks=1, width=width).parameters

    assert widest(parameters, stages=2, blocks=1) == width - 1
    assert widest(parameters + 1, stages=2, blocks=1) == width


def test_widest_finds_width_without_skip_convolution():
    """A stem of 128 before one stage: 128 needs no skip, so it fits where 43 to 127 do not."""
    kernels = {"kernel": 1, "skip_kernel": 3, "stem_kernel": 3}
    spec = {"stages": 1, "blocks": 1, "stem_width": 128, **kernels}
    sizes = {width: Design.of(width=width, **spec).parameters for width in range(1, 200)}
    assert sizes[42] < 60_000 < sizes[43] and sizes[128] < 60_000 < sizes[127]
    assert widest(60_000, **spec) == 128


def test_widest_of_budget_below_width_1_is_none():
    assert widest(10, stages=2, blocks=1) is None


def test_widest_refuses_a_faulty_spec():
    with pytest.raises(UserError, match=r"channels = \[4, 8\] exclude each other"):
        widest(10_000, stages=2, blocks=1, channels=[4, 8])


def test_a_design_within_the_budget_has_no_message():
    student = Design.of(stages=2, blocks=1, width=8)

    assert over_budget(student, student.parameters + 1) is None
    assert over_budget(student, student.parameters) is not None


def test_over_budget_names_excess_and_fitting_width():
    spec = {"stages": 3, "blocks": [4, 4, 3]}
    message = over_budget(Design.of(width=70, **spec), 5_000_000)

    fits = widest(5_000_000, **spec)
    excess = Design.of(width=70, **spec).parameters - 4_999_999
    assert Design.of(width=fits, **spec).parameters < 5_000_000
    assert Design.of(width=fits + 1, **spec).parameters >= 5_000_000
    assert f"{excess:,} too many for fewer than 5,000,000" in message
    assert message.endswith(
        f"type --set student.width={fits}, the widest that fits with a stem of this width"
    )


def test_over_budget_preserves_a_separate_stem_width():
    spec = {"stages": 3, "blocks": 4, "stem_width": 16}
    message = over_budget(Design.of(width=100, **spec), 1_000_000)

    assert message.endswith(
        f"type --set student.width={widest(1_000_000, **spec)}, the widest that fits"
    )


def test_over_budget_of_given_channels_is_reported():
    og_64 = Design.of(stages=3, blocks=[4, 5, 3], channels=[64, 128, 257])
    message = over_budget(og_64, 5_000_000)

    fits = widest(5_000_000, stages=3, blocks=[4, 5, 3])
    assert "its channels are given one by one" in message
    assert f"width = {fits}" in message


def test_over_budget_reports_that_no_width_fits():
    message = over_budget(Design.of(stages=3, blocks=2, width=4), 50)

    assert message.endswith("no width of these stages and blocks fits: use fewer stages or blocks")


def test_design_imports_no_torch():
    imported = set[str | None]()
    for module in (design_module, feature_map_sizes):
        tree = ast.parse(Path(module.__file__).read_text())
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}

    standard = {"collections.abc", "dataclasses", "math", "types", "typing"}
    assert imported == {*standard, "distill.errors", "students.feature_map_sizes"}
