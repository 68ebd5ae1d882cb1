"""EmbeddingNetwork: pooling, heads, views, unit length; what rests and what learns; the graph answers as it does."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lookalike.errors import ConfigError
from lookalike.training.networks import EmbeddingNetwork, Network, Serving, Views, build, pooling, small_views
from lookalike.training.networks.embedding import unit_rows
from lookalike.training.networks.heads import SkipHead, principal_directions

WIDTHS = (8, 12, 16)


def small(channels: int = 1, seed: int = 0, **options: object) -> Network:
    return build("small", channels=channels, widths=WIDTHS, blocks=1, seed=seed, **options)


def pixels(n: int = 4, channels: int = 1, size: tuple[int, int] = (32, 24), seed: int = 1) -> torch.Tensor:
    noise = torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 5, 1, 2) * 3  # smooth, as pictures are


# ── pooling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "naive"),
    [
        ("average", lambda m: m.mean()),
        ("max", lambda m: m.max()),
        ("average+max", lambda m: m.mean() + m.max()),
        ("gem", lambda m: (m.clip(1e-6) ** 3).mean() ** (1 / 3)),
    ],
)
def test_pooling_is_its_formula(kind, naive):
    """Each channel of each picture is pooled by itself."""
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = [[naive(channel) for channel in picture] for picture in maps.double().numpy()]

    torch.testing.assert_close(pooling(kind, 3)(maps).double(), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_grid_pooling_keeps_position():
    """Channel by channel, row by row: the means of the parts of the picture."""
    maps = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(1, 2, 4, 6)
    pooled = pooling("grid:2", 2)(maps)
    expected = [
        maps[0, c, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean() for c in range(2) for i in (0, 1) for j in (0, 1)
    ]

    assert pooling("grid:2", 2).factor == 4
    torch.testing.assert_close(pooled[0], torch.stack(expected))


def test_attention_pooling_is_a_mean_with_learned_weights():
    """Each mean is weighted by a softmax over places of a linear function of the features there."""
    dice = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, 5, generator=dice)
    pool = pooling("attention:2", 3)
    pool.weights.weight.data.normal_(generator=dice)
    expected = torch.zeros(2, 3, 2)
    for n, head in np.ndindex(2, 2):
        places = maps[n].reshape(3, 20)
        weight = [math.exp(float(pool.weights.weight[head, :, 0, 0].detach() @ place)) for place in places.T]
        for place in range(20):
            expected[n, :, head] += weight[place] / sum(weight) * places[:, place]

    assert pool.factor == 2
    torch.testing.assert_close(pool(maps), expected.reshape(2, 6))


def test_attention_pooling_starts_as_the_average():
    """At step 0 every mean is the plain one, so that the ranking is the base's; then the weights learn."""
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    pool = pooling("attention:2", 3)
    pooled = pool(maps)
    (pooled * torch.arange(6)).sum().backward()

    torch.testing.assert_close(pooled, maps.mean((2, 3)).repeat_interleave(2, 1))
    assert (pool.weights.weight.grad != 0).all()


@pytest.mark.parametrize("p", [1.0, 3.0, 60.0])
def test_gem_learns_p_without_overflow(p):
    """From the mean (p = 1) to nearly the maximum, on large, tiny and negative values, gradients stay finite."""
    pool = pooling("gem", 2)
    pool.p.data.fill_(p)
    values = torch.tensor([[1e4, 3.0, 1e-5, -2.0], [0.0, 0.0, 0.0, 0.0]]).reshape(1, 2, 2, 2).requires_grad_()
    pooled = pool(values)
    pooled.sum().backward()

    assert pooled.isfinite().all()
    assert pool.p.grad.isfinite().all()
    assert values.grad.isfinite().all()
    if p == 60:
        assert pooled[0, 0] > 0.95e4


@pytest.mark.parametrize("kind", ["mean", "grid:0", "grid:", "grid:x", "attention", "attention:0"])
def test_unknown_poolings_are_refused(kind):
    """A pooling nobody knows is a configuration error that lists them."""
    with pytest.raises(ConfigError, match="average, max"):
        EmbeddingNetwork(small(), dim=4, pool=kind)


# ── heads ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("pool", ["average", "max", "average+max", "gem", "grid:2", "attention:2"])
def test_embeddings_have_their_shape_and_length(pool, kind, skip, normalise):
    """(n, dim) whatever pooling and head, unit rows only where asked for; every parameter gets a gradient."""
    network = EmbeddingNetwork(small(), dim=10, pool=pool, head=kind, skip=skip, normalise=normalise)
    if skip:
        network.head.gate.data.fill_(0.5)
    rows = network(pixels())
    (rows * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))).sum().backward()

    assert rows.shape == (4, network.dim) == (4, 10)
    lengths = rows.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(4), atol=1e-6) is normalise
    assert all(p.grad is not None for p in network.parameters())


def test_head_none_gives_the_pooled_features():
    """Without a head the embedding is the pooled features, whatever `dim` says."""
    network = EmbeddingNetwork(small(), dim=99, head="none", normalise=False).eval()

    assert network.dim == network.width == WIDTHS[-1]
    assert torch.equal(network(pixels()), network.base.features(pixels()).mean((2, 3)))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("train", [False, True])
def test_a_skip_head_of_full_width_starts_as_the_base(kind, train):
    """At step 0 the embedding, and so the ranking, is the base's to the bit; then the gate learns, then the branch."""
    base = small()
    network = EmbeddingNetwork(base, dim=WIDTHS[-1], head=kind, skip=True).train(train)
    plain = EmbeddingNetwork(small(), head="none").train(train)
    optimiser = torch.optim.SGD(network.head.parameters(), lr=1.0)
    before = [p.detach().clone() for p in network.head.branch.parameters()]
    rows = network(pixels(8))

    assert torch.equal(rows, plain(pixels(8)))
    for _ in range(2):
        optimiser.zero_grad()
        (network(pixels(8)) ** 2 * torch.arange(WIDTHS[-1])).sum().backward()
        optimiser.step()
    assert network.head.gate.abs().min() > 0
    assert any(not torch.equal(p, old) for p, old in zip(network.head.branch.parameters(), before, strict=True))


def photographs_cut(photographs: list[Path], side: int = 64) -> torch.Tensor:
    """(n, 3, side, side): tiles of photographs, normalised roughly."""
    tiles = []
    for path in photographs:
        picture = np.asarray(Image.open(path).convert("RGB").resize((4 * side, 4 * side)))
        tiles += [
            picture[i : i + side, j : j + side] for i in range(0, 4 * side, side) for j in range(0, 4 * side, side)
        ]
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("skip", [True, False])
def test_principal_directions_nearly_keep_the_ranking(photographs, skip):
    """Of 1,024 real features, 64 principal directions find the same first neighbour nine times in ten."""
    base = build("shufflenet_v2_x1_0", weights="default")
    network = EmbeddingNetwork(base, dim=64, skip=skip).eval()
    x = photographs_cut(photographs)
    with torch.no_grad():
        features = network.pooled(x)
        random = nearest_neighbours(network.project(features))
        network.initialise_from(features)
        rows = network.project(features)
        full = nearest_neighbours(unit_rows(features))

    assert len(x) > 100
    assert (nearest_neighbours(rows) == full).float().mean() >= 0.9
    assert (random == full).float().mean() < 0.9  # it is the directions that do it


def nearest_neighbours(rows: torch.Tensor) -> torch.Tensor:
    return (rows @ rows.T).fill_diagonal_(-2).argmax(1)


def test_principal_directions_are_those_of_the_svd():
    """Orthonormal, strongest first, equal to the singular vectors of the unit rows up to sign; centred on request."""
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) + 3
    for centre in (False, True):
        directions, mean = principal_directions(features, 4, centre=centre)
        rows = nn.functional.normalize(features - mean, dim=1)
        expected = torch.linalg.svd(rows, full_matrices=False).Vh[:4]

        torch.testing.assert_close((directions * expected).sum(1).abs(), torch.ones(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(directions @ directions.T, torch.eye(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(mean, features.mean(0) if centre else torch.zeros(6), atol=1e-5, rtol=0)


def test_a_centre_is_subtracted_by_both_heads():
    """Centred, linear and skip heads give the projected difference from the mean."""
    features = torch.randn(40, WIDTHS[-1], generator=torch.Generator().manual_seed(0)) + 2
    directions, mean = principal_directions(features, 5, centre=True)
    for skip in (True, False):
        network = EmbeddingNetwork(small(), dim=5, skip=skip, normalise=False).eval()
        network.initialise_from(features, centre=True)

        torch.testing.assert_close(network.project(features), (features - mean) @ directions.T, atol=1e-4, rtol=1e-4)


def test_a_projection_is_part_of_the_state():
    """What was set comes back with the state_dict: it was learned from pictures."""
    one, other = (EmbeddingNetwork(small(), dim=5, skip=True, seed=seed) for seed in (0, 1))
    one.initialise_from(torch.randn(20, WIDTHS[-1], generator=torch.Generator().manual_seed(0)))
    other.load_state_dict(one.state_dict())

    assert torch.equal(other.head.projection, one.head.projection)


def test_impossible_heads_are_refused():
    """A skip head cannot add numbers; nothing cannot start from directions; shapes must fit."""
    with pytest.raises(ConfigError, match="dim 17"):
        EmbeddingNetwork(small(), dim=17, skip=True)
    with pytest.raises(ConfigError, match="quadratic"):
        EmbeddingNetwork(small(), dim=8, head="quadratic")
    with pytest.raises(ConfigError, match="skip"):
        EmbeddingNetwork(small(), head="none", skip=True)
    with pytest.raises(ValueError, match="only a linear head"):
        EmbeddingNetwork(small(), dim=4, head="mlp").initialise_from(torch.randn(9, 16))
    with pytest.raises(ValueError, match=r"\(n, width\)"):
        EmbeddingNetwork(small(), dim=4).initialise_from(torch.randn(1, 16))
    with pytest.raises(ValueError, match=r"\(4, 16\), got \(4, 15\)"):
        SkipHead(16, 4, nn.Linear(16, 4)).set_projection(torch.zeros(4, 15))
    with pytest.raises(ConfigError, match="tokens"):
        EmbeddingNetwork(build("timm:test_vit", size=(64, 64)), dim=4, pool="gem")


def test_rows_without_length_stay_finite():
    """Zeros stay zeros, tiny rows get unit length down to 1e-6, gradients are finite, bfloat16 gives float32."""
    rows = torch.tensor([[0.0, 0.0], [3e-6, 4e-6], [3e8, 4e8]], requires_grad=True)
    result = unit_rows(rows)
    result.sum().backward()

    torch.testing.assert_close(result, torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.6, 0.8]]))
    assert rows.grad.isfinite().all()
    assert unit_rows(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32


# ── views ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_small_views_are_always_the_same_and_the_first_moves_nothing():
    """The identity first, then opposite pairs, all different and within the limits."""
    matrices = small_views(9, rotate=10, scale=0.1, shift=0.05)

    np.testing.assert_array_equal(matrices, small_views(9, rotate=10, scale=0.1, shift=0.05))
    np.testing.assert_array_equal(matrices[0], np.eye(2, 3))
    assert len(np.unique(matrices.reshape(9, -1), axis=0)) == 9
    angles = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    zooms = np.sqrt(np.linalg.det(matrices[:, :, :2].astype(np.float64)))
    assert np.abs(angles).max() <= 10
    assert np.abs(np.log(zooms)).max() <= np.log(1.1) + 1e-6
    assert np.abs(matrices[:, :, 2]).max() <= 0.1  # of coordinates that span 2
    np.testing.assert_allclose(angles[1::2], -angles[2::2], atol=1e-4)
    np.testing.assert_allclose(matrices[1::2, :, 2], -matrices[2::2, :, 2], atol=1e-6)
    with pytest.raises(ValueError, match="at least 1"):
        small_views(0)


@pytest.mark.parametrize("fill", [None, 0.7])
def test_views_are_torchs_affine_pictures(fill):
    """Each view is what affine_grid and grid_sample make of the picture, views of one picture next to each other."""
    matrices, x = small_views(4, rotate=20, shift=0.2), pixels(3, 2, (16, 16))
    made = Views(matrices, (16, 16), fill)(x)
    for number, picture in enumerate(x):
        for view, matrix in enumerate(matrices):
            grid = nn.functional.affine_grid(torch.tensor(matrix)[None], [1, 2, 16, 16], align_corners=False)
            if fill is None:
                one = nn.functional.grid_sample(picture[None], grid, padding_mode="border", align_corners=False)
            else:
                one = nn.functional.grid_sample(picture[None] - fill, grid, align_corners=False) + fill

            torch.testing.assert_close(made[4 * number + view], one[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made[0], x[0], atol=1e-5, rtol=1e-5)


def test_a_quarter_turn_keeps_shapes_on_pictures_that_are_not_square():
    """Turned by 90 degrees, a square stays a square: coordinates are those of pixels, not of the frame."""
    picture = torch.zeros(1, 1, 16, 32)
    picture[:, :, 4:12, 12:20] = 1
    turned = Views([[[0, -1, 0], [1, 0, 0]]], (16, 32))(picture)

    torch.testing.assert_close(turned, picture, atol=1e-5, rtol=0)


def test_views_are_averaged_in_evaluation_alone():
    """Evaluated, the embedding is the unit mean of the views' unit vectors; trained, it is that of the picture."""
    views = Views(small_views(3), (32, 24))
    network = EmbeddingNetwork(small(), dim=6, views=views).eval()
    plain = EmbeddingNetwork(small(), dim=6).eval()
    x = pixels()
    with torch.no_grad():
        each = plain(views(x)).reshape(4, 3, 6)

        torch.testing.assert_close(network(x), unit_rows(each.mean(1)))
        assert not torch.allclose(network(x), plain(x), atol=1e-4)
        assert torch.equal(network.train()(x), plain.train()(x))


def test_matrices_of_another_shape_are_refused():
    """Views are (views, 2, 3)."""
    with pytest.raises(ValueError, match=r"\(views, 2, 3\), got \(1, 3, 3\)"):
        Views(np.eye(3)[None], (8, 8))


# ── serving, export, compilation ─────────────────────────────────────────────────────────────────────────────────────


def test_serving_takes_three_channels():
    """A one-channel network is served the brightness; grey pictures give what the network itself gives."""
    network = EmbeddingNetwork(small(), dim=6).eval()
    x, colour = pixels(), pixels(channels=3)
    with torch.no_grad():
        torch.testing.assert_close(Serving(network)(x.repeat(1, 3, 1, 1)), network(x), atol=1e-5, rtol=1e-5)
        luma = 0.299 * colour[:, :1] + 0.587 * colour[:, 1:2] + 0.114 * colour[:, 2:]
        torch.testing.assert_close(Serving(network)(colour), network(luma), atol=1e-5, rtol=1e-5)
    three = EmbeddingNetwork(small(3), dim=6).eval()
    assert torch.equal(Serving(three)(colour), three(colour))


@pytest.fixture(scope="module", params=["gem", "attention:3"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A one-channel network with views and everything else that is particular, and its graph."""
    network = EmbeddingNetwork(small(), dim=12, pool=request.param, head="mlp", views=Views(small_views(3), (32, 24)))
    network.train()(pixels(8))  # batch statistics that are not 0 and 1
    for parameter in network.pool.parameters():
        parameter.data += torch.rand(parameter.shape, generator=torch.Generator().manual_seed(2))
    serving = Serving(network).eval()
    program = torch.onnx.export(
        serving,
        (pixels(2, 3),),
        input_names=["pixels"],
        output_names=["vectors"],
        opset_version=18,
        dynamo=True,
        verbose=False,
        dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
    )
    path = tmp_path_factory.mktemp("graph") / "image.onnx"
    program.save(path)
    return path, serving


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_exported_graph_answers_as_the_network(exported, precision):
    """ONNX in OpenVINO gives torch's vectors, for another batch size than it was exported with."""
    path, serving = exported
    x = pixels(5, 3)
    with torch.no_grad():
        expected = serving(x).numpy()
    sys.modules.setdefault("openvino_telemetry", None)  # it would write to the home folder
    import openvino as ov

    model = ov.Core().read_model(path)
    model.reshape([5, 3, 32, 24])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": getattr(ov.Type, precision)})
    got = compiled(x.numpy())[0]

    np.testing.assert_allclose(got, expected, atol=1e-5 if precision == "f32" else 2e-2)
    assert (got * expected).sum(1).min() > (0.99999 if precision == "f32" else 0.999)


def test_the_whole_is_one_graph_for_compilation():
    """torch.compile captures it without a break, in training and with views; the answers are equal."""
    network = EmbeddingNetwork(small(), dim=6, pool="gem", views=Views(small_views(3), (32, 24)))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for mode in (True, False):
        network.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(compiled(pixels()), network(pixels()), atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


def test_autocast_gives_float32_unit_rows():
    """Under bfloat16 autocast the rows are float32, of unit length, and near those of float32."""
    network = EmbeddingNetwork(small(), dim=6, pool="gem", head="mlp", skip=True).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rows = network(pixels())

    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4), atol=1e-6, rtol=0)
    assert (rows * network(pixels())).sum(1).min() > 0.99


# ── what rests, and what learns how fast ─────────────────────────────────────────────────────────────────────────────


def learning(network: EmbeddingNetwork) -> list[bool]:
    """For each stage, whether all of its parameters learn (True), or none (False)."""
    result = []
    for stage in network.base.stages():
        (state,) = {p.requires_grad for p in stage.parameters()}
        result.append(state)
    return result


@pytest.mark.parametrize(("stages", "expected"), [(0, [1, 1, 1, 1]), (2, [0, 0, 1, 1]), (4, [0] * 4), ("all", [0] * 4)])
def test_frozen_stages_rest(stages, expected):
    """Parameters do not learn and statistics do not move, even after train(); the others do both; the head learns."""
    network = EmbeddingNetwork(small(), dim=4, head="mlp")
    network.freeze(stages)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    network(pixels()).sum().backward()

    assert learning(network) == [bool(e) for e in expected]
    for stage, rests in zip(network.base.stages(), expected, strict=True):
        assert all(m.training is bool(rests) for m in stage.modules() if isinstance(m, nn.BatchNorm2d))
    moved = {n for n, v in network.state_dict().items() if n.endswith("running_mean") and not torch.equal(v, before[n])}
    assert any(n.startswith("head.") for n in moved)
    assert any(n.startswith("base.stem") for n in moved) == (stages == 0)
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert all(p.requires_grad for p in network.head.parameters())


def test_frozen_stages_thaw():
    """freeze() says how many rest from now on: fewer than before wakes the others, but not parameters of no use."""
    network = EmbeddingNetwork(build("timm:convnext_atto"), dim=4)
    learns = {n for n, p in network.named_parameters() if p.requires_grad}
    network.freeze("all")
    network.freeze(0)

    assert {n for n, p in network.named_parameters() if p.requires_grad} == learns
    assert "base.net.head.norm.weight" not in learns
    with pytest.raises(ConfigError, match="from 0 to"):
        network.freeze(99)
    with pytest.raises(ConfigError, match="from 0 to"):
        network.freeze(-1)


def test_frozen_batch_norm_rests():
    """All batch normalisation of the base uses stored statistics and learns nothing, across train() and freeze()."""
    network = EmbeddingNetwork(small(), dim=4, head="mlp")
    network.freeze_batch_norm()
    network.freeze(1)
    network.freeze(0)
    network.train()
    norms = [m for m in network.base.modules() if isinstance(m, nn.BatchNorm2d)]

    assert norms
    assert not any(m.training or m.weight.requires_grad or m.bias.requires_grad for m in norms)
    assert all(m.weight.requires_grad for m in network.base.modules() if isinstance(m, nn.Conv2d))
    assert all(m.training for m in network.head.modules())


def test_parameter_groups_have_everything_once_with_its_rate():
    """Kernels decay, vectors do not; rates fall by layer_decay per stage towards the input; the head's is its own."""
    network = EmbeddingNetwork(small(), dim=4, head="mlp", pool="gem")
    network.freeze(1)
    groups = network.parameter_groups(0.1, 0.05, layer_decay=0.5, head_factor=10)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    names = {id(p): n for n, p in network.named_parameters()}
    by_name = {names[key]: value for key, value in settings.items()}

    assert sum(len(g["params"]) for g in groups) == len(settings)
    assert set(by_name) == {n for n, p in network.named_parameters() if p.requires_grad}
    assert by_name["base.body.2.0.branch.0.weight"] == pytest.approx((0.1, 0.05))
    assert by_name["base.body.2.0.branch.1.weight"] == pytest.approx((0.1, 0))
    assert by_name["base.body.1.0.branch.0.weight"] == pytest.approx((0.05, 0.05))
    assert by_name["base.body.0.0.branch.0.weight"] == pytest.approx((0.025, 0.05))
    assert by_name["head.0.weight"] == pytest.approx((1.0, 0.05))
    assert by_name["head.3.bias"] == by_name["pool.p"] == pytest.approx((1.0, 0))
    assert not any(n.startswith("base.stem") for n in by_name)
    torch.optim.AdamW(groups)


def test_transformers_positions_do_not_decay():
    """Class token and positions, which timm excepts, are matrices by shape alone."""
    network = EmbeddingNetwork(build("timm:test_vit", size=(64, 64)), dim=4)
    groups = network.parameter_groups(0.1, 0.05, layer_decay=0.5)
    found = {id(p): g for g in groups for p in g["params"]}
    position = network.base.net.pos_embed
    first = network.base.net.patch_embed.proj.weight

    assert found[id(position)]["weight_decay"] == 0
    assert found[id(first)]["weight_decay"] == 0.05
    assert found[id(position)]["lr"] == found[id(first)]["lr"] == 0.1 * 0.5 ** (len(network.base.stages()) - 1)


def test_parameters_are_counted():
    """All numbers, or those that learn."""
    network = EmbeddingNetwork(small(), dim=4)
    total = network.count_parameters()
    network.freeze("all")

    assert total == sum(p.numel() for p in network.parameters())
    assert network.count_parameters(learning=True) == 16 * 4 + 4


def test_a_classifier_is_dropped():
    """A base with a classifier comes without it: nothing is left that no gradient reaches."""
    network = EmbeddingNetwork(build("small", channels=1, widths=WIDTHS, classes=9), dim=4)

    assert not any("fc" in name for name, _ in network.named_parameters())
