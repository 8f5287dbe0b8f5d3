"""The game of channels against weights edited by hand, and the screened game against its own finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from debride import portions, sessions, tree
from debride.game import ChannelGame, _Runs, _Sums
from debride.graph.channels import find_groups
from debride.graph.parts import gated, gated_parts
from debride.graph.read import read_model
from debride.graph.seen import bytes_per_image, seen
from debride.graph.surgery import working_zero
from debride.proxy.interpreter import Proxy
from debride.proxy.screen import ProxyGame
from debride.sessions import Runtime, Session, predictor, probabilities
from debride.stakes import Stake
from debride.tree import Tree
from debride.types import InputSpec
from fake_gpu import FakeGpu
from graph_models import Builder

SPEC = InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8), output="scores", mean=(0.5,), std=(0.25,))
ONE = Runtime(threads=1)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Convolution, norm, residual, convolution, pooled head: 4 + 4 + 5 channels."""
    b = Builder(13, seed=3)
    x = b.op("Relu", b.bn(b.conv("x", 3, 4), 4))
    x = b.op("Relu", b.op("Add", b.conv(x, 4, 4), x))
    x = b.op("Relu", b.conv(x, 4, 5))
    flat = b.op("Flatten", b.op("GlobalAveragePool", x))
    b.op("Gemm", flat, b.const(4 * b.rng.standard_normal((5, 3)).astype(np.float32)), b.weight(3))
    path = tmp_path_factory.mktemp("game") / "net.onnx"
    path.write_bytes(b.model(["n", 3, 8, 8], "scores", ["n", 3]).SerializeToString())
    return read_model(path)


@pytest.fixture(scope="module")
def groups(model):
    return find_groups(model.graph, "scores")[0]


@pytest.fixture(scope="module")
def stakes():
    rng = np.random.default_rng(0)
    images = [rng.random((n, 3, 8, 8), dtype=np.float32) for n in (4, 6)]
    return (
        Stake(images=images[0], wanted=np.eye(3, dtype=np.float32)[[0, 1, 1, 2]], span=(-3.0, 3.0)),
        Stake(images=images[1], wanted=rng.dirichlet(np.ones(3), 6).astype(np.float32)),
    )


def game_of(model, groups, stakes, **more):
    return ChannelGame(
        len(groups),
        lambda columns: gated(model.working, [groups[i] for i in columns], "scores"),
        SPEC,
        stakes,
        ONE,
        **more,
    )


def edited(model, groups, stakes, coalitions):
    """Payoffs of models whose absent channels' weights are zeroed."""
    rows = []
    for coalition in coalitions:
        proto = working_zero(model, [groups[i] for i in np.flatnonzero(~coalition)])
        predict = predictor(Session(proto.SerializeToString(), ONE), SPEC)
        rows.append([float(s.payoff(probabilities(predict(s.images))[None])[0]) for s in stakes])
    return np.array(rows)


def last_layer(groups):
    return [i for i, g in enumerate(groups) if g.layer == groups[-1].layer]


def test_the_net_has_the_players_that_it_should(groups):
    assert len(groups) == 13 and len({g.layer for g in groups}) == 3


def test_payoffs_are_those_of_models_with_edited_weights(model, groups, stakes):
    coalitions = np.random.default_rng(1).random((20, len(groups))) < 0.7
    coalitions[0], coalitions[1] = True, False
    found = game_of(model, groups, stakes)(coalitions)
    assert found.shape == (20, 2)
    np.testing.assert_allclose(found, edited(model, groups, stakes, coalitions), rtol=0, atol=1e-5)
    assert np.ptp(found, axis=0).min() > 0.01


def test_the_grand_coalition_alone_can_be_played(model, groups, stakes):
    everybody = np.ones((1, len(groups)), np.bool_)
    np.testing.assert_allclose(
        game_of(model, groups, stakes)(everybody), edited(model, groups, stakes, everybody), atol=1e-5
    )


def test_a_stake_can_be_played_alone(model, groups, stakes):
    game, coalitions = game_of(model, groups, stakes), ~np.eye(len(groups), dtype=np.bool_)
    found = game.payoff(1, coalitions)
    assert game._games[0]._way is None
    np.testing.assert_allclose(found, edited(model, groups, stakes, coalitions)[:, 1], rtol=0, atol=1e-5)


def test_players_that_join_later_make_new_sessions(model, groups, stakes):
    game, everybody = game_of(model, groups, stakes), np.ones((2, len(groups)), np.bool_)
    for absent in ([0], [12], [3, 7]):
        coalitions = everybody.copy()
        coalitions[1, absent] = False
        np.testing.assert_allclose(game(coalitions), edited(model, groups, stakes, coalitions), atol=1e-5)


def test_the_last_layer_is_played_in_closed_form(model, groups, stakes):
    last = last_layer(groups)
    coalitions = np.ones((2 ** len(last), len(groups)), np.bool_)
    coalitions[:, last] = (np.arange(len(coalitions))[:, None] >> np.arange(len(last))) & 1
    game = game_of(model, groups, stakes)
    found = game(coalitions)
    assert all(isinstance(one._way, _Sums) for one in game._games)
    np.testing.assert_allclose(found, edited(model, groups, stakes, coalitions), rtol=0, atol=1e-5)


def test_one_layer_before_the_last_is_played_by_runs_and_several_as_a_tree(model, groups, stakes):
    first = [i for i, g in enumerate(groups) if g.layer == groups[0].layer]
    coalitions = np.ones((2, len(groups)), np.bool_)
    coalitions[1, first[:2]] = False
    game = game_of(model, groups, stakes)
    game(coalitions)
    assert all(isinstance(one._way, _Runs) for one in game._games)
    game(~np.eye(len(groups), dtype=np.bool_))
    assert all(isinstance(one._way, Tree) for one in game._games)


def test_what_coalitions_have_in_common_is_computed_once(model, groups, stakes, monkeypatch):
    runs = []
    run = tree._Bound.run
    monkeypatch.setattr(tree._Bound, "run", lambda self, *given: runs.append(len(self.columns)) or run(self, *given))
    firsts = {group.layer: i for i, group in reversed(list(enumerate(groups)))}
    players = sorted(firsts.values())
    coalitions = np.ones((8, len(groups)), np.bool_)
    coalitions[:, players] = (np.arange(8)[:, None] >> np.arange(3)) & 1
    game = game_of(model, groups, stakes)
    found = game(coalitions)
    # For each stake, the first of three layers runs for 2 sets of players, the second for 4, the last for 8.
    assert runs == [1] * 2 * (2 + 4 + 8)
    np.testing.assert_array_equal(game(coalitions[[5, 2]]), found[[5, 2]])
    np.testing.assert_array_equal(game.payoff(1, coalitions), found[:, 1])
    assert len(runs) == 28
    np.testing.assert_allclose(found, edited(model, groups, stakes, coalitions), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("module", "name", "size"), [(portions, "ON_CPU", 3), (tree, "_ROWS", 2)])
def test_a_tree_is_played_a_few_images_and_coalitions_at_a_time(model, groups, stakes, monkeypatch, module, name, size):
    coalitions = np.random.default_rng(7).random((9, len(groups))) < 0.7
    expected = game_of(model, groups, stakes)(coalitions)
    monkeypatch.setattr(module, name, size)
    np.testing.assert_allclose(game_of(model, groups, stakes)(coalitions), expected, rtol=0, atol=1e-6)


def test_of_large_images_a_run_takes_as_few_as_memory_allows_and_no_arena_is_kept(model, groups, stakes, monkeypatch):
    images, arenas = np.concatenate([s.images for s in stakes]), []

    def session(proto, runtime, name):
        arenas.append(runtime.arena)
        return Session(proto, runtime, name)

    monkeypatch.setattr("debride.game.Session", session)
    few, many = (
        _Runs(gated_parts(model.working, groups, "scores"), SPEC, images, ONE, image_bytes=size)
        for size in (portions.pass_bytes("cpu") // 3, 1000)
    )
    assert few._rows == 3 < many._rows
    assert arenas == [True, False, True, True]
    masks = (np.random.default_rng(2).random((4, len(groups))) < 0.6).astype(np.float32)
    found = [np.concatenate(list(runs.play(masks))) for runs in (few, many)]
    np.testing.assert_allclose(*found, rtol=0, atol=1e-5)


def test_many_coalitions_in_one_run_give_what_each_gives_alone(model, groups, stakes):
    images = np.concatenate([s.images for s in stakes])
    runs = _Runs(gated_parts(model.working, groups, "scores"), SPEC, images, ONE)
    masks = (np.random.default_rng(2).random((7, len(groups))) < 0.6).astype(np.float32)
    alone = np.concatenate([runs._run(row[None]) for row in masks])
    assert alone.shape == (7, 10, 3)
    np.testing.assert_allclose(runs._run(masks), alone, rtol=0, atol=1e-5)


def test_payoffs_do_not_depend_on_how_coalitions_are_batched(model, groups, stakes):
    coalitions = np.random.default_rng(4).random((40, len(groups))) < 0.6
    coalitions[0] = False  # every player is gated from the first call on
    game = game_of(model, groups, stakes)
    alone = np.concatenate([game(row[None]) for row in coalitions])
    np.testing.assert_allclose(game_of(model, groups, stakes)(coalitions), alone, rtol=0, atol=1e-5)


def test_the_screened_game_plays_the_same_payoffs(model, groups, stakes):
    coalitions = np.random.default_rng(5).random((6, len(groups))) < 0.7
    found = ProxyGame(Proxy(model.graph, SPEC), groups, stakes)(coalitions)
    np.testing.assert_allclose(found, edited(model, groups, stakes, coalitions), rtol=0, atol=1e-4)


def absent(groups, layer, count, seed=8):
    """Coalitions in which half of the players of `layer` (None: of all layers) are missing."""
    mine = [i for i, g in enumerate(groups) if layer is None or g.layer == groups[layer].layer]
    coalitions = np.ones((count, len(groups)), np.bool_)
    coalitions[:, mine] = np.random.default_rng(seed).random((count, len(mine))) < 0.5
    return coalitions


@pytest.mark.parametrize(("layer", "way"), [(0, _Runs), (-1, _Sums), (None, Tree)])
@pytest.mark.parametrize("where", ["bound on the CPU", "on a GPU"])
def test_payoffs_are_the_same_where_tensors_stay_on_a_gpu(model, groups, stakes, monkeypatch, layer, way, where):
    coalitions = absent(groups, layer, 9)
    expected = game_of(model, groups, stakes)(coalitions)
    if where == "on a GPU":
        monkeypatch.setattr(sessions, "ort", FakeGpu())
    else:
        monkeypatch.setattr(Session, "_binds", True)
    game = game_of(model, groups, stakes)
    np.testing.assert_allclose(game(coalitions), expected, rtol=0, atol=1e-6)
    assert all(isinstance(one._way, way) for one in game._games)


def test_a_gpu_is_given_the_prefix_once_then_masks_and_gives_scores(model, groups, stakes, monkeypatch):
    gpu = FakeGpu()
    monkeypatch.setattr(sessions, "ort", gpu)
    n = len(stakes[0])
    monkeypatch.setattr(portions, "pass_bytes", lambda device: {"cuda:0": (3 * n + 1) * 1000}[device])
    game = game_of(model, groups, stakes[:1], image_bytes=1000)  # three coalitions of n images each, a run
    first = [i for i, g in enumerate(groups) if g.layer == groups[0].layer]
    coalitions = np.ones((11, len(groups)), np.bool_)
    coalitions[:, first] = (np.arange(11)[:, None] >> np.arange(4)) & 1
    game(coalitions[:7])
    prefix = sum(array.nbytes for array in game._games[0]._way._cache.values())
    rows = np.array([3 * n, 3 * n, 1])  # alone, a coalition needs one row for all images
    assert gpu.up == [3 * prefix, *rows * 4 * 4] and gpu.down == [9 * n * 4, 9 * n * 4, 3 * n * 4]
    gpu.up.clear()
    game(coalitions[7:])
    assert gpu.up == [3 * n * 4 * 4, 4 * 4]


def test_what_links_pass_on_never_leaves_a_gpu(model, groups, stakes, monkeypatch):
    gpu = FakeGpu()
    monkeypatch.setattr(sessions, "ort", gpu)
    game, n = game_of(model, groups, stakes[:1]), len(stakes[0])
    game(absent(groups, None, 6))
    images = n * 3 * 8 * 8 * 4
    assert [size for size in gpu.up if size > len(groups) * 4] == [images]
    assert set(gpu.down) == {n * 3 * 4}


@pytest.mark.parametrize(
    ("place", "image_bytes", "wanted"),
    [
        (("cpu", 0), 0, 64),
        (("cpu", 0), 1 << 20, 64),
        (("cpu", 0), 1 << 13, 512),
        (("cpu", 0), 1 << 25, 15),
        (("cpu", 0), 1 << 40, 1),
        (("cuda", 1), 0, 64),
        (("cuda", 1), 1 << 20, 1000 - 1000 % 64),
        (("cuda", 1), 1 << 25, 31),
        (("cuda", 1), 1 << 40, 1),
        (("cuda", 1), 1, 16384),
    ],
)
def test_images_in_a_run_follow_from_shapes_and_memory_alone(monkeypatch, place, image_bytes, wanted):
    monkeypatch.setattr(portions, "pass_bytes", lambda device: {"cuda:1": 1000 << 20, "cpu": 500 << 20}[device])
    assert portions.images_at_once(place, image_bytes) == wanted


def test_what_an_image_takes_is_the_sum_of_what_follows_the_batch():
    shapes = {"x": (None, 3, 8), "w": (5, 3), "y": (None, 5), "n": (None,)}
    dtypes = {"x": np.dtype(np.float32), "w": np.dtype(np.float32), "y": np.dtype(np.float16), "n": np.dtype(np.int64)}
    assert bytes_per_image(seen(shapes, dtypes)) == 4 * 24 + 2 * 5 + 8


@pytest.mark.parametrize("span", [None, (-12.0, 12.0)])
def test_marginals_are_the_slopes_of_the_payoffs(model, groups, stakes, span):
    mine = [groups[i] for i in last_layer(groups)]
    stake = Stake(images=stakes[0].images[:1], wanted=np.eye(3, dtype=np.float32)[[1]], span=span)
    game, step = ProxyGame(Proxy(model.graph, SPEC), mine, [stake]), 1e-2
    points = np.random.default_rng(6).uniform(0.3, 0.9, (4, len(mine)))
    found = game.marginals(points)
    assert found.shape == (4, 1, len(mine))
    for point, slopes in zip(points, found[:, 0], strict=True):
        moves = step * np.eye(len(mine))
        expected = (game(point + moves) - game(point - moves))[:, 0] / (2 * step)
        np.testing.assert_allclose(slopes, expected, rtol=0, atol=2e-4 + 2e-3 * np.abs(expected).max())


def test_marginals_take_the_images_in_turn(model, groups, stakes):
    everybody, n = np.ones((1, len(groups)), np.bool_), len(stakes[1])
    game = ProxyGame(Proxy(model.graph, SPEC), groups, stakes[1:])
    one_by_one = np.concatenate([game.marginals(everybody) for _ in range(n)])
    together = ProxyGame(Proxy(model.graph, SPEC), groups, stakes[1:]).marginals(np.repeat(everybody, n, axis=0))
    np.testing.assert_allclose(one_by_one, together, rtol=0, atol=1e-7)
    assert np.ptp(together[:, 0], axis=0).max() > 2e-5
