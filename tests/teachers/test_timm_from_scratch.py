"""Networks of timm, adapted to small images and trained from scratch."""

import pytest
import torch

from distill.errors import UserError
from distill.training import start_notes
from networks.by_name import build
from teachers import timm_from_scratch
from teachers.timm_from_scratch import timm_classifier


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])  # without and with `img_size`
def test_a_classifier_takes_small_images(name):
    net = timm_classifier(name, classes=7)

    assert all(module.training for module in net.modules())
    assert net(torch.rand(3, 3, 32, 32)).shape == (3, 7)
    assert "normalize.std" in net.state_dict()


def test_image_size_is_passed_if_accepted():
    net = timm_classifier("test_vit", classes=10, image_size=48)

    assert net.net.patch_embed.img_size == (48, 48)
    assert net(torch.rand(2, 3, 48, 48)).shape == (2, 10)


def test_the_wrapper_normalises():
    net = timm_classifier("test_resnet", classes=10).eval()
    images = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1)

    torch.testing.assert_close(net(images), net.net((images - mean) / std))


def test_weights_come_from_the_random_state_alone():
    def first_weights(seed):
        torch.manual_seed(seed)
        return next(timm_classifier("test_resnet", classes=10).parameters())

    assert torch.equal(first_weights(1), first_weights(1))
    assert not torch.equal(first_weights(1), first_weights(2))


def test_trial_forward_preserves_batch_norms():
    buffers = dict(timm_classifier("test_resnet", classes=10).named_buffers())
    counts = [value for name, value in buffers.items() if name.endswith("num_batches_tracked")]

    assert counts
    assert all(count == 0 for count in counts)


@pytest.mark.long
def test_network_failing_on_small_images_is_refused():
    with pytest.raises(
        UserError,
        match=r"timm/inception_v3 does not take 32x32 images: RuntimeError: .*Kernel size",
    ):
        timm_classifier("inception_v3", classes=10)


def test_network_not_buildable_small_is_refused():
    with pytest.raises(UserError, match="timm/test_vit does not take 0x0 images: "):
        timm_classifier("test_vit", classes=10, image_size=0)


def test_network_that_is_not_a_classifier_is_refused(monkeypatch):
    maps = torch.nn.Conv2d(3, 10, 3)
    monkeypatch.setattr(timm_from_scratch.timm, "create_model", lambda *_args, **_options: maps)

    with pytest.raises(
        UserError, match=r"not a classifier: two images gave \[2, 10, 30, 30\] instead"
    ):
        timm_classifier("test_resnet", classes=10)


def test_other_type_errors_are_not_swallowed(monkeypatch):
    calls = []

    def create_model(_name, **options):
        calls.append(options)
        raise TypeError("classes must be even")

    monkeypatch.setattr(timm_from_scratch.timm, "create_model", create_model)
    with pytest.raises(UserError, match="TypeError: classes must be even"):
        timm_classifier("test_resnet", classes=9)
    assert len(calls) == 1


def test_pretrained_weights_are_refused():
    with pytest.raises(
        UserError, match=r'pretrained weights "a1_in1k".*scratch; type timm/resnet18$'
    ):
        build("timm/resnet18.a1_in1k")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(
        UserError, match=r"timm/resnt18 is not one of timm's \d+ networks; .*/resnet18"
    ):
        build("timm/resnt18")


def test_name_without_near_match_suggests_resnet18():
    with pytest.raises(UserError, match=r"timm/@@@@ is not one of .*; try timm/resnet18$"):
        timm_classifier("@@@@", classes=10)


def test_timm_by_name():
    net = build("timm/test_resnet", classes=3)

    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_dropout_is_refused_for_timm():
    with pytest.raises(UserError, match="dropout = 0.2 belongs to wrn; timm/test_resnet takes 0"):
        build("timm/test_resnet", dropout=0.2)


@pytest.mark.parametrize(
    ("network", "meant"),
    [("resnet18", "timm/resnet18"), ("wnr", "wrn"), ("????", "wrn")],
)
def test_an_unknown_network_is_refused_with_the_nearest(network, meant):
    with pytest.raises(UserError) as caught:
        build(network)

    assert f'network = "{network}" is unknown; did you mean' in str(caught.value)
    assert meant in str(caught.value)


def test_a_network_of_few_patches_is_noted():
    [note] = start_notes._patches_note(timm_classifier("test_vit", 10))
    assert note.startswith("the network divides an image into only 2x2 patches")
    assert list(start_notes._patches_note(timm_classifier("test_vit", 10, image_size=64))) == []
    assert list(start_notes._patches_note(timm_classifier("test_resnet", 10))) == []
