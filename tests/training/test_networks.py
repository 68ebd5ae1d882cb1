"""Networks: ours give what torchvision's give with the same weights; what each is made of; theirs seen as ours."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from lookalike.errors import ConfigError, TrainingError
from lookalike.images import Preprocessing
from lookalike.training.networks import Network, build, channel_shuffle, defaults, names, nearest, option_types, sketch
from lookalike.training.networks.external import SameConv2d
from lookalike.training.networks.shufflenet import UnitV1
from lookalike.training.networks.small import Block

SHUFFLENETS = ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"]
OWN = ["alexnet", "vgg16", "vgg16_bn", "resnet50", "shufflenet_v1", *SHUFFLENETS, "small", "mobilenet_v2_tf"]
# The smallest pictures on which each still has a feature map, and an odd shape.
SIZE = (64, 70)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm statistics and scales: as they come, all are 0 and 1, and a swap would not be seen."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data):
                values.copy_(0.1 * torch.randn(values.shape, generator=generator))
            for values in (module.running_var, module.weight.data):
                values.copy_(0.75 + 0.5 * torch.rand(values.shape, generator=generator))
    return network


def pixels(channels: int = 3, size: tuple[int, int] = SIZE, n: int = 2) -> torch.Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(1))


def published(name: str, classes: int) -> nn.Module:
    settings = {"init_weights": False} if name.startswith("vgg") else {}
    return randomised(torchvision.models.get_model(name, weights=None, num_classes=classes, **settings))


def published_maps(name: str, network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Torchvision's feature maps: all that comes before pooling and classifier."""
    for part, module in network.named_children():
        if part not in ("avgpool", "classifier", "fc"):
            x = module(x)
    return x


@pytest.mark.parametrize(
    ("name", "train"),
    [("resnet50", False), ("resnet50", True), *((name, False) for name in SHUFFLENETS), (SHUFFLENETS[0], True)],
)
def test_ours_answer_as_torchvisions_with_the_same_weights(name, train):
    """Feature maps and logits are equal, from a strictly loaded state_dict, on statistics stored or of the batch."""
    theirs = published(name, classes=7).train(train)
    ours = build(name, classes=7).train(train)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        expected = published_maps(name, copy.deepcopy(theirs), pixels())
        logits = theirs(pixels())

        torch.testing.assert_close(copy.deepcopy(ours).features(pixels()), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(pixels()), logits, atol=1e-5, rtol=1e-5)
    for key, value in theirs.state_dict().items():  # running statistics moved alike
        torch.testing.assert_close(ours.state_dict()[key], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["alexnet", pytest.param("vgg16", marks=pytest.mark.slow), pytest.param("vgg16_bn", marks=pytest.mark.slow)],
)
def test_fully_connected_classifiers_answer_as_torchvisions(name):
    """AlexNet and VGG16 give torchvision's logits."""
    theirs = published(name, classes=5).eval()
    ours = build(name, classes=5).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(pixels()), theirs.features(pixels()), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(pixels()), theirs(pixels()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg16_sees_as_torchvisions(name, train):
    """Its feature maps are torchvision's (the classifier, with its 120 million parameters, is left to a slow test)."""
    ours = randomised(build(name)).train(train)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).features
    theirs = theirs.to_empty(device="cpu").train(train)
    theirs.load_state_dict(ours.features.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(pixels()), theirs(pixels()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OWN)
def test_shapes(name, channels):
    """Feature maps have `width` channels, for one channel and three; without a classifier there are no logits."""
    network = build(name, channels=channels).eval()
    with torch.no_grad():
        maps = network.features(pixels(channels))

    assert maps.shape[:2] == (2, network.width)
    assert network.channels == channels
    with pytest.raises(ValueError, match="classes"):
        network(pixels(channels))


@pytest.mark.parametrize("name", ["shufflenet_v1", "small", "mobilenet_v2_tf", "torchvision:squeezenet1_1"])
def test_classifiers(name):
    """With `classes` there are logits; dropping the classifier leaves the features, and fewer parameters."""
    network = build(name, classes=4).eval()
    maps = network.features(pixels())
    with_classifier = len(list(network.parameters()))

    assert network(pixels()).shape == (2, 4)
    network.drop_classifier()
    assert torch.equal(network.features(pixels()), maps)
    assert len(list(network.parameters())) < with_classifier
    with pytest.raises(ValueError, match="classes"):
        network(pixels())


@pytest.mark.parametrize("name", [*OWN, "timm:convnext_atto", "timm:test_vit"])
def test_stages_hold_every_parameter_once(name):
    """Stages, from input to output, partition what the features depend on: freezing and rates reach all of it."""
    network = build(name)
    network.drop_classifier()
    staged = [id(p) for stage in network.stages() for p in stage.parameters()]
    expected = {id(p) for n, p in network.named_parameters() if n not in network.unused()}

    assert len(network.stages()) >= 4
    assert len(staged) == len(set(staged))
    assert expected <= set(staged)


@pytest.mark.parametrize("name", ["resnet50", "shufflenet_v1", "small", "torchvision:squeezenet1_1", "timm:resnet18"])
def test_stages_come_in_order(name):
    """What an early stage computes does not depend on a later stage."""
    network = build(name).eval()
    order: list[int] = []
    for number, stage in enumerate(network.stages()):
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda *_, number=number: order.append(number))
    with torch.no_grad():
        network.features(pixels())

    assert order == sorted(order)
    assert set(order) == set(range(len(network.stages())))


def test_the_seed_alone_decides_the_random_weights():
    """Equal seeds give equal networks, others others, and torch's global generator is left as it was."""
    before = torch.get_rng_state()
    one, same, other = (build("shufflenet_v2_x0_5", seed=seed).conv5[0].weight for seed in (3, 3, 4))

    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


# ── channel shuffle ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (12, 3), (8, 8), (5, 1)])
def test_channel_shuffle_is_the_loop_over_channels(channels, groups):
    """Channel i of group g goes to i · groups + g, as in torch's own."""
    maps = pixels(channels, (3, 2))
    expected = torch.empty_like(maps)
    each = channels // groups
    for group in range(groups):
        for i in range(each):
            expected[:, i * groups + group] = maps[:, group * each + i]

    assert torch.equal(channel_shuffle(maps, groups), expected)
    assert torch.equal(channel_shuffle(maps, groups), nn.ChannelShuffle(groups)(maps))
    innermost = channel_shuffle(maps.contiguous(memory_format=torch.channels_last), groups)
    assert torch.equal(innermost, expected)
    assert innermost.is_contiguous(memory_format=torch.channels_last)


# ── ShuffleNet v1 ────────────────────────────────────────────────────────────────────────────────────────────────────

TABLE = {1: (144, 288, 576), 2: (200, 400, 800), 3: (240, 480, 960), 4: (272, 544, 1088), 8: (384, 768, 1536)}


@pytest.mark.parametrize(
    ("groups", "scale"), [*((groups, 1.0) for groups in TABLE), (3, 0.25), (4, 0.25), (8, 0.5), (3, 1.5), (8, 2.0)]
)
def test_shufflenet_v1_has_the_channels_of_the_papers_table(groups, scale):
    """Stages have 4, 8 and 4 units and the table's channels, times the scale; each stage halves the picture."""
    with torch.device("meta"):
        network = build("shufflenet_v1", groups=groups, scale=scale).eval()
        maps = network.stem(torch.zeros(1, 3, 64, 64))
        side = 16
        for stage, width, units in zip(network.stages()[1:], TABLE[groups], (4, 8, 4), strict=True):
            maps, side = stage(maps), side // 2

            assert len(stage) == units
            assert maps.shape == (1, round(width * scale), side, side)


def test_shufflenet_v1_groups_every_pointwise_convolution_but_the_first():
    """1 × 1 convolutions have 3 groups, except the first of stage 2; 3 × 3 ones are depthwise."""
    network = build("shufflenet_v1", groups=3)
    units = [unit for stage in network.stages()[1:] for unit in stage]

    assert [unit.reduce[0].groups for unit in units] == [1] + [3] * 15
    assert all(unit.expand[0].groups == 3 for unit in units)
    assert all(unit.depthwise[0].groups == unit.depthwise[0].in_channels for unit in units)
    assert units[5].reduce[0].out_channels == 480 // 4


def test_shufflenet_v1_concatenates_where_it_halves_and_adds_elsewhere():
    """With a branch that gives nothing, a stride-2 unit gives the averaged input and zeros; another gives its input."""
    x = pixels(6, (8, 8)).abs()
    halving, adding = (UnitV1(6, outputs, 3, stride, 3).eval() for outputs, stride in ((24, 2), (6, 1)))
    for unit in (halving, adding):
        unit.expand[1].weight.data.zero_()
    halved = halving(x)

    torch.testing.assert_close(halved[:, :6], nn.functional.avg_pool2d(x, 3, 2, 1))
    assert halved.shape == (2, 24, 4, 4)
    assert not halved[:, 6:].any()
    torch.testing.assert_close(adding(x), x)


def test_shufflenet_v1_shuffles_between_its_two_pointwise_convolutions():
    """A change of the first group's input reaches outputs of every group."""
    unit = UnitV1(36, 36, 3, 1, 3).eval()
    x = pixels(36, (4, 4))
    changed = x.clone()
    changed[:, :12] += 1
    difference = (unit(changed) - unit(x)).reshape(2, 3, -1).abs().amax((0, 2))

    assert (difference > 0).all()


# ── the small network ────────────────────────────────────────────────────────────────────────────────────────────────


def test_small_network_is_what_its_options_say():
    """Widths and blocks per stage as given; the picture is halved between stages, and by the stem."""
    network = build("small", channels=1, widths=(8, 16, 24, 32), blocks=(1, 2, 1, 3), stem_stride=1).eval()
    maps, shapes = pixels(1, (40, 21)), []
    for stage in network.stages():
        maps = stage(maps)
        shapes.append(tuple(maps.shape[1:]))

    assert shapes == [(8, 40, 21), (8, 40, 21), (16, 20, 11), (24, 10, 6), (32, 5, 3)]
    assert [len(stage) for stage in network.body] == [1, 2, 1, 3]
    assert network.width == 32


def test_a_block_adds_its_branch_to_its_input():
    """With a branch that gives nothing, a block of equal shape gives its positive input."""
    block = Block(4, 4, 3, 1).eval()
    block.branch[-1].weight.data.zero_()

    torch.testing.assert_close(block(pixels(4, (6, 6))), pixels(4, (6, 6)).relu())


@pytest.mark.parametrize(
    "options", [{"widths": ()}, {"widths": (8, 0)}, {"blocks": (1, 2)}, {"kernel": 4}, {"stem_stride": 0}]
)
def test_impossible_small_networks_are_refused(options):
    """Options that make no network are the user's error, with the values."""
    with pytest.raises(ConfigError, match="got"):
        build("small", **options)


# ── TensorFlow's padding ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 9), (8, 9), (1, 2)])
def test_same_padding_is_tensorflows(height, width):
    """Output has ⌈side / 2⌉ pixels; the padding's larger half is right and below, as TensorFlow's formula says."""
    convolution = SameConv2d(2, 3, 3, stride=2, padding=1, bias=False)
    x = pixels(2, (height, width))
    total = [max((-(-side // 2) - 1) * 2 + 3 - side, 0) for side in (width, height)]
    padding = [part for t in total for part in (t // 2, t - t // 2)]
    expected = nn.functional.conv2d(nn.functional.pad(x, padding), convolution.weight, stride=2)

    torch.testing.assert_close(convolution(x), expected)
    assert expected.shape[2:] == (-(-height // 2), -(-width // 2))


def test_mobilenet_v2_tf_pads_only_its_stride_2_convolutions():
    """Five convolutions are TensorFlow's; names are torchvision's."""
    network = build("mobilenet_v2_tf", classes=1000)

    assert sum(isinstance(m, SameConv2d) for m in network.modules()) == 5
    assert network.published().state_dict().keys() == torchvision.models.mobilenet_v2().state_dict().keys()


# ── torchvision's and timm's ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["densenet121", "squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf"])
def test_torchvisions_features_are_what_its_classifier_sees(name):
    """Pooled and classified as torchvision does, our feature maps give its logits."""
    network = build(f"torchvision:{name}", classes=6).eval()
    net, x = network.net, pixels()
    with torch.no_grad():
        maps = network.features(x)
        if name == "squeezenet1_1":
            logits = net.classifier(maps).flatten(1)
        else:
            logits = getattr(net, "classifier", None) or net.fc
            logits = logits(maps.mean((2, 3)))

        torch.testing.assert_close(logits, net(x))


def test_timms_convolutional_networks_give_maps():
    """Feature maps are channels first, and are timm's own."""
    network = build("timm:resnet18", channels=1).eval()
    with torch.no_grad():
        maps = network.features(pixels(1))

        assert torch.equal(maps, network.net.forward_features(pixels(1)))
    assert maps.shape == (2, 512, 2, 3)
    assert not network.tokens


def test_timms_channels_last_networks_give_maps_with_channels_first():
    """A Swin transformer's maps are turned; timm's pooling of its own form gives the same."""
    network = build(
        "timm:test_swin" if _has("test_swin") else "timm:swin_tiny_patch4_window7_224", size=(64, 64)
    ).eval()
    x = pixels(3, (64, 64))
    with torch.no_grad():
        maps = network.features(x)
        expected = network.net.forward_head(network.net.forward_features(x), pre_logits=True)

    assert maps.shape[1] == network.width
    torch.testing.assert_close(maps.mean((2, 3)), expected)


def test_timms_transformers_pool_their_tokens_themselves():
    """A vision transformer's features are what its own classifier would see: one vector."""
    network = build("timm:test_vit", channels=1, size=(96, 64)).eval()
    x = pixels(1, (96, 64))
    with torch.no_grad():
        features = network.features(x)
        expected = network.net(x)  # without a classifier: what goes into it

    assert network.tokens
    assert features.shape == (2, network.width, 1, 1)
    torch.testing.assert_close(features[:, :, 0, 0], expected)


def test_parameters_that_features_do_not_need_are_known():
    """ConvNeXt's last normalisation comes after pooling: no gradient would ever reach it."""
    network = build("timm:convnext_atto")
    network.features(pixels()).sum().backward()

    assert network.unused() == {n for n, p in network.named_parameters() if p.grad is None}
    assert network.unused()


def test_timm_networks_without_one_tensor_of_features_are_refused():
    """Two branches of tokens are nothing to pool."""
    with pytest.raises(TrainingError, match="choose another"):
        build("timm:crossvit_9_240")


def _has(name: str) -> bool:
    import timm

    return bool(timm.is_model(name))


# ── names, options, preprocessing ────────────────────────────────────────────────────────────────────────────────────


def test_every_name_is_tested_here():
    """`names` lists the networks this file knows."""
    assert sorted(names()) == sorted(OWN)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("resnet5", "resnet50"),
        ("mobilenet_v2", "torchvision:mobilenet_v2"),
        ("torchvision:resnet81", "torchvision:resnet18"),
        ("timm:resnt18", "timm:resnet18"),
        ("nonsense!", "alexnet"),
        ("torchvision:vit_b_16", "torchvision:"),
    ],
)
def test_unknown_names_come_with_the_nearest(wrong, right):
    """What is wrong is said together with what was perhaps meant."""
    assert right in str(nearest(wrong))
    with pytest.raises(ConfigError, match="unknown"):
        build(wrong)


@pytest.mark.parametrize("name", [*OWN, "torchvision:resnet18", "timm:resnet18", "timm:resnet18.a1_in1k"])
def test_known_names_are_known(name):
    """Nothing is wrong with a name that `build` takes."""
    assert nearest(name) is None


def test_options_are_those_of_the_network():
    """Each network's own options are listed with their types; others are refused by name."""
    assert set(option_types("shufflenet_v1")) == {"groups", "scale"}
    assert set(option_types("small")) == {"widths", "blocks", "kernel", "stem_kernel", "stem_stride"}
    assert option_types("shufflenet_v2_x1_0") == option_types("resnet50") == option_types("timm:resnet18") == {}
    assert option_types("small")["widths"] == tuple[int, ...]
    with pytest.raises(ConfigError, match="groups"):
        build("resnet50", groups=3)
    with pytest.raises(ConfigError, match="1, 2, 3, 4, 8"):
        build("shufflenet_v1", groups=5)
    with pytest.raises(ConfigError, match="channels"):
        build("resnet50", channels=4)


@pytest.mark.parametrize(
    "name", ["vgg16", "small", "torchvision:densenet121", "timm:test_vit", "timm:test_efficientnet"]
)
def test_a_sketch_is_like_its_network(name):
    """Width, stages and whether there are tokens, of shapes without numbers; torch's generator is left as it was."""
    state = torch.get_rng_state()
    drawn, network = sketch(name, size=(64, 64)), build(name, size=(64, 64))

    assert drawn is not None
    assert all(parameter.is_meta for parameter in drawn.network.parameters())
    assert (drawn.width, drawn.stages, drawn.tokens) == (network.width, len(network.stages()), network.tokens)
    assert drawn.refusal((64, 64)) == ""
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sketch_says_which_pictures_its_network_does_not_take():
    """Those that it was not built for, and those that are too small, in the network's own words."""
    fixed = sketch("timm:vit_tiny_patch16_224", size=(96, 96))
    small = sketch("alexnet")

    assert fixed is not None and small is not None
    assert fixed.refusal((96, 96)) == "" and "(64)" in fixed.refusal((64, 96))
    assert small.refusal((64, 64)) == "" and "too small" in small.refusal((16, 16))


def test_what_cannot_be_drawn_up_is_refused_like_the_network(monkeypatch):
    """Options that make no sense; a network that timm fails to make. Only what needs numbers is not known."""
    with pytest.raises(ConfigError, match="must be odd"):
        sketch("small", options={"kernel": 2})
    with pytest.raises(ConfigError, match="resnet50"):
        sketch("resnet5")
    import timm

    for error, known in [(NotImplementedError("Cannot copy out of meta tensor"), True), (KeyError("width"), False)]:
        monkeypatch.setattr(timm, "create_model", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        if known:
            assert sketch("timm:test_vit") is None
        else:
            with pytest.raises(ConfigError, match=r"timm cannot make 'test_vit': 'width'"):
                sketch("timm:test_vit")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name", [*OWN, "torchvision:mobilenet_v3_large", "timm:test_vit", "timm:swin_tiny_patch4_window7_224"]
)
def test_defaults_are_a_preprocessing(name, channels):
    """The defaults of every network make a valid preprocessing; for one channel, all three are normalised alike."""
    preparation = Preprocessing(**defaults(name, channels))

    assert channels == 3 or len({*preparation.mean}) == len({*preparation.std}) == 1


def test_defaults_are_as_published():
    """ImageNet's mean for torchvision's, the weights' own values for timm's, -1 … 1 for TensorFlow's."""
    assert defaults("resnet50")["mean"] == (0.485, 0.456, 0.406)
    assert defaults("torchvision:efficientnet_b3")["size"] == (300, 300)
    assert defaults("timm:beit_base_patch16_224")["mean"] == (0.5, 0.5, 0.5)
    assert defaults("timm:test_vit")["size"] == (160, 160)
    tensorflow = Preprocessing(**defaults("mobilenet_v2_tf"))
    everything = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    np.testing.assert_allclose(tensorflow.normalise(everything)[0, 0].ravel(), np.arange(256) / 127.5 - 1, atol=1e-6)


def test_networks_run_in_bfloat16_and_channels_last():
    """Under autocast, and on channels-last pictures, forward and backward work and stay close to float32."""
    network: Network = build("shufflenet_v2_x0_5").eval().to(memory_format=torch.channels_last)
    x = pixels(n=4).contiguous(memory_format=torch.channels_last)
    expected = network.features(x).mean((2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        pooled = network.features(x).mean((2, 3))
    pooled.float().sum().backward()

    assert pooled.dtype == torch.bfloat16
    assert nn.functional.cosine_similarity(pooled.float(), expected).min() > 0.99
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
