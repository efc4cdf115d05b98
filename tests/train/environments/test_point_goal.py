"""Point-goal navigation: paths and rays against slow ones, the rules by hand, maps, episodes, batches and pictures."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.environments import slow
from train.environments.point_goal import agents, batches, episodes, geodesic, maps, rays, rendering, rules, trials
from train.environments.point_goal.rules import FORWARD, LEFT, RIGHT, STOP, Rules, State

RULE = Rules(max_steps=80)
LAYOUT = maps.Layout(size=12)  # as the tests of the training have it, so that they share compilations
DIFFICULTY = episodes.Difficulty()
COUNT = 64

ROOMS = slow.map_of("""
    ########
    #..#...#
    #..#...#
    #.##...#
    ##.....#
    #...#..#
    #.#.#..#
    ########
""")  # the two diagonal neighbours at rows 3 and 4 touch at a corner


@pytest.fixture(scope="module")
def pool():
    return episodes.make(COUNT, 3, "training", LAYOUT, DIFFICULTY, RULE)


@pytest.fixture(scope="module")
def step():
    return jax.jit(functools.partial(rules.act, RULE))


@pytest.fixture(scope="module")
def episode():
    heading = jnp.float32(0)
    make = functools.partial(rules.make_episode, RULE)
    return jax.jit(make)(ROOMS, jnp.array([5, 1]), jnp.array([1, 5]), heading)


# --- Paths ---


def test_distances_are_those_of_dijkstra(pool):
    rng = np.random.default_rng(0)
    noise = rng.random((6, 12, 12)) < 0.35  # with cells that nothing leads to, and many corners
    noise[:, [0, -1]] = noise[:, :, [0, -1]] = True
    grids = np.concatenate([noise, pool.occupied[:6]])
    goals = np.array([rng.permutation(np.argwhere(~grid))[0] for grid in grids])
    found = np.asarray(jax.jit(jax.vmap(geodesic.distances))(grids, goals))
    for grid, goal, field in zip(grids, goals, found, strict=True):
        np.testing.assert_allclose(field, slow.distances(grid, goal), rtol=1e-6)
    assert np.isinf(found[~grids]).any()


def test_no_path_cuts_a_corner():
    field = np.asarray(jax.jit(geodesic.distances)(ROOMS, np.array([3, 1])))
    assert np.isinf(field[4, 2])  # right behind the corner, and there is no other way
    assert field[1, 1] == 2
    assert field[1, 2] == pytest.approx(1 + math.sqrt(2))


def test_the_distance_of_a_point_is_that_of_a_path_by_a_cell_nearby():
    goal = np.array([1, 5])
    field = jax.jit(geodesic.distances)(ROOMS, goal)
    at = jax.jit(jax.vmap(functools.partial(geodesic.distance_at, field)))
    cells = np.argwhere(np.isfinite(np.asarray(field)))
    np.testing.assert_allclose(at(cells[:, ::-1] + 0.5), np.asarray(field)[tuple(cells.T)], rtol=1e-6)
    points = cells[:, ::-1] + np.random.default_rng(0).random(cells.shape)
    expected = [slow.distance_at(ROOMS, goal, point) for point in points]
    np.testing.assert_allclose(at(points), expected, rtol=1e-5)


# --- Rays ---


def test_rays_end_where_tiny_steps_do(pool):
    rng = np.random.default_rng(1)
    shoot = jax.jit(functools.partial(rays.depths, limit=6.0))
    for grid in pool.occupied[:6]:
        cell = rng.permutation(np.argwhere(~grid))[0]
        position = cell[::-1] + rng.random(2)
        angles = np.concatenate([rng.uniform(-np.pi, 3 * np.pi, 6), [0, np.pi / 2, np.pi, -np.pi / 2]])
        found = shoot(grid, position.astype(np.float32), angles.astype(np.float32))
        expected = [slow.depth(grid, position, angle, 6.0) for angle in angles]
        np.testing.assert_allclose(found, expected, atol=3e-3)


def test_no_ray_passes_between_cells_that_touch_at_a_corner():
    occupied = jnp.asarray(ROOMS)
    shoot = jax.jit(functools.partial(rays.depths, limit=5.0))
    for position, angle in [((1.5, 3.5), math.pi / 4), ((2.5, 4.5), -3 * math.pi / 4)]:  # through the corner (2, 4)
        found = shoot(occupied, np.float32(position), np.float32([angle]))
        assert found[0] == pytest.approx(math.sqrt(0.5), abs=1e-3)


# --- Rules ---


def test_turns_and_steps(episode, step):
    state = rules.begin(episode)
    np.testing.assert_allclose(state.pose, [0.75, 2.75, 0], atol=1e-6)
    for action, turn in [(LEFT, 30), (LEFT, 60), (RIGHT, 30), (RIGHT, 0), (RIGHT, -30), (LEFT, 0)]:
        state, outcome = step(episode, state, action)
        assert math.degrees(state.pose[2]) == pytest.approx(turn, abs=1e-3)
        assert outcome.reward == pytest.approx(-0.01, abs=1e-6)
        assert not outcome.done
    state, _ = step(episode, state, FORWARD)
    np.testing.assert_allclose(state.pose, [1.0, 2.75, 0], atol=1e-6)
    assert (state.steps, state.travelled) == (7, 0.25)


def test_a_wall_ends_a_step_and_nobody_slides(episode, step):
    state = rules.begin(episode)._replace(pose=jnp.array([1.75, 2.75, 0]))  # the wall is at x = 2
    state, _ = step(episode, state, FORWARD)
    assert state.pose[0] == pytest.approx(2 - 0.05 * RULE.cell)
    assert state.travelled == pytest.approx(0.25 - 0.05 * RULE.cell)
    for heading in (0.0, 0.5):
        again, _ = step(episode, state._replace(pose=state.pose.at[2].set(heading)), FORWARD)
        np.testing.assert_allclose(again.pose[:2], state.pose[:2], atol=0.03)
    between = rules.begin(episode)._replace(pose=jnp.array([1.1, 2.1, -0.75 * math.pi]))  # to the corner at (1, 2)
    between, _ = step(episode, between, FORWARD)
    assert between.pose[0] > 1
    assert between.pose[1] > 2


def test_the_agent_never_enters_a_wall(pool):
    """Random walks, mostly forwards."""
    draws = jnp.array([FORWARD, FORWARD, FORWARD, LEFT, RIGHT])[
        jax.random.randint(jax.random.key(0), (80, COUNT), 0, 5)
    ]
    act = jax.vmap(functools.partial(rules.act, RULE))

    def advance(state, action):
        state, outcome = act(pool, state, action)
        return state, (state, outcome)

    start = jax.vmap(rules.begin)(pool)
    end, (states, outcomes) = jax.jit(lambda start: jax.lax.scan(advance, start, draws))(start)
    column, row = np.floor(np.asarray(states.pose[..., :2]) / RULE.cell).astype(int).transpose(2, 0, 1)
    assert not pool.occupied[np.arange(COUNT), row, column].any()
    assert np.isfinite(states.distance).all()
    steps = np.linalg.norm(np.diff(np.asarray(states.pose[..., :2]), axis=0), axis=-1)
    assert steps.max() <= RULE.forward + 1e-4
    # rewards add up to what the path got shorter by
    total = np.asarray(outcomes.reward).sum(0) - 80 * RULE.step_reward
    np.testing.assert_allclose(total, pool.shortest - np.asarray(end.distance), atol=1e-3)
    assert np.asarray(outcomes.done)[-1].all()  # at the limit
    assert not np.asarray(outcomes.done)[:-1].any()
    assert not np.asarray(outcomes.success).any()


def test_a_stop_counts_by_the_path_that_is_left(episode, step):
    state = rules.begin(episode)
    at = lambda x, y: state._replace(pose=jnp.array([x, y, 0.0]), distance=jnp.float32(1.0), travelled=jnp.float32(6.0))
    for x, success in [(2.75 + 0.35, 1), (2.75 + 0.37, 0), (1.25, 0)]:  # the last one is behind the wall
        _, outcome = step(episode, at(x, 0.75), STOP)
        assert outcome.done
        assert outcome.success == success
        assert outcome.spl == pytest.approx(success * float(episode.shortest) / 6.0)
    _, outcome = step(episode, at(2.8, 0.75), FORWARD)
    assert not outcome.done


def test_what_the_agent_sees(episode):
    see = jax.jit(functools.partial(rules.observe, RULE))
    state = rules.begin(episode)
    at = lambda *pose: jax.device_get(see(episode, state._replace(pose=np.float32(pose))))
    seen = at(2.75, 1.75, math.pi / 2 + 0.1)
    assert seen.depth.shape == (RULE.rays,)
    np.testing.assert_allclose(seen.goal, [1.0, math.pi - 0.1], atol=1e-5)  # behind, on the left
    np.testing.assert_allclose(at(2.75, 1.75, math.pi / 4).goal, [1.0, -math.pi * 3 / 4], atol=1e-5)
    right, left = at(3.25, 2.25, math.pi / 2).depth[[0, -1]] * RULE.depth_limit
    np.testing.assert_allclose([right, left], [3.5 - 3.25, 3.25 - 1.0], atol=1e-4)
    ahead = at(0.75, 3.25, -math.pi / 2).depth[RULE.rays // 2 - 1 : RULE.rays // 2 + 1] * RULE.depth_limit
    np.testing.assert_allclose(ahead, (3.25 - 2.5) / math.cos(math.pi / (RULE.rays - 1) / 2), atol=1e-4)


def test_spl_of_hand_made_paths():
    success, shortest = np.array([1, 1, 1, 0]), np.array([2.0, 2.0, 2.0, 2.0])
    travelled = np.array([2.0, 4.0, 1.5, 2.0])  # the shortest; twice as long; shorter, by the last steps; no success
    np.testing.assert_allclose(rules.spl(success, shortest, travelled), [1, 0.5, 1, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rules(turn=0).check(), "turn must be above 0, got 0"),
        (lambda: Rules(field_of_view=400).check(), "field_of_view must be in"),
        (lambda: Rules(rays=0).check(), "rays must be an integer of at least 1"),
        (lambda: maps.Layout(size=5).check(), "size must be an integer of at least 8 cells"),
        (lambda: maps.Layout(walls=-1).check(), "walls must be a nonnegative integer"),
        (lambda: maps.Layout(second_door=2).check(), "second_door must be in"),
        (lambda: episodes.Difficulty(shortest=9, longest=3).check(), "0 < shortest < longest, got 9 and 3"),
        (lambda: episodes.Difficulty(detour=0.5).check(), "detour must be at least 1"),
        (lambda: episodes.make(0, 0, "training"), "the number of episodes must be at least 1"),
        (lambda: rules.check_map(np.zeros((4, 4), bool)), "must have occupied cells all around"),
        (lambda: rules.check_map(np.zeros((4, 4))), "a map must be bool"),
    ],
)
def test_what_is_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- Maps and episodes ---


def test_all_free_cells_of_a_map_are_connected_and_it_has_rooms():
    occupied = np.asarray(
        jax.jit(jax.vmap(functools.partial(maps.make, LAYOUT)))(jax.random.split(jax.random.key(0), 64))
    )
    for grid in occupied:
        rules.check_map(grid)
        free = np.argwhere(~grid)
        assert np.isfinite(slow.distances(grid, free[0])[~grid]).all()
    inner = occupied[:, 1:-1, 1:-1].mean((1, 2))
    assert inner.min() > 0.05
    assert inner.max() < 0.5
    assert len({grid.tobytes() for grid in occupied}) == 64


def test_episodes_are_solvable_difficult_and_made_from_the_seed(pool):
    again = episodes.make(COUNT, 3, "training", LAYOUT, DIFFICULTY, RULE)
    jax.tree.map(np.testing.assert_array_equal, again, pool)
    straight = np.linalg.norm(pool.start[:, :2] - pool.goal, axis=-1)
    assert (pool.shortest >= DIFFICULTY.detour * straight - 1e-5).all()
    assert (pool.shortest >= DIFFICULTY.shortest).all()
    assert (pool.shortest <= DIFFICULTY.longest).all()
    assert np.ptp(pool.shortest) > 3
    for index in range(3):
        start, goal = (np.floor(p[1::-1] / RULE.cell).astype(int) for p in (pool.start[index], pool.goal[index]))
        assert slow.distances(pool.occupied[index], goal)[*start] * RULE.cell == pytest.approx(pool.shortest[index])


def test_training_and_evaluation_have_no_map_in_common(pool):
    others = [
        episodes.make(COUNT, seed, split, LAYOUT, DIFFICULTY, RULE)
        for seed, split in [(3, "evaluation"), (4, "training")]
    ]
    kinds = [{grid.tobytes() for grid in each.occupied} for each in (pool, *others)]
    assert len(set.union(*kinds)) == sum(map(len, kinds))


def test_what_is_too_difficult_is_refused():
    empty = maps.Layout(size=12, walls=0, blocks=0)
    with pytest.raises(ValueError, match=r"only 0 have a path of 2\.0 to 15\.0 m that is 1\.2 times"):
        episodes.make(COUNT, 0, "training", empty, DIFFICULTY, RULE)


# --- Batches ---


def test_agents_go_on_with_another_episode_when_one_ends(pool):
    pool = jax.tree.map(jnp.asarray, pool)
    advance = jax.jit(functools.partial(batches.step, RULE))
    now = batches.begin(pool, 8, jax.random.key(0))
    assert len(set(now.episode.tolist())) > 4
    act = jax.jit(functools.partial(rules.act, RULE))
    taken = np.random.default_rng(0).choice([FORWARD, LEFT, RIGHT, STOP], size=(12, 8), p=[0.6, 0.15, 0.15, 0.1])
    ends = 0
    one = lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree)
    episodes_here, same = jax.device_get(pool), functools.partial(np.testing.assert_allclose, atol=1e-5)
    now = jax.device_get(now._replace(key=jax.random.key_data(now.key)))
    for actions in taken:
        given = now._replace(key=jax.random.wrap_key_data(now.key))
        after, outcome = advance(pool, given, actions)
        after, outcome = jax.device_get((after._replace(key=jax.random.key_data(after.key)), outcome))
        for index in range(0, 8, 3):
            expected, alone = jax.device_get(
                act(one(episodes_here, now.episode[index]), one(now.state, index), actions[index])
            )
            jax.tree.map(same, one(outcome, index), alone)
            if alone.done:
                ends += 1
                following = one(episodes_here, after.episode[index])
                expected = State(following.start, following.shortest, 0, 0)
            else:
                assert after.episode[index] == now.episode[index]
            jax.tree.map(same, one(after.state, index), expected)
        now = after
    assert ends > 1


# --- Agents and pictures ---


@pytest.fixture(scope="module")
def oracle(pool):
    return trials.run_agent(RULE, pool, agents.oracle, jax.random.key(0))


def test_an_oracle_solves_what_others_do_not(pool, oracle):
    assert trials.scores(oracle)["spl"] > 0.95
    others = [trials.run_agent(RULE, pool, each, jax.random.key(0)) for each in (agents.straight, agents.random)]
    straight, random = map(trials.scores, others)
    assert random["success"] < 0.05
    assert random["spl"] <= straight["spl"] < 0.4
    # what is reported are the paths that were walked
    poses = np.asarray(oracle.poses)
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(poses[..., :2], axis=0), axis=-1).sum(0), oracle.travelled, rtol=1e-4
    )
    left = np.linalg.norm(poses[-1, :, :2] - pool.goal, axis=-1)
    assert (left[np.asarray(oracle.success) > 0] <= RULE.success_radius + 1e-5).all()


def test_pictures_show_the_paths(pool, oracle, tmp_path):
    from PIL import Image, ImageColor

    few = lambda tree: jax.tree.map(lambda leaf: leaf[:3], tree)
    shown = few(oracle)._replace(poses=oracle.poses[:, :3])
    rendering.save_picture(tmp_path / "paths.png", RULE, few(pool), shown, "oracle", columns=2)
    rendering.save_animation(tmp_path / "paths.gif", RULE, few(pool), shown)
    with Image.open(tmp_path / "paths.png") as picture:
        assert min(picture.size) > 500
    with Image.open(tmp_path / "paths.gif") as animation:
        assert animation.n_frames == int(shown.steps.max()) + 1
        animation.seek(animation.n_frames - 1)
        colors = {color for _, color in animation.convert("RGB").getcolors(1 << 20)}
    near = lambda name: min(np.abs(np.subtract(ImageColor.getrgb(name), color)).max() for color in colors) < 12
    assert all(map(near, [rendering._WALL, rendering._PATH, rendering._GOAL, rendering._RAY]))
    # the ends of rays are at walls, or at the limit
    ends = rendering.rays(RULE, few(pool), np.asarray(shown.poses[:1]))[0]
    lengths = np.linalg.norm(ends - pool.start[:3, None, :2], axis=-1)
    assert lengths.max() <= RULE.depth_limit + 1e-4
