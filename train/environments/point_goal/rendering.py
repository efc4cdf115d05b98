"""Pictures of episodes from above: the map, the path, the agent with its rays, and the goal."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.environments.point_goal import rules
from train.environments.point_goal.rules import Episode, Rules
from train.environments.point_goal.trials import Trials

_WALL, _FREE, _PATH, _RAY, _AGENT = "#3b4252", "#f7f7f5", "#2a6fb0", "#f2c057", "#1b3a5c"
_GOAL, _REACHED, _MISSED = "#c23b3b", "#2e8b57", "#c23b3b"
_PIXELS = 12  # of an animation, for each cell
_MARGIN, _TITLE = 6, 16  # pixels around each map, and above it


def rays(rule: Rules, episodes: Episode, poses: Any) -> np.ndarray:
    """Where the rays end that agents at some poses see.

    Args:
        rule: The rules.
        episodes: Leaves [episodes, ...].
        poses: float32 [times, episodes, 3].

    Returns:
        float32 [times, episodes, rays, 2]: x and y in metres.
    """
    depth = _depths(rule, episodes, poses) * rule.depth_limit
    angles = poses[..., 2, None] + np.asarray(rule.ray_angles())
    return poses[..., None, :2] + depth[..., None] * np.stack([np.cos(angles), np.sin(angles)], -1)


@functools.partial(jax.jit, static_argnums=0)
def _depths(rule: Rules, episodes: Episode, poses: jax.Array) -> jax.Array:
    def one(episode, pose):
        return rules.observe(rule, episode, rules.begin(episode)._replace(pose=pose)).depth

    return jax.vmap(jax.vmap(one), (None, 0))(episodes, poses)


def describe(trials: Trials, index: int) -> str:
    """How an episode ended, in a few words."""
    steps = int(trials.steps[index])
    if trials.success[index]:
        return f"reached in {steps} steps, SPL {float(trials.spl[index]):.2f}"
    return f"not reached, {steps} steps"


def save_picture(path: Path, rule: Rules, episodes: Episode, trials: Trials, title: str, columns: int = 4) -> None:
    """Writes a PNG with the whole path of every episode, the rays at its end, and axes in metres.

    Args:
        path: The file.
        rule: The rules.
        episodes: Leaves [episodes, ...]; few.
        trials: How an agent fared in them.
        title: Of the picture.
        columns: Maps beside each other.
    """
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure  # no window system is needed
    from matplotlib.patches import Circle

    episodes, trials = jax.tree.map(np.asarray, (episodes, trials))
    count = len(episodes.shortest)
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    with mpl.rc_context():
        figure = Figure(figsize=(3.3 * columns, 3.5 * rows + 0.6), layout="constrained")
        axes: Any = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        ends = rays(rule, episodes, trials.poses[-1:])[0]
        for index, axis in enumerate(axes):
            if index >= count:
                axis.set_visible(False)
                continue
            height, width = np.array(episodes.occupied[index].shape) * rule.cell
            colors = ListedColormap([_FREE, _WALL])
            axis.imshow(
                episodes.occupied[index], cmap=colors, vmin=0, vmax=1, origin="lower", extent=(0, width, 0, height)
            )
            path_of = trials.poses[: int(trials.steps[index]) + 1, index]
            x, y, heading = path_of[-1]
            for end in ends[index]:
                axis.plot([x, end[0]], [y, end[1]], color=_RAY, linewidth=0.8, zorder=1)
            axis.plot(*path_of[:, :2].T, color=_PATH, linewidth=1.6, zorder=2)
            axis.plot(*path_of[0, :2], "o", color=_PATH, markersize=5, zorder=3)
            axis.quiver(x, y, math.cos(heading), math.sin(heading), color=_AGENT, scale=14, width=0.014, zorder=4)
            axis.add_patch(Circle(tuple(episodes.goal[index].tolist()), rule.success_radius, color=_GOAL, alpha=0.6))
            color = _REACHED if trials.success[index] else _MISSED
            axis.set_title(describe(trials, index), fontsize=9, color=color)
            axis.set_xlabel("x (m)", fontsize=8)
            axis.set_ylabel("y (m)", fontsize=8)
            axis.tick_params(labelsize=7)
        figure.suptitle(title, fontsize=11)
        figure.savefig(path, dpi=110)


def save_animation(
    path: Path, rule: Rules, episodes: Episode, trials: Trials, columns: int = 4, milliseconds: int = 90
) -> None:
    """Writes a GIF of the episodes side by side, a frame for each step of the longest; each stays at its end.

    Args:
        path: The file.
        rule: The rules.
        episodes: Leaves [episodes, ...]; few.
        trials: How an agent fared in them.
        columns: Maps beside each other.
        milliseconds: For each frame.
    """
    from PIL import Image

    episodes, trials = jax.tree.map(np.asarray, (episodes, trials))
    count, last = len(episodes.shortest), int(trials.steps.max())
    ends = rays(rule, episodes, trials.poses[: last + 1])
    canvas, corners = _canvas(episodes.occupied, min(columns, count))
    frames = []
    for time in range(last + 1):
        frame = canvas.copy()
        for index in range(count):
            _draw(frame, corners[index], rule, episodes, trials, ends, index, time)
        frames.append(frame.convert("P", palette=Image.Palette.ADAPTIVE, colors=32))
    durations = [milliseconds] * last + [20 * milliseconds]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)


def _canvas(occupied: Any, columns: int) -> tuple[Any, Sequence[tuple[int, int]]]:
    """The maps without anybody in them, and the pixel of the corner of each."""
    from PIL import Image, ImageColor

    count, height, width = occupied.shape
    tile_width, tile_height = _PIXELS * width + _MARGIN, _PIXELS * height + _MARGIN + _TITLE
    rows = math.ceil(count / columns)
    canvas = Image.new("RGB", (tile_width * columns + _MARGIN, tile_height * rows + _MARGIN), "white")
    palette = np.array([ImageColor.getrgb(_FREE), ImageColor.getrgb(_WALL)], np.uint8)
    corners = []
    for index in range(count):
        row, column = divmod(index, columns)
        corner = _MARGIN + column * tile_width, _MARGIN + row * tile_height + _TITLE
        pixels = palette[occupied[index, ::-1].astype(int)].repeat(_PIXELS, 0).repeat(_PIXELS, 1)  # y points upwards
        canvas.paste(Image.fromarray(pixels), corner)
        corners.append(corner)
    return canvas, corners


def _draw(
    frame: Any,
    corner: tuple[int, int],
    rule: Rules,
    episodes: Episode,
    trials: Trials,
    ends: np.ndarray,
    index: int,
    time: int,
) -> None:
    """Draws one episode at one time into its place."""
    from PIL import ImageDraw

    pen, scale = ImageDraw.Draw(frame), _PIXELS / rule.cell
    bottom = corner[1] + _PIXELS * episodes.occupied.shape[1]
    at = lambda point: (corner[0] + float(point[0]) * scale, bottom - float(point[1]) * scale)
    over = time >= int(trials.steps[index])
    time = min(time, int(trials.steps[index]))
    goal, radius = at(episodes.goal[index]), rule.success_radius * scale
    pen.ellipse([goal[0] - radius, goal[1] - radius, goal[0] + radius, goal[1] + radius], fill=_GOAL)
    pose = trials.poses[time, index]
    here = at(pose)
    for end in ends[time, index]:
        pen.line([here, at(end)], fill=_RAY)
    if time:
        pen.line([at(point) for point in trials.poses[: time + 1, index]], fill=_PATH, width=2)
    tip = here[0] + 8 * math.cos(pose[2]), here[1] - 8 * math.sin(pose[2])
    pen.ellipse([here[0] - 4, here[1] - 4, here[0] + 4, here[1] + 4], fill=_AGENT)
    pen.line([here, tip], fill=_AGENT, width=3)
    caption = describe(trials, index) if over else f"step {time}"
    color = (_REACHED if trials.success[index] else _MISSED) if over else _AGENT
    pen.text((corner[0], corner[1] - _TITLE + 2), caption, fill=color)
